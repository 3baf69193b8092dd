//! Random access to an uploaded tar archive.
//!
//! Owns the outer compression and the index from entry name to byte range. Entries are never extracted: a name is only
//! a key, so `../`, absolute paths and links can't lead anywhere. Headers are walked here and not by the `tar` crate's
//! iterator, which reads extended names of any announced length into memory. Refuses archives two readers could
//! understand differently: names twice, sparse files, cut ends, sizes beyond the file.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use berth_common::id::clip;
use berth_common::units::Bytes;
use tar::{EntryType, Header, PaxExtensions};

use super::LoadLimits;

const BLOCK: u64 = 512;
/// Longest name worth an index entry; layouts need 77 bytes, docker archives about as many.
const NAME_MAX: usize = 256;
/// Longest extended header, bytes. Real ones have a few hundred.
const EXTENDED_MAX: u64 = 64 << 10;

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file could not be read or the expanded one not be written.
    #[error("cannot {doing} the archive")]
    Io {
        /// read or expand.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a tar archive nor a compression we know.
    #[error("the upload is not an image archive: {0}")]
    NotArchive(String),
    /// The compressed stream is damaged or cut.
    #[error("the {format} stream around the archive is damaged or cut short: {message}")]
    Damaged {
        /// gzip or zstd.
        format: &'static str,
        /// What the decoder says.
        message: String,
    },
    /// More bytes than allowed.
    #[error("the archive holds more than {max} when unpacked")]
    Bomb {
        /// The bound.
        max: Bytes,
    },
    /// Ends early.
    #[error("the archive is cut short {0}")]
    Truncated(String),
    /// A header that makes no sense.
    #[error("the archive is damaged: the header at byte {at} {why}")]
    Header {
        /// Offset in the tar.
        at: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An entry that can't be accepted.
    #[error("entry {entry:?} {why}")]
    Entry {
        /// Its name, cut.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// Absurdly many entries.
    #[error("the archive has more than {max} entries")]
    TooMany {
        /// The bound.
        max: usize,
    },
}

impl ArchiveError {
    pub(super) fn entry(name: &str, why: impl Into<String>) -> Self {
        Self::Entry {
            entry: clip(name, 100),
            why: why.into(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Item {
    File { offset: u64, size: u64 },
    Link,
    Other,
}

/// An indexed archive.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    items: HashMap<String, Item>,
    document_max: Bytes,
    /// What documents may still be read; they stay in memory until the load ends.
    budget: Cell<u64>,
}

/// The bytes of one entry.
#[derive(Debug)]
pub(super) struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Section<'_> {
    /// Bytes not yet read.
    pub(super) fn left(&self) -> u64 {
        self.left
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

impl Archive {
    /// Indexes the archive at `path`; a compressed one is expanded into an anonymous file in `tmp` first.
    pub(super) fn open(path: &Path, tmp: &Path, limits: &LoadLimits) -> Result<Self, ArchiveError> {
        let io = |doing| move |source| ArchiveError::Io { doing, source };
        let mut file = File::open(path).map_err(io("read"))?;
        let mut magic = [0; 6];
        let known = file.read_at(&mut magic, 0).map_err(io("read"))?;
        file = match &magic[..known] {
            [] => return Err(ArchiveError::NotArchive("it is empty".to_owned())),
            [0x1f, 0x8b, ..] => {
                let decoder = flate2::read::MultiGzDecoder::new(io::BufReader::new(file));
                expand("gzip", decoder, tmp, limits.unpacked)?
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let decoder = zstd::Decoder::new(file).map_err(io("expand"))?;
                expand("zstd", decoder, tmp, limits.unpacked)?
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => return Err(unknown_compression("xz")),
            [b'B', b'Z', b'h', ..] => return Err(unknown_compression("bzip2")),
            [b'P', b'K', 3, 4, ..] => return Err(unknown_compression("zip")),
            _ => file,
        };
        let length = file.metadata().map_err(io("read"))?.len();
        if length > limits.unpacked.0 {
            return Err(ArchiveError::Bomb { max: limits.unpacked });
        }
        let items = Walk::new(&file, length, limits.entries).run()?;
        Ok(Self {
            file,
            items,
            document_max: limits.document,
            budget: Cell::new(limits.documents.0),
        })
    }

    /// Whether there is anything of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.items.contains_key(normal(name))
    }

    /// The bytes of a regular file.
    pub(super) fn section(&self, name: &str) -> Result<Section<'_>, ArchiveError> {
        match self.items.get(normal(name)) {
            Some(&Item::File { offset, size }) => Ok(Section {
                file: &self.file,
                at: offset,
                left: size,
            }),
            Some(Item::Link) => Err(ArchiveError::entry(name, "is a link where a file is needed")),
            Some(Item::Other) => Err(ArchiveError::entry(name, "is not a regular file")),
            None => Err(ArchiveError::entry(name, "is missing from the archive")),
        }
    }

    /// All of a file that is small by nature: an index, a manifest, a config.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let mut section = self.section(name)?;
        let (size, max) = (Bytes(section.left), self.document_max);
        if size > max {
            let why = format!("has {size}, but a document may have {max}");
            return Err(ArchiveError::entry(name, why));
        }
        let budget = self.budget.get().checked_sub(size.0);
        let spent = || ArchiveError::entry(name, "is one document too many: all of them are absurdly large");
        self.budget.set(budget.ok_or_else(spent)?);
        let mut body = Vec::with_capacity(section.left as usize);
        section
            .read_to_end(&mut body)
            .map_err(|source| ArchiveError::Io {
                doing: "read",
                source,
            })?;
        Ok(body)
    }
}

fn unknown_compression(what: &str) -> ArchiveError {
    ArchiveError::NotArchive(format!(
        "it is {what}, and only plain, gzip and zstd tar are read"
    ))
}

/// Expands at most `max` bytes into a file without a name.
fn expand(format: &'static str, mut from: impl Read, tmp: &Path, max: Bytes) -> Result<File, ArchiveError> {
    let io = |source| ArchiveError::Io {
        doing: "expand",
        source,
    };
    let mut to = tempfile::tempfile_in(tmp).map_err(io)?;
    let (mut chunk, mut total) = (vec![0; 256 << 10], 0);
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return Ok(to),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(ArchiveError::Damaged {
                    format,
                    message: clip(&error.to_string(), 100),
                });
            }
        };
        total += read as u64;
        if total > max.0 {
            return Err(ArchiveError::Bomb { max });
        }
        to.write_all(&chunk[..read]).map_err(io)?;
    }
}

/// `./name` and `name` are one entry.
fn normal(mut name: &str) -> &str {
    while let Some(rest) = name.strip_prefix("./") {
        name = rest;
    }
    name
}

/// One pass over the headers.
struct Walk<'a> {
    file: &'a File,
    length: u64,
    max: usize,
    at: u64,
    items: HashMap<String, Item>,
    /// What an extended header says about the next entry.
    name: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<'a> Walk<'a> {
    fn new(file: &'a File, length: u64, max: usize) -> Self {
        Self {
            file,
            length,
            max,
            at: 0,
            items: HashMap::new(),
            name: None,
            size: None,
        }
    }

    fn run(mut self) -> Result<HashMap<String, Item>, ArchiveError> {
        let mut last = String::new();
        let mut count = 0;
        loop {
            let cut = || match last.as_str() {
                "" => ArchiveError::NotArchive("it is shorter than a tar header".to_owned()),
                last => ArchiveError::Truncated(format!("after {:?}", clip(last, 100))),
            };
            if self.length.saturating_sub(self.at) < BLOCK {
                return Err(cut());
            }
            let mut block = [0; BLOCK as usize];
            self.read(&mut block, self.at)?;
            if block.iter().all(|byte| *byte == 0) {
                return if self.at == 0 {
                    Err(ArchiveError::NotArchive("it holds no entries".to_owned()))
                } else {
                    Ok(self.items)
                };
            }
            count += 1;
            if count > self.max {
                return Err(ArchiveError::TooMany { max: self.max });
            }
            last = self.entry(Header::from_byte_slice(&block))?;
        }
    }

    fn read(&self, into: &mut [u8], at: u64) -> Result<(), ArchiveError> {
        let read = self.file.read_exact_at(into, at);
        read.map_err(|source| ArchiveError::Io {
            doing: "read",
            source,
        })
    }

    /// Takes one header and steps over its data. Gives its name for messages.
    fn entry(&mut self, header: &Header) -> Result<String, ArchiveError> {
        let at = self.at;
        let broken = |why| ArchiveError::Header { at, why };
        if header.cksum().ok() != Some(checksum(header)) {
            return Err(match at {
                0 => ArchiveError::NotArchive("it does not begin with a tar header".to_owned()),
                _ => broken("has a wrong checksum"),
            });
        }
        let kind = header.entry_type();
        let extension = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        let stated = header.entry_size().map_err(|_| broken("has a malformed size"))?;
        let raw = match self.name.take_if(|_| !extension) {
            Some(name) => name,
            None => header.path_bytes().into_owned(),
        };
        let name = String::from_utf8_lossy(&raw).into_owned();
        let size = match kind {
            // These never have data, whatever the size field says.
            EntryType::Link | EntryType::Symlink | EntryType::Directory => 0,
            EntryType::Char | EntryType::Block | EntryType::Fifo => 0,
            _ if extension => stated,
            _ => self.size.unwrap_or(stated),
        };
        let offset = at + BLOCK;
        let end = offset
            .checked_add(size)
            .filter(|end| *end <= self.length)
            .ok_or_else(|| ArchiveError::Truncated(format!("within {:?}", clip(&name, 100))))?;
        self.at = end.next_multiple_of(BLOCK);
        if extension {
            self.extend(kind, offset, size)?;
            return Ok(name);
        }
        self.size = None;
        let item = match kind {
            EntryType::Regular | EntryType::Continuous => Item::File { offset, size },
            EntryType::GNUSparse => return Err(ArchiveError::entry(&name, "is a sparse file")),
            EntryType::Link | EntryType::Symlink => Item::Link,
            EntryType::Directory => return Ok(name),
            _ => Item::Other,
        };
        if raw.len() <= NAME_MAX && self.items.insert(normal(&name).to_owned(), item).is_some() {
            return Err(ArchiveError::entry(&name, "is in the archive twice"));
        }
        Ok(name)
    }

    /// Takes what an extended header says about the next entry; what does not matter here is skipped unread.
    fn extend(&mut self, kind: EntryType, offset: u64, size: u64) -> Result<(), ArchiveError> {
        if !kind.is_gnu_longname() && !kind.is_pax_local_extensions() {
            return Ok(());
        }
        let broken = |why| ArchiveError::Header {
            at: offset - BLOCK,
            why,
        };
        if size > EXTENDED_MAX {
            return Err(broken("announces an absurdly long extended header"));
        }
        let mut body = vec![0; size as usize];
        self.read(&mut body, offset)?;
        if kind.is_gnu_longname() {
            let end = body.iter().position(|byte| *byte == 0).unwrap_or(body.len());
            body.truncate(end);
            self.name = Some(body);
            return Ok(());
        }
        for field in PaxExtensions::new(&body) {
            let field = field.map_err(|_| broken("has a malformed extended header"))?;
            match field.key_bytes() {
                b"path" => self.name = Some(field.value_bytes().to_vec()),
                b"size" => {
                    let size = field.value().ok().and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or_else(|| broken("has a malformed extended size"))?);
                }
                key if key.starts_with(b"GNU.sparse.") => return Err(broken("describes a sparse file")),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The sum of the header's bytes with the checksum field counted as blanks.
fn checksum(header: &Header) -> u32 {
    let bytes = header.as_bytes();
    let sum = |part: &[u8]| part.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(&bytes[..148]) + 8 * u32::from(b' ') + sum(&bytes[156..])
}
