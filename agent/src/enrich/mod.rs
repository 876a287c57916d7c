//! Who did it: from the numbers of the kernel to names, and what the agent itself takes.

pub(crate) mod cgroup;
pub(crate) mod container;
pub(crate) mod device;
pub(crate) mod kubernetes;
pub(crate) mod names;
pub(crate) mod process;
pub(crate) mod runtime;
