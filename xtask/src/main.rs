//! The code behind the Makefile.

fn main() {}
