//! The probe's own object: its maps, its programs, and where they are attached.
//!
//! It is loaded when the first file with CUDA functions is found, so a host without CUDA pays
//! nothing. Aya loads no program for multi-uprobe links and reads the kernel's types for every
//! object, which these programs do not need and which takes 25 ms: so the system calls are made
//! here, on what Aya parses and relocates.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString},
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::Path,
    thread,
};

use aya::maps::{ArrayOfMaps, Map, MapData};
use aya_obj::{
    Object,
    generated::{
        BPF_ALU64, BPF_CALL, BPF_EXIT, BPF_F_NO_PREALLOC, BPF_JMP, BPF_K, BPF_MOV, bpf_attach_type,
        bpf_attr, bpf_cmd, bpf_insn, bpf_map_type, bpf_prog_type,
    },
};

use super::functions::{Function, Kind};
use crate::{RunStats, hook::chain, load, pool::map_memory_bytes};

/// The object, aligned as its parser wants it.
pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gpu.bpf.o"));

/// The one whose programs tell of single events, too.
static TRACE_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/gpu_trace.bpf.o"));

const ENQUEUE: &str = "gpu_enqueue";
const ENTER: &str = "gpu_enter";
const RETURN: &str = "gpu_return";
const ORDER: &str = "gpu_order";

/// The programs that end a process' state, and their raw tracepoints.
const ENDS: [(&str, &CStr); 2] = [
    ("gpu_exit", c"sched_process_exit"),
    ("gpu_exec", c"sched_process_exec"),
];

/// Tables that take memory by the entry where the kernel allocates for tracing programs as it
/// should.
const SPARSE: [&str; 3] = ["gpu_threads", "gpu_tokens", "gpu_allocations"];

/// Programs that are loaded at the same time.
const AT_ONCE: usize = 8;

/// `bpf_get_attach_cookie`
const GET_ATTACH_COOKIE: i32 = 174;

/// How programs are attached to functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// One link for all functions of a file that get the same program. Since 6.6.
    Multi,
    /// A perf event for each function, with a cookie. Since 5.15.
    Cookie,
    /// A perf event and a copy of the program for each function.
    Single,
}

impl Means {
    pub(super) const ALL: [Self; 3] = [Self::Multi, Self::Cookie, Self::Single];

    /// The hook's name in flags and verdicts.
    pub(super) fn hook(self) -> &'static str {
        match self {
            Self::Multi => "uprobe_multi",
            Self::Cookie => "uprobe_cookie",
            Self::Single => "uprobe",
        }
    }

    /// Why it cannot be used here, found out with a program that does nothing; `None` where it can.
    pub(super) fn lack(self) -> Option<String> {
        let exit = || instruction(BPF_JMP | BPF_EXIT, 0);
        let zero = || instruction(BPF_ALU64 | BPF_MOV | BPF_K, 0);
        let kind = bpf_prog_type::BPF_PROG_TYPE_KPROBE;
        let (outcome, since) = match self {
            // A folder is refused as such only where such links are known.
            Self::Multi => {
                let attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
                let program = load_program("gpu_try", kind, attach_type, &[zero(), exit()]);
                let place = Place {
                    offset: 0,
                    function: Function {
                        kind: Kind::Order,
                        cookie: 0,
                    },
                };
                let link =
                    program.and_then(|program| link_multi(program.as_fd(), c"/", &[place], false));
                let known = |error: &io::Error| error.raw_os_error() == Some(libc::EBADF);
                let outcome = link.map(drop);
                let outcome = if outcome.as_ref().is_err_and(known) {
                    Ok(())
                } else {
                    outcome
                };
                (outcome, "no links of many uprobes (6.6)")
            }
            Self::Cookie => {
                let call = instruction(BPF_JMP | BPF_CALL, GET_ATTACH_COOKIE);
                let program = load_program("gpu_try", kind, 0, &[call, zero(), exit()]);
                let outcome = program.and_then(|_| uprobe_kind());
                (outcome.map(drop), "no cookies of uprobes (5.15)")
            }
            Self::Single => (uprobe_kind().map(drop), "no uprobes"),
        };
        let error = outcome.err()?;
        let permitted = error.kind() != io::ErrorKind::PermissionDenied;
        Some(if permitted {
            format!("this kernel has {since}")
        } else {
            error.to_string()
        })
    }
}

fn instruction(code: u32, imm: i32) -> bpf_insn {
    // SAFETY: plain integers, for which zeroes are valid.
    let mut instruction: bpf_insn = unsafe { std::mem::zeroed() };
    instruction.code = code as u8;
    instruction.imm = imm;
    instruction
}

/// A place in a file and what is done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// From the start of the file, in bytes.
    pub(super) offset: u64,
    pub(super) function: Function,
}

/// The kernel refused something.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub(super) struct Refused {
    what: String,
    pub(super) source: io::Error,
}

fn refused(what: impl Into<String>) -> impl FnOnce(io::Error) -> Refused {
    let what = what.into();
    move |source| Refused { what, source }
}

/// What holds programs at the functions of one file; dropping it lets go of them.
#[derive(Debug)]
pub(super) struct Attachment {
    links: Vec<OwnedFd>,
}

impl Attachment {
    /// Lets go. The kernel takes some 60 ms for each perf event, 12 s for all of a file, so that is
    /// done by a thread of its own: until it has ended the programs may still run.
    pub(super) fn let_go(self) -> Option<thread::JoinHandle<()>> {
        if self.links.len() <= 8 {
            return None;
        }
        // Where no thread can be made, the links are dropped here.
        let thread = thread::Builder::new().name("gpu-detach".to_owned());
        thread.spawn(move || drop(self)).ok()
    }
}

/// The maps and programs in the kernel.
pub(super) struct Programs {
    pub(super) means: Means,
    instructions: BTreeMap<String, Vec<bpf_insn>>,
    maps: BTreeMap<String, MapData>,
    /// By name; for [`Means::Single`] by name and cookie.
    loaded: BTreeMap<(String, u32), OwnedFd>,
    ends: Vec<OwnedFd>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Programs").field(&self.means).finish()
    }
}

impl Programs {
    /// Loads all that can be loaded before a function is known. With rings, by CPU, the programs send events there.
    pub(super) fn load(means: Means, rings: Option<&[MapData]>) -> Result<Self, Refused> {
        let parse = |error: &dyn std::error::Error| Refused {
            what: "the object".to_owned(),
            source: io::Error::other(chain(error)),
        };
        let object = if rings.is_some() {
            TRACE_OBJECT
        } else {
            OBJECT
        };
        let mut object = Object::parse(object).map_err(|error| parse(&error))?;
        let mut maps = BTreeMap::new();
        for (name, map) in &object.maps {
            if map.map_type() == bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32 {
                let slots =
                    slots_of(rings.unwrap_or_default()).map_err(refused(format!("map {name}")))?;
                maps.insert(name.clone(), slots);
                continue;
            }
            let mut flags = map.map_flags();
            if means == Means::Multi && SPARSE.contains(&name.as_str()) {
                flags |= BPF_F_NO_PREALLOC;
            }
            // Made anew, for these have no types of keys and values.
            let made = aya_obj::Map::new_from_params(
                map.map_type(),
                map.key_size(),
                map.value_size(),
                map.max_entries(),
                flags,
            );
            let made = MapData::create(made, name, None).map_err(|error| Refused {
                what: format!("map {name}"),
                source: io::Error::other(chain(&error)),
            })?;
            maps.insert(name.clone(), made);
        }
        let text = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        let parts: Vec<(String, i32, aya_obj::Map)> = object
            .maps
            .iter()
            .map(|(name, map)| {
                let fd = maps[name].fd().as_fd().as_raw_fd();
                (name.clone(), fd, map.clone())
            })
            .collect();
        object
            .relocate_maps(
                parts
                    .iter()
                    .map(|(name, fd, map)| (name.as_str(), *fd, map)),
                &text,
            )
            .map_err(|error| parse(&error))?;
        object
            .relocate_calls(&text)
            .map_err(|error| parse(&error))?;
        let instructions: BTreeMap<String, Vec<bpf_insn>> = object
            .programs
            .iter()
            .filter_map(|(name, program)| {
                let function = object.functions.get(&program.function_key())?;
                Some((name.clone(), function.instructions.clone()))
            })
            .collect();
        let mut programs = Self {
            means,
            instructions,
            maps,
            loaded: BTreeMap::new(),
            ends: Vec::new(),
        };
        let mut names: Vec<&str> = ENDS.iter().map(|(name, _)| *name).collect();
        if means != Means::Single {
            names.extend([ENQUEUE, ENTER, RETURN, ORDER]);
        }
        programs.provide(names.into_iter().map(|name| (name, 0)))?;
        Ok(programs)
    }

    /// Sees processes end, unless it does already.
    fn watch_ends(&mut self) -> Result<(), Refused> {
        if self.ends.is_empty() {
            let links = ENDS.iter().map(|(name, point)| {
                open_raw_tracepoint(point, self.program(name, 0)?).map_err(refused(*name))
            });
            self.ends = links.collect::<Result<_, _>>()?;
        }
        Ok(())
    }

    /// Sees processes end no longer: there is none whose end matters.
    pub(super) fn forget_ends(&mut self) {
        self.ends.clear();
    }

    /// Loads what is not loaded yet, several at a time: the verifier takes 1 to 15 ms for each, and
    /// a program may run for no longer than a few of them.
    fn provide<'n>(&mut self, keys: impl Iterator<Item = (&'n str, u32)>) -> Result<(), Refused> {
        let keys: BTreeSet<(&str, u32)> = keys
            .filter(|(name, cookie)| !self.loaded.contains_key(&((*name).to_owned(), *cookie)))
            .collect();
        let keys: Vec<(&str, u32)> = keys.into_iter().collect();
        for some in keys.chunks(AT_ONCE) {
            let this = &*self;
            let loaded: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = some
                    .iter()
                    .map(|(name, cookie)| scope.spawn(|| this.load_one(name, *cookie)))
                    .collect();
                threads
                    .into_iter()
                    .map(thread::ScopedJoinHandle::join)
                    .collect()
            });
            for ((name, cookie), program) in some.iter().zip(loaded) {
                let program =
                    program.unwrap_or_else(|_| Err(io::Error::other("its thread has ended")));
                let program = program.map_err(refused(*name))?;
                self.loaded.insert(((*name).to_owned(), *cookie), program);
            }
        }
        Ok(())
    }

    /// Loads a program; for [`Means::Single`] with the cookie in it.
    fn load_one(&self, name: &str, cookie: u32) -> io::Result<OwnedFd> {
        let ends = ENDS.iter().any(|(end, _)| *end == name);
        let mut instructions = self
            .instructions
            .get(name)
            .ok_or(io::ErrorKind::NotFound)?
            .clone();
        if self.means == Means::Single && !ends {
            write_cookie(&mut instructions, cookie);
        }
        let (kind, attach_type) = match self.means {
            _ if ends => (bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT, 0),
            Means::Multi => (
                bpf_prog_type::BPF_PROG_TYPE_KPROBE,
                bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32,
            ),
            Means::Cookie | Means::Single => (bpf_prog_type::BPF_PROG_TYPE_KPROBE, 0),
        };
        load_program(name, kind, attach_type, &instructions)
    }

    /// A program that is loaded.
    fn program(&self, name: &str, cookie: u32) -> Result<BorrowedFd<'_>, Refused> {
        self.loaded
            .get(&(name.to_owned(), cookie))
            .map(AsFd::as_fd)
            .ok_or_else(|| refused(name)(io::ErrorKind::NotFound.into()))
    }

    /// Attaches to functions of a file: to all of them, or to none.
    pub(super) fn attach(&mut self, path: &Path, places: &[Place]) -> Result<Attachment, Refused> {
        self.watch_ends()?;
        let mut links = Vec::new();
        let path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| refused("the path")(io::ErrorKind::InvalidInput.into()))?;
        let single = self.means == Means::Single;
        // Returns first: an entry without its return would look like a call that never ends.
        let parts = [
            (RETURN, Kind::Call, true),
            (ENTER, Kind::Call, false),
            (ORDER, Kind::Order, false),
            (ENQUEUE, Kind::Enqueue, false),
        ];
        if single {
            self.provide(parts.into_iter().flat_map(|(name, kind, _)| {
                let places = places
                    .iter()
                    .filter(move |place| place.function.kind == kind);
                places.map(move |place| (name, place.function.cookie))
            }))?;
        }
        for (name, kind, at_return) in parts {
            let places: Vec<Place> = places
                .iter()
                .filter(|place| place.function.kind == kind)
                .copied()
                .collect();
            if places.is_empty() {
                continue;
            }
            if self.means == Means::Multi {
                let program = self.program(name, 0)?;
                let link = link_multi(program, &path, &places, at_return).map_err(refused(name))?;
                links.push(link);
                continue;
            }
            for place in &places {
                let cookie = place.function.cookie;
                let program = self.program(name, if single { cookie } else { 0 })?;
                let event = open_uprobe(&path, place.offset, at_return).map_err(refused(name))?;
                if single {
                    enable_with(&event, program).map_err(refused(name))?;
                } else {
                    let link = link_perf(program, &event, cookie).map_err(refused(name))?;
                    links.push(link);
                }
                links.push(event);
            }
        }
        Ok(Attachment { links })
    }

    /// Memory of each map in bytes.
    pub(super) fn map_sizes(&self) -> Vec<(String, u64)> {
        self.maps
            .iter()
            .filter_map(|(name, map)| Some((name.clone(), map_memory_bytes(map.fd().as_fd())?)))
            .collect()
    }

    /// Takes a map out, to be used from elsewhere. The programs keep it in the kernel.
    pub(super) fn take_map(&mut self, name: &str) -> Option<MapData> {
        self.maps.remove(name)
    }

    /// See [`crate::Programs::run_stats`].
    pub(super) fn run_stats(&self) -> Vec<RunStats> {
        let mut sums: BTreeMap<&str, RunStats> = BTreeMap::new();
        for ((name, _), fd) in &self.loaded {
            let Some(stats) = load::run_stats_of(name, fd.as_raw_fd()) else {
                continue;
            };
            sums.entry(name)
                .and_modify(|sum| {
                    sum.runs += stats.runs;
                    sum.run_time_ns += stats.run_time_ns;
                    sum.misses += stats.misses;
                })
                .or_insert(stats);
        }
        sums.into_values().collect()
    }
}

/// Writes the cookie in place of the call that asks for it: two instructions of one size.
fn write_cookie(instructions: &mut [bpf_insn], cookie: u32) {
    for instruction in instructions {
        let call = u32::from(instruction.code) == BPF_JMP | BPF_CALL;
        if call && instruction.src_reg() == 0 && instruction.imm == GET_ATTACH_COOKIE {
            instruction.code = (BPF_ALU64 | BPF_MOV | BPF_K) as u8;
            instruction.set_dst_reg(0);
            // Cookies are below 2^31: the functions' own test holds them to it.
            instruction.imm = cookie as i32;
        }
    }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: attr is a whole, initialised bpf_attr, and what it points to outlives the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    owned(fd)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for this call, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn empty_attr() -> bpf_attr {
    // SAFETY: a union of plain integers, for which zeroes are valid and mean "not given".
    unsafe { std::mem::zeroed() }
}

/// An array of these maps, which are of one kind.
fn slots_of(inner: &[MapData]) -> io::Result<MapData> {
    let first = inner.first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut attr = empty_attr();
    // SAFETY: a field of a union that is zero all over; all of it is plain integers.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    create.key_size = size_of::<u32>() as u32;
    create.value_size = size_of::<u32>() as u32;
    create.max_entries = inner.len() as u32;
    create.inner_map_fd = first.fd().as_fd().as_raw_fd() as u32;
    let slots = bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr)?;
    let other = |error| io::Error::other(chain(&error));
    let mut slots = Map::ArrayOfMaps(MapData::from_fd(slots).map_err(other)?);
    let mut array = ArrayOfMaps::<_, MapData>::try_from(&mut slots).map_err(other)?;
    for (slot, map) in (0..).zip(inner) {
        array.set(slot, map, 0).map_err(other)?;
    }
    match slots {
        Map::ArrayOfMaps(slots) => Ok(slots),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn load_program(
    name: &str,
    kind: bpf_prog_type,
    attach_type: u32,
    instructions: &[bpf_insn],
) -> io::Result<OwnedFd> {
    let try_with = |log: &mut [u8]| {
        let mut attr = empty_attr();
        // SAFETY: a field of a union that is zero all over; all of it is plain integers.
        let load = unsafe { &mut attr.__bindgen_anon_3 };
        load.prog_type = kind as u32;
        load.expected_attach_type = attach_type;
        load.insns = instructions.as_ptr() as u64;
        load.insn_cnt = instructions.len() as u32;
        load.license = c"Dual BSD/GPL".as_ptr() as u64;
        for (to, from) in load.prog_name.iter_mut().zip(name.bytes().take(15)) {
            *to = from as libc::c_char;
        }
        if !log.is_empty() {
            load.log_level = 1;
            load.log_buf = log.as_mut_ptr() as u64;
            load.log_size = log.len() as u32;
        }
        bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)
    };
    try_with(&mut []).map_err(|error| {
        // Once more, to learn why: the verifier's last words.
        let mut log = vec![0; 1 << 20];
        match try_with(&mut log) {
            Ok(_) => error,
            Err(error) => {
                let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
                let text = String::from_utf8_lossy(&log[..end]);
                let mut lines: Vec<&str> = text.lines().rev().take(3).collect();
                lines.reverse();
                // Of no kind, for the verifier's "permission" is none that can be given.
                if lines.is_empty() {
                    error
                } else {
                    io::Error::other(format!("{error}: {}", lines.join("; ")))
                }
            }
        }
    })
}

fn open_raw_tracepoint(point: &CStr, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.raw_tracepoint.name = point.as_ptr() as u64;
    attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)
}

/// `BPF_F_UPROBE_MULTI_RETURN`
const MULTI_RETURN: u32 = 1;

fn link_multi(
    program: BorrowedFd<'_>,
    path: &CStr,
    places: &[Place],
    at_return: bool,
) -> io::Result<OwnedFd> {
    let offsets: Vec<u64> = places.iter().map(|place| place.offset).collect();
    let cookies: Vec<u64> = places
        .iter()
        .map(|place| u64::from(place.function.cookie))
        .collect();
    let mut attr = empty_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.attach_type = bpf_attach_type::BPF_TRACE_UPROBE_MULTI as u32;
    // SAFETY: a field of a union that is zero all over; all of it is plain integers.
    let multi = unsafe { &mut attr.link_create.__bindgen_anon_3.uprobe_multi };
    multi.path = path.as_ptr() as u64;
    multi.offsets = offsets.as_ptr() as u64;
    multi.cookies = cookies.as_ptr() as u64;
    multi.cnt = places.len() as u32;
    multi.flags = if at_return { MULTI_RETURN } else { 0 };
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

fn link_perf(program: BorrowedFd<'_>, event: &OwnedFd, cookie: u32) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_fd = event.as_raw_fd() as u32;
    attr.link_create.attach_type = bpf_attach_type::BPF_PERF_EVENT as u32;
    attr.link_create.__bindgen_anon_3.perf_event.bpf_cookie = u64::from(cookie);
    bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// `struct perf_event_attr` up to `config2`, as `include/uapi/linux/perf_event.h` has it.
#[repr(C)]
#[derive(Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    /// `uprobe_path`
    config1: u64,
    /// `probe_offset`
    config2: u64,
}

/// Where the kernel says what number its uprobes have among performance events.
const UPROBES: &str = "/sys/bus/event_source/devices/uprobe";

/// The number of a kind of events, and the bit of `config` that makes it a return.
fn uprobe_kind() -> io::Result<(u32, u64)> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, UPROBES);
    let kind = fs::read_to_string(format!("{UPROBES}/type"))?;
    let format = fs::read_to_string(format!("{UPROBES}/format/retprobe"))?;
    let bit = format.trim().strip_prefix("config:").ok_or_else(invalid)?;
    let bit: u32 = bit.parse().map_err(|_| invalid())?;
    Ok((
        kind.trim().parse().map_err(|_| invalid())?,
        1u64.checked_shl(bit).ok_or_else(invalid)?,
    ))
}

/// `PERF_FLAG_FD_CLOEXEC`
const FD_CLOEXEC: libc::c_ulong = 8;

fn open_uprobe(path: &CStr, offset: u64, at_return: bool) -> io::Result<OwnedFd> {
    let (kind, return_bit) = uprobe_kind()?;
    let attr = PerfEventAttr {
        kind,
        size: size_of::<PerfEventAttr>() as u32,
        config: if at_return { return_bit } else { 0 },
        config1: path.as_ptr() as u64,
        config2: offset,
        ..PerfEventAttr::default()
    };
    // SAFETY: attr is whole and says its size; the path outlives the call. Any CPU stands for all
    // of them where a uprobe has no task.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            -1,
            0,
            -1,
            FD_CLOEXEC,
        )
    };
    owned(fd)
}

/// `PERF_EVENT_IOC_ENABLE` and `PERF_EVENT_IOC_SET_BPF`
const IOC_ENABLE: libc::Ioctl = 0x2400;
const IOC_SET_BPF: libc::Ioctl = 0x4004_2408;

fn enable_with(event: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    for (request, value) in [(IOC_SET_BPF, program.as_raw_fd()), (IOC_ENABLE, 0)] {
        // SAFETY: both take a number and no pointer.
        if unsafe { libc::ioctl(event.as_raw_fd(), request, value) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_has_nothing_of_a_trace() {
        let maps = |object: &[u8]| -> BTreeSet<String> {
            let object = Object::parse(object).unwrap();
            object.maps.keys().cloned().collect()
        };
        let (counting, tracing) = (maps(OBJECT), maps(TRACE_OBJECT));
        let more: Vec<_> = tracing.difference(&counting).collect();
        assert_eq!(more, ["events", "gpu_asked", "gpu_cgroups", "gpu_lost"]);
        assert!(counting.is_subset(&tracing));
    }
}
