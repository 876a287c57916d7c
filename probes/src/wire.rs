//! The types and numbers that the C programs and Rust share, made from the `wire.h` headers.
#![allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]

include!(concat!(env!("OUT_DIR"), "/wire.rs"));
