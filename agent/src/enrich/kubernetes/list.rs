//! A list of pods that is handed on pod by pod as it arrives, and never stored: a node may have a
//! thousand, of 10 KB each.

use std::{fmt, io::Read};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::pod::Pod;

/// What a list says of itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ListMetadata {
    /// Where a watch goes on.
    pub(super) resource_version: String,
    /// Asks for the rest; empty when there is none.
    pub(super) r#continue: String,
}

/// Reads a `PodList`.
pub(super) fn read(from: impl Read, each: impl FnMut(Pod)) -> serde_json::Result<ListMetadata> {
    let mut json = serde_json::Deserializer::from_reader(from);
    let metadata = List(each).deserialize(&mut json)?;
    json.end()?;
    Ok(metadata)
}

struct List<F>(F);

impl<'de, F: FnMut(Pod)> DeserializeSeed<'de> for List<F> {
    type Value = ListMetadata;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Pod)> Visitor<'de> for List<F> {
    type Value = ListMetadata;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a list of pods")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut metadata = ListMetadata::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" => metadata = map.next_value()?,
                "items" => map.next_value_seed(Items(&mut self.0))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(metadata)
    }
}

struct Items<'f, F>(&'f mut F);

impl<'de, F: FnMut(Pod)> DeserializeSeed<'de> for Items<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_option(self)
    }
}

impl<'de, F: FnMut(Pod)> Visitor<'de> for Items<'_, F> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("pods")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut pods: A) -> Result<(), A::Error> {
        while let Some(pod) = pods.next_element()? {
            (self.0)(pod);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(json: &str) -> serde_json::Result<(Vec<String>, ListMetadata)> {
        let mut names = Vec::new();
        let metadata = read(json.as_bytes(), |pod| names.push(pod.metadata.name))?;
        Ok((names, metadata))
    }

    #[test]
    fn pods_are_handed_on_in_any_order_of_keys() {
        for json in [
            r#"{"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7", "continue": "c",
                "remainingItemCount": 3}, "items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]}"#,
            r#"{"items": [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}],
                "metadata": {"continue": "c", "resourceVersion": "7"}}"#,
        ] {
            let (names, metadata) = names(json).unwrap();
            assert_eq!(names, ["a", "b"]);
            assert_eq!(metadata.resource_version, "7");
            assert_eq!(metadata.r#continue, "c");
        }
        let (names, metadata) =
            names(r#"{"metadata": {"resourceVersion": "1"}, "items": null}"#).unwrap();
        assert_eq!(names.len(), 0);
        assert_eq!(metadata.r#continue, "");
    }

    #[test]
    fn a_list_that_is_cut_off_is_an_error() {
        assert!(
            names(r#"{"items": [{"metadata": {"name": "a"}}"#)
                .unwrap_err()
                .is_eof()
        );
        assert!(names(r#"{"items": {}}"#).unwrap_err().is_data());
        assert!(names("[]").unwrap_err().is_data());
        assert!(names("<html>").unwrap_err().is_syntax());
    }
}
