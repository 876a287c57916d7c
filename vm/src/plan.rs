//! What the guest's init is to do: the host writes it into the initramfs, the guest reads it.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the plan lies in the guest.
pub const PLAN: &str = "/plan.json";

/// Where the guest's copy of the kernel's types lies when they are hidden.
pub const BTF_COPY: &str = "/run/vmlinux.btf";

/// Serial numbers of the disks, by which the guest finds them.
pub const DISK: &str = "disk";
/// The throttled disk's serial number.
pub const SLOW_DISK: &str = "slow";

/// The port of the agent in the demo's guest, and on the host.
pub const DEMO_PORT: u16 = 9763;

/// The plan.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Modules to load, in this order.
    pub modules: Vec<PathBuf>,
    /// Mount the trees of version 1 instead of version 2's.
    pub cgroup_v1: bool,
    /// Hide the kernel's types.
    pub hide_btf: bool,
    /// The agent's program.
    pub sentry: PathBuf,
    /// The load generator.
    pub load: PathBuf,
    /// The folder with the programs on virtual GPUs.
    pub gpu: PathBuf,
    /// What then.
    pub task: Task,
}

/// What a guest is booted for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Run tests.
    Test {
        /// The test program.
        program: PathBuf,
        /// What the names of the tests to run have in them; none runs none.
        filters: Vec<String>,
        /// Tests to leave out.
        except: Vec<String>,
    },
    /// Serve and be busy until the end.
    Demo,
}

/// The line that an end of all work leaves on the console, with an exit code.
#[must_use]
pub fn end_line(code: i32) -> String {
    format!("{END} {code}")
}

/// How that line begins.
pub const END: &str = "sentry-vm: end";
/// How a line begins that carries what `sentry check` says, as JSON.
pub const CHECK: &str = "sentry-vm: check";
/// How a line begins that tells of a step that went wrong.
pub const FAILED: &str = "sentry-vm: failed:";
/// How a line begins that the tests print for each probe and hook.
pub const CELL: &str = "cell {";
