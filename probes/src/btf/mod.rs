//! The types that programs are fitted to: the kernel's own, or those of a file.

use std::{fs::File, io::Read, path::Path};

use aya::{Btf, Endianness};

use crate::{
    hook::chain,
    spec::{Hook, Program},
};

/// Where the kernel shows its own types.
pub(crate) const OWN: &str = "/sys/kernel/btf/vmlinux";

/// `include/uapi/linux/btf.h`
const MAGIC: u16 = 0xeb9f;

/// Whether the kernel shows types of its own, found out without parsing them all.
///
/// # Errors
/// Why not, for a person.
pub fn own_types() -> Result<(), String> {
    let mut magic = [0; 2];
    File::open(OWN)
        .and_then(|mut file| file.read_exact(&mut magic))
        .map_err(|error| format!("{OWN}: {error}"))?;
    if magic == MAGIC.to_ne_bytes() {
        Ok(())
    } else {
        Err(format!("{OWN} is no BTF"))
    }
}

/// Parses a file of types.
///
/// # Errors
/// When it cannot be read or is no BTF.
pub(crate) fn read(path: &Path) -> Result<Btf, String> {
    Btf::parse_file(path, Endianness::default()).map_err(|error| chain(&error))
}

/// Runs at each system call for a moment, to tell whether the types of a file fit this kernel.
pub(crate) static CHECK: [Program; 1] = [Program {
    name: "btf_check",
    hook: Hook::RawTracepoint("sys_enter"),
}];
