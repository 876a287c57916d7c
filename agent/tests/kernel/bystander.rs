//! Events that interrupted a process that has nothing to do with them.
//!
//! Requests complete and packets arrive in softirq, on top of whatever the CPU was doing. The kernels of some virtual
//! machines run no eBPF program on top of the processes that they hide from their guest, so no agent can hear of what happens
//! there, a few in a hundred thousand. Only an event that tracefs saw on top of a bystander is ever forgiven; elsewhere
//! none is missing.

use sentry_bench::sandbox::LoopDevice;
use std::fs;
use std::path::{Path, PathBuf};

/// Attempts that may each be spoilt by a bystander.
pub(crate) const ATTEMPTS: usize = 10;

/// Watches an event through a tracing instance of its own. Sees nothing where tracefs is not mounted.
pub(crate) struct Bystanders(Option<PathBuf>);

impl Bystanders {
    /// Watches the completions of a device.
    pub(crate) fn of_device(device: &LoopDevice) -> Self {
        let (major, minor) = device.number().unwrap();
        let number = major << 20 | minor;
        Self::watch("block/block_rq_complete", &format!("dev == {number}"))
    }

    /// Watches the completions of all devices.
    pub(crate) fn of_devices() -> Self {
        Self::watch("block/block_rq_complete", "nr_sector >= 0")
    }

    /// Watches all ends of handshakes but those with a port of these.
    pub(crate) fn of_handshakes_but(ports: impl Iterator<Item = u16>) -> Self {
        let others = ports.map(|port| format!(" && sport != {port} && dport != {port}"));
        let others = others.collect::<Vec<_>>().concat();
        let filter = format!("(oldstate == 2 || oldstate == 3){others}");
        Self::watch("sock/inet_sock_set_state", &filter)
    }

    /// Watches the handshakes of clients with a port.
    pub(crate) fn of_port(port: u16) -> Self {
        let filter = format!("dport == {port} && newstate == 1");
        Self::watch("sock/inet_sock_set_state", &filter)
    }

    fn watch(event: &str, filter: &str) -> Self {
        let name = format!("sentry-{}", std::process::id());
        let instance = Path::new("/sys/kernel/tracing/instances").join(name);
        if fs::create_dir(&instance).is_err() {
            return Self(None);
        }
        let watch = Self(Some(instance.clone()));
        // Those who handle events by trade, the idle CPU, and the load itself.
        let expected = ["ksoftirqd*", "kworker*", "swapper*", "load"]
            .map(|name| format!(" && !(COMM ~ \"{name}\")"))
            .concat();
        let event = instance.join("events").join(event);
        fs::write(event.join("filter"), format!("({filter}){expected}")).unwrap();
        fs::write(event.join("enable"), "1").unwrap();
        watch
    }

    /// Events that interrupted a bystander so far.
    pub(crate) fn count(&self) -> u64 {
        let Some(instance) = &self.0 else {
            return 0;
        };
        let cpus = fs::read_dir(instance.join("per_cpu")).unwrap().flatten();
        let texts = cpus.map(|cpu| fs::read_to_string(cpu.path().join("stats")).unwrap());
        let number = |text: &str, key| {
            let value = text.lines().find_map(|line| line.strip_prefix(key));
            value.unwrap().trim().parse::<u64>().unwrap()
        };
        texts
            .map(|text| number(&text, "entries:") + number(&text, "overrun:"))
            .sum()
    }
}

impl Drop for Bystanders {
    fn drop(&mut self) {
        if let Some(instance) = &self.0 {
            let _ = fs::remove_dir(instance);
        }
    }
}

/// Does and compares something until it is exact, and fails as soon as it is not without a bystander. What is compared
/// must be new each time.
pub(crate) fn undisturbed<T: PartialEq + std::fmt::Debug>(
    device: &LoopDevice,
    mut attempt: impl FnMut() -> (T, T),
) {
    for _ in 0..ATTEMPTS {
        let bystanders = Bystanders::of_device(device);
        let (found, expected) = attempt();
        if found == expected {
            return;
        }
        let count = bystanders.count();
        let spoilt = format!("{found:?} instead of {expected:?}, {count} bystanders");
        assert!(count > 0, "{spoilt}");
        println!("once more: {spoilt}");
    }
    panic!("always spoilt by bystanders");
}
