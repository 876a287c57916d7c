//! The eBPF probes of Sentry.
