//! Sentry.
#![forbid(unsafe_code)]

// Nothing uses it until the agent is put together.
#[allow(dead_code)]
pub mod expose;

fn main() {}
