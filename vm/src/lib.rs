//! Real kernels for the tests: fetched as Debian packages, booted under QEMU, and asked by a guest's init.
#![forbid(unsafe_code)]

pub mod apt;
pub mod archive;
pub mod console;
pub mod guest;
pub mod image;
pub mod kernel;
pub mod list;
pub mod machine;
pub mod plan;
pub mod table;
