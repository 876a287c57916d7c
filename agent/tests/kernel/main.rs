//! The agent on the running kernel, from outside: real events, and the exact numbers that `/metrics` must show.
//!
//! Other processes of the host connect and write as well, so a test looks at cgroups of its own. The tests share one
//! kernel and take turns.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(
    clippy::float_cmp,
    reason = "counts are whole numbers, however written"
)]

mod agent;
mod bystander;
mod churn;
mod collector;
mod config;
mod cuda;
mod dashboards;
mod disk;
mod exemplars;
mod exposition;
mod formats;
mod gpu;
mod home;
mod host;
mod http;
mod image;
mod kubernetes;
mod ladder;
mod lifecycle;
mod load;
mod node;
mod otlp;
mod overhead;
mod page;
mod privileges;
mod prometheus;
mod reload;
mod series;
mod storm;
mod tcp;
mod top;
mod trace;
mod web;
