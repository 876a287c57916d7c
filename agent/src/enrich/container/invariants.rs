//! What holds of the levels of any path: for the tests beside, and for `fuzz/`.

use super::{Kind, Level, Runtime, is_id, levels};

/// Asserts it of this path; returns how many levels it has.
pub(crate) fn hold(path: &str) -> usize {
    let found = levels(path);
    let mut last_end = 0;
    for (index, level) in found.iter().enumerate() {
        let end = level.end;
        assert!(
            end == path.len() || path.as_bytes().get(end) == Some(&b'/'),
            "{end} cuts a name of {path:?}"
        );
        // Two levels share an end only as `slice:prefix:id`.
        let shared = end == last_end && matches!(level.kind, Kind::Container { .. }) && index > 0;
        assert!(
            end > last_end || shared,
            "{end} after {last_end} in {path:?}"
        );
        last_end = end;
        let name = path[..end].rsplit('/').next().unwrap_or_default();
        assert!(!name.is_empty(), "{path:?}");
        holds_of(&level.kind, name);
    }

    let longer = format!("{path}/x");
    assert!(levels(&longer).starts_with(&found), "{longer:?}");
    if path.starts_with('/') {
        is_shifted(&found, "/outer", &[], path);
        let node = format!("/system.slice/docker-{}.scope", "ab".repeat(32));
        is_shifted(&found, &node, &levels(&node), path);
    }
    found.len()
}

fn holds_of(kind: &Kind, name: &str) {
    match kind {
        Kind::Pod { uid } => {
            let digits: Vec<usize> = uid.split('-').map(str::len).collect();
            assert!(matches!(digits[..], [8, 4, 4, 4, 12] | [32]), "{uid:?}");
            assert!(
                uid.bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'))
            );
        }
        Kind::Container { runtime, id } => match runtime {
            Runtime::Garden | Runtime::Lxc => {
                assert!(!id.is_empty() && name.ends_with(id.as_ref()), "{id:?}");
            }
            Runtime::Machined => assert!(!id.is_empty() && id.len() < name.len(), "{id:?}"),
            _ => assert!(is_id(id) && name.contains(id.as_ref()), "{id:?}"),
        },
        Kind::Unit { name: unit } => {
            assert!(name.ends_with(unit) && unit.contains('.'), "{unit:?}");
        }
        Kind::User { uid } => assert!(name.contains(&format!("user-{uid}.slice")), "{uid}"),
    }
}

/// What is inside another cgroup means the same there.
fn is_shifted(found: &[Level], outer: &str, around: &[Level], path: &str) {
    let longer = format!("{outer}{path}");
    let inside = levels(&longer);
    assert!(inside.starts_with(around), "{longer:?}");
    let inside: Vec<Level> = inside[around.len()..]
        .iter()
        .map(|level| Level {
            kind: level.kind.clone(),
            end: level.end - outer.len(),
        })
        .collect();
    assert_eq!(inside, found, "{longer:?}");
}
