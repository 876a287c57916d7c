//! Any path of a cgroup keeps what `agent/src/enrich/container/invariants.rs` asserts.

#![no_main]

#[path = "../../agent/src/enrich/container.rs"]
mod container;
#[path = "../../agent/src/enrich/container/invariants.rs"]
mod invariants;

use container::{Kind, Level, Runtime, is_id, levels};

libfuzzer_sys::fuzz_target!(|path: &str| {
    invariants::hold(path);
});
