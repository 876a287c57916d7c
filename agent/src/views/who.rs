//! A row of the views: a workload, or a process of one.

use std::sync::Arc;

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{collect::Labels, config::PodLabel, enrich::names::Owner};

/// Whose a value is, its device left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Who {
    owner: Arc<Owner>,
    process: Option<String>,
}

impl Who {
    pub(crate) fn of(labels: &Labels) -> Self {
        Self {
            owner: Arc::clone(&labels.owner),
            process: labels.process.clone(),
        }
    }

    /// A workload.
    pub(crate) fn owned_by(owner: Arc<Owner>) -> Self {
        Self {
            owner,
            process: None,
        }
    }

    /// Whose labels they are.
    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    /// Its labels as `/metrics` has them; those that are empty are left out.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let owner = &*self.owner;
        let workload = owner.workload.as_ref();
        let process = self.process.as_deref();
        [
            ("namespace", owner.namespace.as_str()),
            ("pod", &owner.pod),
            ("container", &owner.container),
            ("cgroup", &owner.cgroup),
            ("workload_kind", workload.map_or("", |[kind, _]| kind)),
            ("workload", workload.map_or("", |[_, name]| name)),
        ]
        .into_iter()
        .chain(
            owner
                .pod_labels()
                .map(|(label, value)| (PodLabel::shown(label), value)),
        )
        .chain(process.map(|process| ("process", process)))
        .filter(|(_, value)| !value.is_empty())
    }

    /// Tells it from others, in this run of the agent and the next: a hash of its labels.
    pub(crate) fn id(&self) -> Id {
        // FNV-1a; a byte that no text has stands after each part.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for (name, value) in self.labels() {
            for part in [name, value] {
                for byte in part.bytes().chain([0xff]) {
                    hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
                }
            }
        }
        Id(hash)
    }

    /// Whether it goes by this identity, or is a process of who does.
    pub(crate) fn belongs_to(&self, id: Id) -> bool {
        let workload = Self {
            owner: Arc::clone(&self.owner),
            process: None,
        };
        self.id() == id || workload.id() == id
    }

    /// Some of the memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        let text: usize = self
            .labels()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        text + size_of::<Owner>() + size_of::<Self>()
    }
}

/// The identity of a [`Who`]: sixteen hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id(u64);

impl Id {
    /// As [`Self::serialize`] writes it.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_plain = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok()?;
        is_plain.then_some(Self(number))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

/// The labels as an object.
impl Serialize for Who {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.labels() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::views) fn labels(cgroup: &str, process: Option<&str>) -> Labels {
        Labels {
            owner: Arc::new(Owner {
                cgroup: cgroup.to_owned(),
                ..Owner::default()
            }),
            process: process.map(str::to_owned),
            device: None,
        }
    }

    #[test]
    fn an_id_is_of_all_labels() {
        let id = |cgroup, process| Who::of(&labels(cgroup, process)).id();
        assert_eq!(id("/a", None), id("/a", None));
        assert_ne!(id("/a", None), id("/b", None));
        assert_ne!(id("/a", None), id("/a", Some("x")));
        let text = serde_json::to_string(&id("/a", None)).unwrap();
        assert_eq!(Id::parse(text.trim_matches('"')), Some(id("/a", None)));
        // The same in each version: bookmarks hold it.
        assert_eq!(text, "\"d9bea74fd50c250b\"");
        for wrong in [
            "",
            "+000000000000001",
            "1",
            "00000000000000000",
            "g000000000000000",
        ] {
            assert_eq!(Id::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_process_belongs_to_its_workload() {
        let who = |process| Who::of(&labels("/a", process));
        assert!(who(Some("x")).belongs_to(who(Some("x")).id()));
        assert!(who(Some("x")).belongs_to(who(None).id()));
        assert!(!who(None).belongs_to(who(Some("x")).id()));
        assert!(!who(Some("y")).belongs_to(who(Some("x")).id()));
    }

    #[test]
    fn labels_without_a_value_are_left_out() {
        let who = Who::of(&labels("/a", Some("train \"1\"")));
        assert_eq!(
            serde_json::to_string(&who).unwrap(),
            r#"{"cgroup":"/a","process":"train \"1\""}"#
        );
    }
}
