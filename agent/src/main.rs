//! Sentry.
#![forbid(unsafe_code)]

#[allow(dead_code)]
mod config;

fn main() {}
