//! The records of classic tracepoints: where tracefs says their fields are.

use std::{fs, io, path::Path};

use crate::spec::{Reason, Record, Refusal, Verdict};

/// Where tracefs may be mounted: the same two places in which Aya looks.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// A field of a record: `struct record_field` of the programs.
pub(crate) type Field = [u32; 2];

/// The variables that tell the programs where a record's fields are.
///
/// # Errors
/// When tracefs is not mounted or may not be read, or the kernel has no such event or field.
pub(crate) fn fields(record: &Record) -> Result<Vec<(&'static str, Field)>, Refusal> {
    let event = Path::new("events").join(record.category).join(record.event);
    let path = tracefs()?.join(event).join("format");
    let text = fs::read_to_string(&path).map_err(|error| unreadable(&path, record, &error))?;
    let field = |&(variable, name): &(&'static str, &str)| {
        parse_field(&text, name)
            .map(|field| (variable, field))
            .ok_or_else(|| Refusal {
                verdict: Verdict::Unsupported,
                reason: Reason::NoHook,
                detail: format!("{} describes no field {name}", path.display()),
            })
    };
    record.fields.iter().map(field).collect()
}

/// Where tracefs is mounted. An empty folder is where it could be.
fn tracefs() -> Result<&'static Path, Refusal> {
    let mut denied = None;
    for mount in TRACEFS.map(Path::new) {
        match fs::read_dir(mount).map(Iterator::count) {
            Ok(1..) => return Ok(mount),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = Some(mount),
            _ => {}
        }
    }
    Err(match denied {
        Some(mount) => Refusal {
            verdict: Verdict::Failed,
            reason: Reason::NoPermission,
            detail: format!(
                "{} may not be read: that takes root or CAP_DAC_READ_SEARCH",
                mount.display()
            ),
        },
        None => Refusal {
            verdict: Verdict::Failed,
            reason: Reason::NoTracefs,
            detail: format!(
                "tracefs is not mounted: `mount -t tracefs tracefs {}`",
                TRACEFS[0]
            ),
        },
    })
}

fn unreadable(path: &Path, record: &Record, error: &io::Error) -> Refusal {
    let (verdict, reason, detail) = match error.kind() {
        io::ErrorKind::NotFound => (
            Verdict::Unsupported,
            Reason::NoHook,
            format!(
                "this kernel has no tracepoint {}:{}",
                record.category, record.event
            ),
        ),
        io::ErrorKind::PermissionDenied => (
            Verdict::Failed,
            Reason::NoPermission,
            format!("{}: {error}", path.display()),
        ),
        _ => (
            Verdict::Failed,
            Reason::AttachError,
            format!("{}: {error}", path.display()),
        ),
    };
    Refusal {
        verdict,
        reason,
        detail,
    }
}

/// Offset and size in bytes of a field, from the text of an event's `format`. A line of it is
/// `field:char rwbs[8]; offset:32; size:8; signed:0;`, with tabs.
fn parse_field(format: &str, name: &str) -> Option<Field> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().strip_prefix("field:")?.split(';');
        // The length of an array stands behind its name, or, where it varies, behind its type.
        let declared = parts.next()?.split_whitespace().last()?.split('[').next()?;
        if declared != name {
            return None;
        }
        let number = |part: Option<&str>, key| part?.trim().strip_prefix(key)?.parse().ok();
        Some([
            number(parts.next(), "offset:")?,
            number(parts.next(), "size:")?,
        ])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: block_rq_complete
ID: 1234
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:const void * skaddr;	offset:24;	size:8;	signed:0;
	field:char rwbs[8];	offset:32;	size:8;	signed:0;
	field:__data_loc char[] cmd;	offset:40;	size:4;	signed:0;

print fmt: \"%d,%d %s\", ((unsigned int) ((REC->dev) >> 20)), REC->sector
";

    #[test]
    fn fields_have_offset_and_size() {
        assert_eq!(parse_field(FORMAT, "dev"), Some([8, 4]));
        assert_eq!(parse_field(FORMAT, "sector"), Some([16, 8]));
        assert_eq!(parse_field(FORMAT, "skaddr"), Some([24, 8]));
        assert_eq!(parse_field(FORMAT, "rwbs"), Some([32, 8]));
        assert_eq!(parse_field(FORMAT, "cmd"), Some([40, 4]));
        assert_eq!(parse_field(FORMAT, "nr_sector"), None);
        assert_eq!(parse_field(FORMAT, "pid"), None);
    }
}
