//! Sentry.
#![forbid(unsafe_code)]

fn main() {}
