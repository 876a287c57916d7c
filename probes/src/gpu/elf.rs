//! What an executable or a library has that can be hooked: its functions and where in the file
//! their first instructions are.
//!
//! The files come out of containers, so nothing in them is believed: tables are read in pieces of
//! [`PIECE_BYTES`] and every number is held against the file's length.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

use object::{
    LittleEndian as LE,
    elf::{
        ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_AARCH64, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64,
        NT_GNU_BUILD_ID, PF_X, PN_XNUM, PT_LOAD, PT_NOTE, ProgramHeader64, SHN_UNDEF, SHN_XINDEX,
        SHT_DYNSYM, SHT_STRTAB, SHT_SYMTAB, STT_FUNC, SectionHeader64, Sym64,
    },
    pod::{self, Pod},
    read::elf::NoteIterator,
};

/// What nvcc calls the sections in which a program carries its GPU code.
const CUDA_SECTIONS: [&[u8]; 3] = [b".nv_fatbin", b".nvFatBinSegment", b"__nv_relfatbin"];

/// How much of a table is in memory at once.
const PIECE_BYTES: usize = 64 << 10;

/// Program headers, sections: real files have below a hundred. Functions found: hooks are some sixty.
const MOST_ENTRIES: u64 = 4096;

/// The largest table of names or symbols that is searched; those of the largest libraries of
/// `PyTorch` have some 100 MB.
const LARGEST_TABLE_BYTES: u64 = 512 << 20;

/// Build ids have 20 bytes, or 16; the kernel takes no more than 20.
const LONGEST_BUILD_ID_BYTES: usize = 64;

/// `endbr64`, with which functions begin that may be called through a pointer.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// A stack frame that is made and given up at once (`push rbp; mov rbp, rsp; pop rbp`), which
/// libcudart 12 and 13 have before the jump of `__cudaLaunchKernel` to `cudaLaunchKernel`.
const EMPTY_FRAME: [u8; 5] = [0x55, 0x48, 0x89, 0xe5, 0x5d];

/// `bti` in its four forms, its counterpart on aarch64.
const BTI: [u32; 4] = [0xd503_241f, 0xd503_245f, 0xd503_249f, 0xd503_24df];

/// The machine whose files this program can hook: its own.
const OWN_MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    EM_AARCH64
} else {
    EM_X86_64
};

/// A file whose functions cannot be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ElfError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It begins otherwise than ELF files do.
    #[error("it is no ELF file")]
    NoElf,
    /// It is of no use on this machine.
    #[error("it is no 64-bit executable or library for this machine")]
    Foreign,
    /// What is named lies outside the file or contradicts the rest.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// What is named is larger than that of any file that is known.
    #[error("{0}: more than is searched")]
    TooLarge(&'static str),
}

/// Which of a file's tables of symbols to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tables {
    /// `.dynsym`: what a library offers to others.
    Dynamic,
    /// `.symtab` too, which has what is linked statically, if it was not stripped.
    All,
}

/// A function in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function<'n> {
    /// One of the names asked for. Two names can have one address.
    pub(crate) name: &'n str,
    /// Where it begins, in bytes from the start of the file.
    pub(crate) offset: u64,
    /// Where to attach: past `endbr64`, which the kernel would single-step; else [`Self::offset`].
    pub(crate) body: u64,
    /// Whether the kernel single-steps the instruction at [`Self::body`], at some 10 us a call,
    /// where it emulates others.
    pub(crate) single_stepped: bool,
    /// Where in the file the function jumps to, if it does nothing else: it is another name for the
    /// one whose offset or body is there, and to hook both counts a call twice.
    pub(crate) leads_to: Option<u64>,
}

/// A part of the file that is mapped executable.
#[derive(Debug, Clone, Copy)]
struct Segment {
    address: u64,
    offset: u64,
    bytes: u64,
}

impl Segment {
    /// Where in the file an address is, and how many bytes of the segment are there.
    fn locate(&self, address: u64) -> Option<(u64, u64)> {
        let into = address.checked_sub(self.address)?;
        let left = self.bytes.checked_sub(into).filter(|left| *left > 0)?;
        Some((self.offset.checked_add(into)?, left))
    }
}

/// A range of the file in bytes.
#[derive(Debug, Clone, Copy)]
struct Span {
    offset: u64,
    bytes: u64,
}

/// A table of symbols and that of their names.
#[derive(Debug, Clone, Copy)]
struct SymbolTable {
    symbols: Span,
    names: Span,
    is_dynamic: bool,
}

/// An ELF file, of which only headers are in memory.
#[derive(Debug)]
pub(crate) struct Elf<R> {
    source: Source<R>,
    segments: Vec<Segment>,
    symbol_tables: Vec<SymbolTable>,
    has_cuda_code: bool,
    /// The GNU build id, which is the same for every copy of one build.
    pub(crate) build_id: Option<Vec<u8>>,
}

impl<R: Read + Seek> Elf<R> {
    /// Reads the headers of a file.
    ///
    /// # Errors
    /// When it cannot be read, is no ELF file for this machine or is damaged.
    pub(crate) fn read(source: R) -> Result<Self, ElfError> {
        let mut source = Source::new(source)?;
        let header = file_header(&mut source)?;
        let sections = section_headers(&mut source, &header)?;
        let programs = program_headers(&mut source, &header, sections.first())?;
        let segments = programs
            .iter()
            .filter(|program| {
                program.p_type.get(LE) == PT_LOAD && program.p_flags.get(LE) & PF_X != 0
            })
            .map(|program| Segment {
                address: program.p_vaddr.get(LE),
                offset: program.p_offset.get(LE),
                bytes: program.p_filesz.get(LE),
            })
            .collect();
        Ok(Self {
            segments,
            symbol_tables: symbol_tables(&sections)?,
            has_cuda_code: has_cuda_section(&mut source, &header, &sections)?,
            build_id: build_id(&mut source, &programs)?,
            source,
        })
    }

    /// Whether nvcc has put GPU code into it.
    pub(crate) fn has_cuda_code(&self) -> bool {
        self.has_cuda_code
    }

    /// The functions of these names that the file defines, each name once for each address, by
    /// name and offset. Functions that choose their code as they are linked (IFUNC) are none.
    ///
    /// A table is read at most once, and that of the symbols only if that of the names has one.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub(crate) fn functions<'n>(
        &mut self,
        tables: Tables,
        wanted: &[&'n str],
    ) -> Result<Vec<Function<'n>>, ElfError> {
        let mut found = Vec::new();
        for table in self.symbol_tables.clone() {
            if !table.is_dynamic && tables == Tables::Dynamic {
                continue;
            }
            let names = find_names(&mut self.source, table.names, wanted)?;
            if !names.is_empty() {
                find_symbols(&mut self.source, table.symbols, &names, &mut found)?;
            }
        }
        found.sort_unstable();
        found.dedup();
        let mut functions = Vec::with_capacity(found.len());
        for (name, address) in found {
            functions.extend(self.function(name, address)?);
        }
        Ok(functions)
    }

    fn function<'n>(
        &mut self,
        name: &'n str,
        address: u64,
    ) -> Result<Option<Function<'n>>, ElfError> {
        let Some((offset, left)) = self.locate(address) else {
            return Ok(None);
        };
        let mut code = [0; 16];
        let code = &mut code[..usize::try_from(left).unwrap_or(usize::MAX).min(16)];
        self.source.read(offset, code, "a function's code")?;
        let start = if OWN_MACHINE == EM_X86_64 {
            Start::of_x86_64(code)
        } else {
            Start::of_aarch64(code)
        };
        let target = start.jumps_by.and_then(|by| address.checked_add_signed(by));
        Ok(Some(Function {
            name,
            offset,
            body: offset + start.skip,
            single_stepped: start.single_stepped,
            leads_to: target.and_then(|target| Some(self.locate(target)?.0)),
        }))
    }

    fn locate(&self, address: u64) -> Option<(u64, u64)> {
        self.segments
            .iter()
            .find_map(|segment| segment.locate(address))
    }
}

fn file_header<R: Read + Seek>(source: &mut Source<R>) -> Result<FileHeader64<LE>, ElfError> {
    const IDENT: usize = size_of::<object::elf::Ident>();
    let mut ident = [0; IDENT];
    if source.length < IDENT as u64 {
        return Err(ElfError::NoElf);
    }
    source.read(0, &mut ident, "its header")?;
    if ident[..4] != ELFMAG {
        return Err(ElfError::NoElf);
    }
    if ident[4..6] != [ELFCLASS64, ELFDATA2LSB] {
        return Err(ElfError::Foreign);
    }
    let header = source
        .entries::<FileHeader64<LE>>(Span::of::<FileHeader64<LE>>(0, 1), "its header")?
        .swap_remove(0);
    let kind = header.e_type.get(LE);
    if header.e_machine.get(LE) != OWN_MACHINE || !matches!(kind, ET_EXEC | ET_DYN) {
        return Err(ElfError::Foreign);
    }
    Ok(header)
}

fn section_headers<R: Read + Seek>(
    source: &mut Source<R>,
    header: &FileHeader64<LE>,
) -> Result<Vec<SectionHeader64<LE>>, ElfError> {
    const WHAT: &str = "its section headers";
    let offset = header.e_shoff.get(LE);
    if offset == 0 {
        return Ok(Vec::new());
    }
    if usize::from(header.e_shentsize.get(LE)) != size_of::<SectionHeader64<LE>>() {
        return Err(ElfError::Damaged(WHAT));
    }
    // A number that is too large for the header stands in the first section.
    let count = match header.e_shnum.get(LE) {
        0 => source
            .entries::<SectionHeader64<LE>>(Span::of::<SectionHeader64<LE>>(offset, 1), WHAT)?[0]
            .sh_size
            .get(LE),
        count => u64::from(count),
    };
    if count > MOST_ENTRIES {
        return Err(ElfError::TooLarge(WHAT));
    }
    source.entries(Span::of::<SectionHeader64<LE>>(offset, count), WHAT)
}

fn program_headers<R: Read + Seek>(
    source: &mut Source<R>,
    header: &FileHeader64<LE>,
    first_section: Option<&SectionHeader64<LE>>,
) -> Result<Vec<ProgramHeader64<LE>>, ElfError> {
    const WHAT: &str = "its program headers";
    let count = match (header.e_phnum.get(LE), first_section) {
        (0, _) => return Ok(Vec::new()),
        (PN_XNUM, Some(section)) => u64::from(section.sh_info.get(LE)),
        (count, _) => u64::from(count),
    };
    if usize::from(header.e_phentsize.get(LE)) != size_of::<ProgramHeader64<LE>>() {
        return Err(ElfError::Damaged(WHAT));
    }
    if count > MOST_ENTRIES {
        return Err(ElfError::TooLarge(WHAT));
    }
    source.entries(
        Span::of::<ProgramHeader64<LE>>(header.e_phoff.get(LE), count),
        WHAT,
    )
}

fn symbol_tables(sections: &[SectionHeader64<LE>]) -> Result<Vec<SymbolTable>, ElfError> {
    const WHAT: &str = "its tables of symbols";
    let is_table =
        |section: &&SectionHeader64<LE>| matches!(section.sh_type.get(LE), SHT_DYNSYM | SHT_SYMTAB);
    let tables: Result<Vec<_>, _> = sections
        .iter()
        .filter(is_table)
        .map(|section| {
            let names = usize::try_from(section.sh_link.get(LE))
                .ok()
                .and_then(|link| sections.get(link))
                .filter(|names| names.sh_type.get(LE) == SHT_STRTAB)
                .ok_or(ElfError::Damaged(WHAT))?;
            if section.sh_entsize.get(LE) != size_of::<Sym64<LE>>() as u64 {
                return Err(ElfError::Damaged(WHAT));
            }
            Ok(SymbolTable {
                symbols: Span::section(section),
                names: Span::section(names),
                is_dynamic: section.sh_type.get(LE) == SHT_DYNSYM,
            })
        })
        .collect();
    match tables? {
        // A file has at most one of each kind; more would be searched for nothing.
        tables if tables.len() > 2 => Err(ElfError::Damaged(WHAT)),
        tables => Ok(tables),
    }
}

fn has_cuda_section<R: Read + Seek>(
    source: &mut Source<R>,
    header: &FileHeader64<LE>,
    sections: &[SectionHeader64<LE>],
) -> Result<bool, ElfError> {
    const WHAT: &str = "its sections' names";
    let index = match (header.e_shstrndx.get(LE), sections.first()) {
        (_, None) | (SHN_UNDEF, _) => return Ok(false),
        (SHN_XINDEX, Some(first)) => first.sh_link.get(LE),
        (index, _) => u32::from(index),
    };
    let names = usize::try_from(index)
        .ok()
        .and_then(|index| sections.get(index))
        .map(Span::section)
        .ok_or(ElfError::Damaged(WHAT))?;
    // Sections have short names and are few: a table beyond a piece is no compiler's.
    let bytes = names.bytes.min(PIECE_BYTES as u64);
    let words = source.words(Span { bytes, ..names }, WHAT)?;
    let names = pod::bytes_of_slice(&words);
    Ok(sections.iter().any(|section| {
        usize::try_from(section.sh_name.get(LE))
            .ok()
            .and_then(|start| names.get(start..)?.split(|byte| *byte == 0).next())
            .is_some_and(|name| CUDA_SECTIONS.contains(&name))
    }))
}

fn build_id<R: Read + Seek>(
    source: &mut Source<R>,
    programs: &[ProgramHeader64<LE>],
) -> Result<Option<Vec<u8>>, ElfError> {
    for program in programs {
        let bytes = program.p_filesz.get(LE);
        // Notes have some hundred bytes; what is much longer holds none for us.
        if program.p_type.get(LE) != PT_NOTE || bytes == 0 || bytes > PIECE_BYTES as u64 {
            continue;
        }
        let offset = program.p_offset.get(LE);
        let words = source.words(Span { offset, bytes }, "its notes")?;
        // Below PIECE_BYTES.
        #[allow(clippy::cast_possible_truncation)]
        let notes = &pod::bytes_of_slice(&words)[..bytes as usize];
        let align = program.p_align.get(LE);
        let Ok(mut notes) = NoteIterator::<FileHeader64<LE>>::new(LE, align, notes) else {
            continue;
        };
        // A note that makes no sense ends its segment.
        while let Ok(Some(note)) = notes.next() {
            let id = note.desc();
            if note.n_type(LE) == NT_GNU_BUILD_ID
                && note.name() == b"GNU"
                && (1..=LONGEST_BUILD_ID_BYTES).contains(&id.len())
            {
                return Ok(Some(id.to_vec()));
            }
        }
    }
    Ok(None)
}

/// Where in a table of names the wanted ones begin, ascending. Linkers let a name share the end of a
/// longer one, so each string is looked at from behind.
fn find_names<'n, R: Read + Seek>(
    source: &mut Source<R>,
    table: Span,
    wanted: &[&'n str],
) -> Result<Vec<(u64, &'n str)>, ElfError> {
    const WHAT: &str = "a table of names";
    if table.bytes > LARGEST_TABLE_BYTES {
        return Err(ElfError::TooLarge(WHAT));
    }
    let longest = wanted.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut found = Vec::new();
    // The end of the piece before, in which a name may have begun, and a piece.
    let mut text = Vec::new();
    let mut text_at = 0;
    let mut done = 0;
    while done < table.bytes {
        let carried = text.len();
        let length = (table.bytes - done).min(PIECE_BYTES as u64);
        // At most PIECE_BYTES.
        #[allow(clippy::cast_possible_truncation)]
        text.resize(carried + length as usize, 0);
        source.read(
            table
                .offset
                .checked_add(done)
                .ok_or(ElfError::Damaged(WHAT))?,
            &mut text[carried..],
            WHAT,
        )?;
        done += length;
        let ends = (carried..text.len()).filter(|index| text[*index] == 0);
        for end in ends {
            let matching = wanted
                .iter()
                .filter(|name| !name.is_empty() && text[..end].ends_with(name.as_bytes()));
            found.extend(matching.map(|name| (text_at + (end - name.len()) as u64, *name)));
            if found.len() as u64 > MOST_ENTRIES {
                return Err(ElfError::TooLarge(WHAT));
            }
        }
        let stale = text.len().saturating_sub(longest);
        text.drain(..stale);
        text_at += stale as u64;
    }
    found.sort_unstable();
    Ok(found)
}

/// Adds name and address of the functions that have one of the names.
fn find_symbols<'n, R: Read + Seek>(
    source: &mut Source<R>,
    table: Span,
    names: &[(u64, &'n str)],
    found: &mut Vec<(&'n str, u64)>,
) -> Result<(), ElfError> {
    const WHAT: &str = "a table of symbols";
    const SYMBOL_BYTES: u64 = size_of::<Sym64<LE>>() as u64;
    const PIECE: u64 = PIECE_BYTES as u64 / SYMBOL_BYTES;
    if table.bytes > LARGEST_TABLE_BYTES {
        return Err(ElfError::TooLarge(WHAT));
    }
    let count = table.bytes / SYMBOL_BYTES;
    let mut done = 0;
    while done < count {
        let offset = table.offset.checked_add(done * SYMBOL_BYTES);
        let piece = (count - done).min(PIECE);
        let span = Span::of::<Sym64<LE>>(offset.ok_or(ElfError::Damaged(WHAT))?, piece);
        for symbol in source.entries::<Sym64<LE>>(span, WHAT)? {
            if symbol.st_type() != STT_FUNC || symbol.st_shndx.get(LE) == SHN_UNDEF {
                continue;
            }
            let name = u64::from(symbol.st_name.get(LE));
            let Ok(index) = names.binary_search_by_key(&name, |(at, _)| *at) else {
                continue;
            };
            if found.len() as u64 >= MOST_ENTRIES {
                return Err(ElfError::TooLarge(WHAT));
            }
            found.push((names[index].1, symbol.st_value.get(LE)));
        }
        done += piece;
    }
    Ok(())
}

impl Span {
    /// The place of `count` entries, whose number has been bounded.
    fn of<T>(offset: u64, count: u64) -> Self {
        Self {
            offset,
            bytes: count.saturating_mul(size_of::<T>() as u64),
        }
    }

    fn section(section: &SectionHeader64<LE>) -> Self {
        Self {
            offset: section.sh_offset.get(LE),
            bytes: section.sh_size.get(LE),
        }
    }
}

/// How a function starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    /// Bytes of the landing pad that need not be single-stepped.
    skip: u64,
    single_stepped: bool,
    /// How far from the function's start it jumps without having done anything.
    jumps_by: Option<i64>,
}

impl Start {
    /// The kernel emulates pushes of a whole register, `nop`, relative jumps and calls
    /// (arch/x86/kernel/uprobes.c). The longer forms of `nop` (`0f 1f`) are among them only since
    /// 6.18, so they are none here, and `66 90` could not be probed at all before 6.2.
    fn of_x86_64(code: &[u8]) -> Self {
        let (skip, code) = match code.strip_prefix(&ENDBR64) {
            Some(rest) => (ENDBR64.len(), rest),
            None => (0, code),
        };
        let emulated = matches!(
            without_bnd(code),
            [0x50..=0x57 | 0x70..=0x7f | 0x90 | 0xe8 | 0xe9 | 0xeb, ..]
                | [0x41, 0x50..=0x57, ..]
                | [0x0f, 0x80..=0x8f, ..]
        );
        let jump = without_bnd(code.strip_prefix(&EMPTY_FRAME).unwrap_or(code));
        let by = match *jump {
            [0xeb, by, ..] => Some(2 + i64::from(by.cast_signed())),
            [0xe9, a, b, c, d, ..] => Some(5 + i64::from(i32::from_le_bytes([a, b, c, d]))),
            _ => None,
        };
        // At most 10.
        #[allow(clippy::cast_possible_wrap)]
        let before = (skip + code.len() - jump.len()) as i64;
        Self {
            skip: skip as u64,
            single_stepped: !emulated,
            jumps_by: by.map(|by| before + by),
        }
    }

    /// The kernel simulates what depends on the program counter, and `nop` since 6.13, and steps
    /// the rest, `bti` as well.
    fn of_aarch64(code: &[u8]) -> Self {
        let word = |index: usize| {
            let bytes = code.get(4 * index..4 * index + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let skip = word(0).is_some_and(|first| BTI.contains(&first));
        let first = word(usize::from(skip));
        let jump = first.filter(|first| first >> 26 == 0b00_0101);
        let skip = 4 * i64::from(skip);
        Self {
            skip: skip.cast_unsigned(),
            single_stepped: jump.is_none(),
            // A signed number of 26 bits, in instructions.
            jumps_by: jump.map(|jump| skip + (i64::from((jump << 6).cast_signed()) >> 4)),
        }
    }
}

/// Code without the prefix `bnd` of a jump or call, with which older compilers mark them.
fn without_bnd(code: &[u8]) -> &[u8] {
    match code {
        [0xf2, rest @ ..] if matches!(rest, [0xe8 | 0xe9 | 0xeb, ..]) => rest,
        _ => code,
    }
}

/// The bytes of a file.
#[derive(Debug)]
struct Source<R> {
    file: R,
    length: u64,
}

impl<R: Read + Seek> Source<R> {
    fn new(mut file: R) -> Result<Self, ElfError> {
        let length = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, length })
    }

    /// Fills `into` from a place in the file.
    fn read(&mut self, offset: u64, into: &mut [u8], what: &'static str) -> Result<(), ElfError> {
        let end = offset.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(ElfError::Damaged(what));
        }
        self.file.seek(SeekFrom::Start(offset))?;
        self.file
            .read_exact(into)
            .map_err(|error| match error.kind() {
                // It has become shorter.
                ErrorKind::UnexpectedEof => ElfError::Damaged(what),
                _ => ElfError::Io(error),
            })
    }

    /// Some bytes, with zeros up to a multiple of eight: a buffer that is aligned for every entry.
    /// Who calls it has bounded their number.
    fn words(&mut self, span: Span, what: &'static str) -> Result<Vec<u64>, ElfError> {
        let bytes = usize::try_from(span.bytes).map_err(|_| ElfError::TooLarge(what))?;
        let mut words = vec![0_u64; bytes.div_ceil(8)];
        let into = &mut pod::bytes_of_slice_mut(&mut words)[..bytes];
        self.read(span.offset, into, what)?;
        Ok(words)
    }

    fn entries<T: Pod>(&mut self, span: Span, what: &'static str) -> Result<Vec<T>, ElfError> {
        let words = self.words(span, what)?;
        let bytes = pod::bytes_of_slice(&words);
        pod::slice_from_bytes(bytes, bytes.len() / size_of::<T>())
            .map(|(entries, _)| entries.to_vec())
            .map_err(|()| ElfError::Damaged(what))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Cursor};

    use super::*;

    const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";

    #[cfg(target_arch = "x86_64")]
    std::arch::global_asm!(
        // Retained, though nothing refers to them.
        ".pushsection .text.gpu_elf_test, \"axR\"",
        ".type gpu_elf_test_pushes, @function",
        "gpu_elf_test_pushes:",
        "endbr64",
        "push rbp",
        "pop rbp",
        "ret",
        ".type gpu_elf_test_steps, @function",
        "gpu_elf_test_steps:",
        "sub rsp, 8",
        "add rsp, 8",
        "ret",
        ".type gpu_elf_test_alias, @function",
        "gpu_elf_test_alias:",
        "endbr64",
        "jmp gpu_elf_test_pushes",
        ".type gpu_elf_test_object, @object",
        "gpu_elf_test_object:",
        "nop",
        ".popsection",
        ".pushsection .nv_fatbin, \"aR\"",
        ".quad 0",
        ".popsection",
    );

    fn own() -> Elf<File> {
        Elf::read(File::open("/proc/self/exe").unwrap()).unwrap()
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn functions_of_a_program_are_in_its_symbols() {
        let wanted = [
            "gpu_elf_test_alias",
            "gpu_elf_test_object",
            "gpu_elf_test_pushes",
            "gpu_elf_test_steps",
            "elf_test_steps",
            "gpu_elf_test_missing",
        ];
        let mut own = own();
        assert!(own.has_cuda_code());
        assert_eq!(own.functions(Tables::Dynamic, &wanted).unwrap(), []);
        let found = own.functions(Tables::All, &wanted).unwrap();
        let [alias, pushes, steps] = found.as_slice() else {
            panic!("{found:#?}");
        };
        assert_eq!(
            *pushes,
            Function {
                name: "gpu_elf_test_pushes",
                offset: pushes.offset,
                body: pushes.offset + 4,
                single_stepped: false,
                leads_to: None,
            }
        );
        assert_eq!(
            *steps,
            Function {
                name: "gpu_elf_test_steps",
                // endbr64, push, pop, ret
                offset: pushes.offset + 7,
                body: pushes.offset + 7,
                single_stepped: true,
                leads_to: None,
            }
        );
        assert_eq!(
            *alias,
            Function {
                name: "gpu_elf_test_alias",
                // two subtractions, ret
                offset: steps.offset + 9,
                body: steps.offset + 13,
                single_stepped: false,
                leads_to: Some(pushes.offset),
            }
        );
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn functions_of_a_library_are_in_its_dynamic_symbols() {
        let mut libc = Elf::read(File::open(LIBC).unwrap()).unwrap();
        assert!(!libc.has_cuda_code());
        assert_eq!(libc.build_id.as_ref().map(Vec::len), Some(20));
        // strlen is an IFUNC, environ an object, and write's name may be the end of another's.
        let wanted = [
            "getppid", "strlen", "environ", "write", "__write", "no_such",
        ];
        let found = libc.functions(Tables::Dynamic, &wanted).unwrap();
        let names: Vec<_> = found.iter().map(|function| function.name).collect();
        assert_eq!(names, ["__write", "getppid", "write"]);
        assert_eq!(found[0].offset, found[2].offset);
        assert_eq!(found, libc.functions(Tables::All, &wanted).unwrap());
    }

    #[test]
    fn first_instructions_are_told_apart() {
        let start = |skip, single_stepped, jumps_by| Start {
            skip,
            single_stepped,
            jumps_by,
        };
        for (code, expected) in [
            (&b"\x55\x48\x89\xe5"[..], start(0, false, None)),
            (b"\x41\x57\x41\x56", start(0, false, None)),
            (b"\xf3\x0f\x1e\xfa\x55", start(4, false, None)),
            (b"\xf3\x0f\x1e\xfa\x53", start(4, false, None)),
            (b"\xf3\x0f\x1e\xfa\x48\x83\xec\x08", start(4, true, None)),
            (b"\x49\x57", start(0, true, None)),
            (b"\x90", start(0, false, None)),
            (b"\x0f\x1f\x44\x00\x00", start(0, true, None)),
            (b"\x66\x90", start(0, true, None)),
            (b"\xe8\x00\x00\x00\x00", start(0, false, None)),
            (b"\x74\x05", start(0, false, None)),
            (b"\x0f\x84\x01\x00\x00\x00", start(0, false, None)),
            (b"\xeb\xfe", start(0, false, Some(0))),
            (b"\xe9\x00\x01\x00\x00", start(0, false, Some(261))),
            (
                b"\xf3\x0f\x1e\xfa\xe9\xf0\xff\xff\xff",
                start(4, false, Some(-7)),
            ),
            (
                b"\xf3\x0f\x1e\xfa\xf2\xe9\x10\0\0\0",
                start(4, false, Some(26)),
            ),
            (b"\xff\x25\0\0\0\0", start(0, true, None)),
            // __cudaLaunchKernel of libcudart.so.12.9.79
            (
                b"\x55\x48\x89\xe5\x5d\xe9\x46\x91\x05\x00\x66\x0f\x1f\x44\0\0",
                start(0, false, Some(0x5_9150)),
            ),
            (b"\x55\x48\x89\xe5\x5d\xc3", start(0, false, None)),
            (b"\xe9\x00", start(0, false, None)),
            (b"\xf3\x0f\x1e\xfa", start(4, true, None)),
            (b"", start(0, true, None)),
        ] {
            assert_eq!(Start::of_x86_64(code), expected, "{code:02x?}");
        }
        let code = |words: &[u32]| -> Vec<u8> {
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        };
        for (words, expected) in [
            (&[0xa9bf_7bfd][..], start(0, true, None)),
            (&[0xd503_245f, 0xa9bf_7bfd], start(4, true, None)),
            (&[0x1400_0004], start(0, false, Some(16))),
            (&[0xd503_245f, 0x17ff_ffff], start(4, false, Some(0))),
            (&[0x9400_0004], start(0, true, None)),
            (&[], start(0, true, None)),
        ] {
            assert_eq!(Start::of_aarch64(&code(words)), expected, "{words:08x?}");
        }
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        let refusal = |bytes: &[u8]| Elf::read(Cursor::new(bytes)).unwrap_err().to_string();
        assert_eq!(refusal(b""), "it is no ELF file");
        assert_eq!(refusal(b"#!/bin/sh\nexec true\n"), "it is no ELF file");
        let mut header = b"\x7fELF\x01\x01\x01".to_vec();
        header.resize(64, 0);
        let foreign = "it is no 64-bit executable or library for this machine";
        assert_eq!(refusal(&header), foreign);
        header[4] = ELFCLASS64;
        assert_eq!(refusal(&header), foreign);
        header.truncate(20);
        assert_eq!(refusal(&header), "it is damaged: its header");
        assert!(matches!(
            Elf::read(File::open("/").unwrap()),
            Err(ElfError::Io(_) | ElfError::Damaged(_))
        ));
    }

    /// A file that counts what is read of it.
    struct Counting<R>(R, u64, u64);

    impl<R: Read> Read for Counting<R> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let length = self.0.read(into)?;
            (self.1, self.2) = (self.1 + 1, self.2 + length as u64);
            Ok(length)
        }
    }

    impl<R: Seek> Seek for Counting<R> {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn a_large_file_costs_few_reads() {
        let file = File::open(LIBC).unwrap();
        let length = file.metadata().unwrap().len();
        let file = Counting(file, 0, 0);
        let mut libc = Elf::read(file).unwrap();
        assert!(libc.source.file.1 <= 10, "{} reads", libc.source.file.1);
        assert!(
            libc.source.file.2 <= 64 << 10,
            "{} bytes",
            libc.source.file.2
        );
        libc.functions(Tables::All, &["cudaLaunchKernel"]).unwrap();
        assert!(
            libc.source.file.2 * 10 < length,
            "{} bytes",
            libc.source.file.2
        );
    }

    /// Numbers that look random and are the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            usize::try_from(self.0 >> 33).unwrap() % bound
        }
    }

    /// Reads all that a file has to say; only that it comes to an end matters.
    fn exhaust(bytes: &[u8]) -> bool {
        Elf::read(Cursor::new(bytes))
            .and_then(|mut elf| {
                elf.functions(Tables::All, &["getppid", "write", "gpu_elf_test_alias"])
                    .map(|found| !found.is_empty())
            })
            .unwrap_or(false)
    }

    #[test]
    fn damaged_files_are_errors_and_nothing_worse() {
        let mut numbers = Numbers(1);
        let whole = std::fs::read(LIBC).unwrap();
        assert!(exhaust(&whole));
        let first_section = u64::from_le_bytes(whole[0x28..0x30].try_into().unwrap());
        let sections = usize::try_from(first_section).unwrap();
        for _ in 0..200 {
            let length = numbers.below(whole.len());
            assert!(!exhaust(&whole[..length]), "cut to {length} bytes");
        }
        let mut refused = 0;
        let mut bytes = whole.clone();
        for round in 0..2000 {
            let mut changed = Vec::new();
            for _ in 0..=numbers.below(8) {
                // Where headers are, which is what everything hangs on, and anywhere.
                let place = match round % 4 {
                    0 => numbers.below(64),
                    1 => numbers.below(1024),
                    2 => sections + numbers.below(whole.len() - sections),
                    _ => numbers.below(whole.len()),
                };
                bytes[place] = u8::try_from(numbers.below(256)).unwrap();
                changed.push(place);
            }
            refused += u32::from(!exhaust(&bytes));
            for place in changed {
                bytes[place] = whole[place];
            }
        }
        assert!((200..1900).contains(&refused), "{refused} refused");
    }

    #[test]
    fn own_executable_survives_damage_too() {
        // It is large: its headers are changed in place, on top of the file.
        struct Patched(File, Vec<u8>, u64);
        impl Read for Patched {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let length = self.0.read(into)?;
                for (index, byte) in into[..length].iter_mut().enumerate() {
                    if let Ok(at) = usize::try_from(self.2 + index as u64)
                        && let Some(patch) = self.1.get(at)
                    {
                        *byte = *patch;
                    }
                }
                self.2 += length as u64;
                Ok(length)
            }
        }
        impl Seek for Patched {
            fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
                self.2 = self.0.seek(to)?;
                Ok(self.2)
            }
        }
        let mut head = vec![0; 1024];
        File::open("/proc/self/exe")
            .unwrap()
            .read_exact(&mut head)
            .unwrap();
        let mut numbers = Numbers(2);
        for _ in 0..200 {
            let mut patched = head.clone();
            let place = numbers.below(head.len());
            patched[place] = u8::try_from(numbers.below(256)).unwrap();
            let file = Patched(File::open("/proc/self/exe").unwrap(), patched, 0);
            // The names are searched once, if at all: this is a debug build.
            if let Ok(mut elf) = Elf::read(file) {
                let _ = elf.functions(Tables::Dynamic, &["gpu_elf_test_alias"]);
            }
        }
    }
}
