//! Cgroups as they come and go: not a probe with metrics, but what gives the probes' numbers
//! their names.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::maps::{MapData, RingBuf};

use crate::{
    Rung, Status,
    spec::{Hook, Program, Record, Variant},
    wire::{CGROUP_EVENT_HEAD_BYTES, CGROUP_MKDIR, CGROUP_RENAME, CGROUP_RMDIR, cgroup_event},
};

/// What it is called in verdicts.
pub(crate) const NAME: &str = "cgroup";

/// Ways to attach, best first.
pub(crate) const RUNGS: &[Rung] = &[
    rung(
        "tp_btf",
        &[Variant {
            programs: &[
                program("cgroup_mkdir", Hook::TpBtf("cgroup_mkdir")),
                program("cgroup_rename", Hook::TpBtf("cgroup_rename")),
                program("cgroup_rmdir", Hook::TpBtf("cgroup_rmdir")),
            ],
            ..VARIANT
        }],
    ),
    rung(
        "raw_tp",
        &[Variant {
            programs: &[
                program("cgroup_mkdir_raw", Hook::RawTracepoint("cgroup_mkdir")),
                program("cgroup_rename_raw", Hook::RawTracepoint("cgroup_rename")),
                program("cgroup_rmdir_raw", Hook::RawTracepoint("cgroup_rmdir")),
            ],
            ..VARIANT
        }],
    ),
    rung(
        "tracepoint",
        &[Variant {
            programs: &[
                program(
                    "cgroup_mkdir_record",
                    Hook::Tracepoint(&record("cgroup_mkdir")),
                ),
                program(
                    "cgroup_rename_record",
                    Hook::Tracepoint(&record("cgroup_rename")),
                ),
                program(
                    "cgroup_rmdir_record",
                    Hook::Tracepoint(&record("cgroup_rmdir")),
                ),
            ],
            ..VARIANT
        }],
    ),
];

const VARIANT: Variant = Variant {
    programs: &[],
    table: None,
    of_task: false,
    note: "",
};

const fn rung(hook: &'static str, variants: &'static [Variant]) -> Rung {
    Rung {
        hook,
        variants,
        limits: "",
        fallback: &[],
        events: None,
    }
}

const fn program(name: &'static str, hook: Hook) -> Program {
    Program { name, hook }
}

/// The three events are of one class and have the same record.
const fn record(event: &'static str) -> Record {
    Record {
        category: "cgroup",
        event,
        fields: &[
            ("cgroup_record_root", "root"),
            ("cgroup_record_id", "id"),
            ("cgroup_record_path", "path"),
        ],
    }
}

/// A change of a cgroup tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The hierarchy's id as in `/proc/cgroups`; 0 is cgroup v2.
    pub hierarchy: u16,
    /// The cgroup's id.
    pub id: u64,
    /// What happened to it.
    pub change: Change,
}

/// What happened to a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It was made, or has a new name (v1 only).
    Named {
        /// The id of the cgroup above it; 0 where the name is the whole path.
        parent_id: u64,
        /// The last part of its path, or the path without its first slash.
        name: String,
    },
    /// It is gone.
    Removed,
}

/// A record that is not an event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a cgroup event of {bytes} bytes and operation {operation:?} cannot be read")]
pub struct DecodeError {
    bytes: usize,
    operation: Option<u32>,
}

/// Reads a record of the ring: `struct cgroup_event`, cut off after its name.
///
/// # Errors
/// When the record is shorter than its head or its operation unknown.
pub fn decode(record: &[u8]) -> Result<Event, DecodeError> {
    let error = |operation| DecodeError {
        bytes: record.len(),
        operation,
    };
    let word = |offset: usize| -> Option<u64> {
        Some(u64::from_ne_bytes(
            record.get(offset..offset + 8)?.try_into().ok()?,
        ))
    };
    let half = |offset: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(
            record.get(offset..offset + 4)?.try_into().ok()?,
        ))
    };
    let (Some(id), Some(parent_id), Some(hierarchy), Some(operation)) = (
        word(std::mem::offset_of!(cgroup_event, id)),
        word(std::mem::offset_of!(cgroup_event, parent_id)),
        half(std::mem::offset_of!(cgroup_event, hierarchy)),
        half(std::mem::offset_of!(cgroup_event, operation)),
    ) else {
        return Err(error(None));
    };
    let change = match operation {
        CGROUP_MKDIR | CGROUP_RENAME => {
            let name = record
                .get(CGROUP_EVENT_HEAD_BYTES as usize..)
                .unwrap_or_default();
            let end = name.iter().position(|byte| *byte == 0);
            Change::Named {
                parent_id,
                name: String::from_utf8_lossy(&name[..end.unwrap_or(name.len())])
                    .trim_start_matches('/')
                    .to_owned(),
            }
        }
        CGROUP_RMDIR => Change::Removed,
        other => return Err(error(Some(other))),
    };
    Ok(Event {
        // The kernel's key has 16 bits too.
        #[allow(clippy::cast_possible_truncation)]
        hierarchy: hierarchy as u16,
        id,
        change,
    })
}

/// The ring of events.
pub struct Events {
    ring: RingBuf<MapData>,
    /// The hook they come from.
    pub status: Status,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Events {
    pub(crate) fn new(ring: RingBuf<MapData>, status: Status) -> Self {
        Self { ring, status }
    }

    /// A descriptor that is readable while there are events, for a thread to wait with while
    /// others take them.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub fn readable(&self) -> io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
    }

    /// Takes the oldest event. What the kernel did to a cgroup is here before anything that is
    /// done in it later.
    ///
    /// # Errors
    /// When the record cannot be read; the next call goes on behind it.
    pub fn take(&mut self) -> Option<Result<Event, DecodeError>> {
        self.ring.next().map(|record| decode(&record))
    }
}

/// The hierarchy that disk I/O is charged in, from the text of `/proc/cgroups`: 0 is cgroup v2.
///
/// # Errors
/// When no line names `blkio`: the kernel has no I/O controller.
pub fn io_hierarchy(cgroups: &str) -> io::Result<u16> {
    cgroups
        .lines()
        .find_map(|line| {
            let mut fields = line.split_whitespace();
            (fields.next()? == "blkio").then(|| fields.next()?.parse().ok())?
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no line of it names blkio"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(operation: u32, name: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(77u64.to_ne_bytes());
        bytes.extend(1u64.to_ne_bytes());
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(operation.to_ne_bytes());
        bytes.extend(name);
        bytes
    }

    #[test]
    fn a_new_cgroup_has_parent_and_name() {
        assert_eq!(
            decode(&record(CGROUP_MKDIR, b"pod-a\0")),
            Ok(Event {
                hierarchy: 7,
                id: 77,
                change: Change::Named {
                    parent_id: 1,
                    name: "pod-a".to_owned()
                }
            })
        );
    }

    #[test]
    fn a_record_of_the_classic_tracepoint_has_a_path() {
        let mut record = record(CGROUP_MKDIR, b"/kubepods/pod-a\0");
        record[8..16].fill(0);
        assert_eq!(
            decode(&record).map(|event| event.change),
            Ok(Change::Named {
                parent_id: 0,
                name: "kubepods/pod-a".to_owned()
            })
        );
    }

    #[test]
    fn a_removed_cgroup_needs_no_name() {
        assert_eq!(
            decode(&record(CGROUP_RMDIR, b"")).map(|event| event.change),
            Ok(Change::Removed)
        );
    }

    #[test]
    fn short_and_unknown_records_are_errors() {
        assert_eq!(
            decode(&[0; 23]),
            Err(DecodeError {
                bytes: 23,
                operation: None
            })
        );
        assert_eq!(
            decode(&record(9, b"x\0")),
            Err(DecodeError {
                bytes: 26,
                operation: Some(9)
            })
        );
    }

    #[test]
    fn the_io_hierarchy_is_blkios() {
        let text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nblkio\t7\t1\t1\n";
        assert_eq!(io_hierarchy(text).ok(), Some(7));
        assert_eq!(io_hierarchy("cpu 1 1 1\n").ok(), None);
    }
}
