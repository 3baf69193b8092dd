//! One streaming pass over a layer before it is unpacked.
//!
//! Owns the proof that a blob is the layer its image config names (digest of the uncompressed bytes) and that nothing
//! in it may hurt the host: size, ratio, entry count, names, types. Pure over a [`Read`]; memory stays bounded whatever
//! comes in, so it is also a fuzz target. Refuses at the first fault; trying again does not help.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};

use berth_common::model::Digest;
use sha2::Digest as _;

use super::entry::{EntryError, Pax, check_entry, shown};

const BLOCK: usize = 512;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Largest window a zstd frame may ask for, as a power of two: 128 MiB, what containerd accepts.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What a layer may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanLimits {
    /// Uncompressed size, bytes.
    pub max_uncompressed: u64,
    /// Uncompressed by compressed size, once `ratio_from` bytes were unpacked.
    pub max_ratio: u64,
    /// Under this uncompressed size, in bytes, the ratio is not looked at: small layers of zeros are common.
    pub ratio_from: u64,
    /// Entries in the archive.
    pub max_entries: u64,
    /// One pax or long-name header, bytes.
    pub max_header: u64,
}

impl Default for ScanLimits {
    fn default() -> Self {
        Self {
            max_uncompressed: 10 << 30,
            max_ratio: 250,
            ratio_from: 64 << 20,
            max_entries: 1_000_000,
            max_header: 1 << 20,
        }
    }
}

/// How a layer is packed, judged by its first bytes and not by what it claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, also of several members.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// The media type that makes containerd unpack it just so.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// What a scan found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// How it is packed.
    pub compression: Compression,
    /// Digest of the uncompressed bytes: the layer's diff id.
    pub diff_id: Digest,
    /// Uncompressed size, bytes.
    pub uncompressed: u64,
    /// Entries in the archive.
    pub entries: u64,
}

/// Why a layer is refused.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The source broke off; the only fault that may pass.
    #[error("the layer can't be read: {0}")]
    Read(#[source] io::Error),
    /// Not what it claims to be.
    #[error("the layer is corrupt: {0}")]
    Corrupt(String),
    /// Too large.
    #[error("the layer unpacks to more than {limit} bytes")]
    TooLarge {
        /// The limit, bytes.
        limit: u64,
    },
    /// A bomb.
    #[error("the layer unpacks to more than {limit} times its size, as decompression bombs do")]
    Ratio {
        /// The limit.
        limit: u64,
    },
    /// Too many entries.
    #[error("the layer holds more than {limit} files")]
    TooMany {
        /// The limit.
        limit: u64,
    },
    /// An entry that images may not hold.
    #[error("the layer's entry {path:?} is refused: {source}")]
    Entry {
        /// Its name, cut.
        path: String,
        /// Why.
        #[source]
        source: EntryError,
    },
}

/// Scans a layer to its end.
///
/// # Errors
/// See [`ScanError`].
pub fn scan_layer(source: impl Read, limits: &ScanLimits) -> Result<Scan, ScanError> {
    let packed = Cell::new(0);
    let broken = Cell::new(None);
    let counter = Counter {
        inner: source,
        count: &packed,
        broken: &broken,
    };
    let mut buffered = BufReader::with_capacity(128 << 10, counter);
    let head = buffered.fill_buf().map_err(ScanError::Read)?;
    let compression = if head.starts_with(&GZIP) {
        Compression::Gzip
    } else if head.starts_with(&ZSTD) {
        Compression::Zstd
    } else {
        Compression::None
    };
    let result = match compression {
        Compression::None => walk(buffered, compression, limits, &packed),
        Compression::Gzip => walk(
            flate2::bufread::MultiGzDecoder::new(buffered),
            compression,
            limits,
            &packed,
        ),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered).map_err(ScanError::Read)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(ScanError::Read)?;
            walk(decoder, compression, limits, &packed)
        }
    };
    // A decoder wraps what its source said; the source's own words decide whether trying again can help.
    match broken.take() {
        Some(error) => Err(ScanError::Read(error)),
        None => result,
    }
}

fn walk(
    unpacked: impl Read,
    compression: Compression,
    limits: &ScanLimits,
    packed: &Cell<u64>,
) -> Result<Scan, ScanError> {
    let mut tar = Tar {
        inner: BufReader::with_capacity(128 << 10, unpacked),
        hash: sha2::Sha256::new(),
        count: 0,
        packed,
        limits,
    };
    let entries = tar.entries()?;
    tar.drain()?;
    Ok(Scan {
        compression,
        diff_id: Digest::from_bytes(tar.hash.finalize().into()),
        uncompressed: tar.count,
        entries,
    })
}

struct Counter<'a, R> {
    inner: R,
    count: &'a Cell<u64>,
    broken: &'a Cell<Option<io::Error>>,
}

impl<R: Read> Read for Counter<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buf) {
            Ok(n) => {
                self.count.set(self.count.get() + n as u64);
                Ok(n)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.broken.set(Some(error));
                Err(copy)
            }
        }
    }
}

struct Tar<'a, R> {
    inner: BufReader<R>,
    hash: sha2::Sha256,
    count: u64,
    packed: &'a Cell<u64>,
    limits: &'a ScanLimits,
}

impl<R: Read> Tar<'_, R> {
    fn account(&mut self, n: usize) -> Result<(), ScanError> {
        self.count += n as u64;
        let limits = self.limits;
        if self.count > limits.max_uncompressed {
            return Err(ScanError::TooLarge {
                limit: limits.max_uncompressed,
            });
        }
        if self.count > limits.ratio_from
            && self.count > self.packed.get().max(1).saturating_mul(limits.max_ratio)
        {
            return Err(ScanError::Ratio {
                limit: limits.max_ratio,
            });
        }
        Ok(())
    }

    /// Hashes up to `max` bytes and gives them to `keep`; 0 at the end.
    fn take(&mut self, max: u64, mut keep: impl FnMut(&[u8])) -> Result<usize, ScanError> {
        let data = loop {
            match self.inner.fill_buf() {
                Ok(_) => break self.inner.buffer(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ScanError::Corrupt(error.to_string())),
            }
        };
        let n = data.len().min(usize::try_from(max).unwrap_or(usize::MAX));
        self.hash.update(&data[..n]);
        keep(&data[..n]);
        self.inner.consume(n);
        self.account(n)?;
        Ok(n)
    }

    fn skip(&mut self, mut left: u64, keep: &mut impl FnMut(&[u8])) -> Result<(), ScanError> {
        while left > 0 {
            match self.take(left, &mut *keep)? {
                0 => return Err(ScanError::Corrupt("the archive ends inside an entry".to_owned())),
                n => left -= n as u64,
            }
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), ScanError> {
        while self.take(u64::MAX, |_| {})? > 0 {}
        Ok(())
    }

    /// A whole header block, or None at a clean end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ScanError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let slot = &mut block[filled..];
            let n = self.take(slot.len() as u64, |data| slot[..data.len()].copy_from_slice(data))?;
            match n {
                0 if filled == 0 => return Ok(None),
                0 => return Err(ScanError::Corrupt("the archive ends inside a header".to_owned())),
                n => filled += n,
            }
        }
        Ok(Some(block))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ScanError> {
        if size > self.limits.max_header {
            let limit = self.limits.max_header;
            return Err(ScanError::Corrupt(format!(
                "a pax or long-name header of {size} bytes (limit {limit})"
            )));
        }
        let mut data = Vec::new();
        self.skip(size, &mut |part| data.extend_from_slice(part))?;
        self.skip(padding(size), &mut |_| {})?;
        Ok(data)
    }

    fn entries(&mut self) -> Result<u64, ScanError> {
        let mut entries = 0;
        let mut pax = Pax::default();
        let mut long = Pax::default();
        let mut headers = 0_u64;
        while let Some(block) = self.block()? {
            if block == [0; BLOCK] {
                // The end is two empty blocks; a single one at the end of the data is common too.
                match self.block()? {
                    None => break,
                    Some(second) if second == [0; BLOCK] => break,
                    Some(_) => {
                        return Err(ScanError::Corrupt(
                            "data follows the end of the archive".to_owned(),
                        ));
                    }
                }
            }
            headers += 1;
            if headers > self.limits.max_entries.saturating_mul(3) {
                return Err(ScanError::TooMany {
                    limit: self.limits.max_entries,
                });
            }
            let header = tar::Header::from_byte_slice(&block);
            if header.cksum().ok() != Some(checksum(&block)) {
                return Err(ScanError::Corrupt("a header's checksum is wrong".to_owned()));
            }
            let size = header
                .entry_size()
                .map_err(|error| ScanError::Corrupt(error.to_string()))?;
            let kind = block[156];
            match kind {
                b'x' | b'g' => {
                    let data = self.extension(size)?;
                    let parsed = Pax::parse(&data).map_err(|source| ScanError::Entry {
                        path: shown(&header.path_bytes()),
                        source,
                    })?;
                    if kind == b'x' {
                        pax = parsed;
                    } else if parsed != Pax::default() {
                        return Err(ScanError::Corrupt(
                            "a global header names a path, link or size".to_owned(),
                        ));
                    }
                }
                b'L' => long.path = Some(unterminated(self.extension(size)?)),
                b'K' => long.link = Some(unterminated(self.extension(size)?)),
                _ => {
                    entries += 1;
                    if entries > self.limits.max_entries {
                        return Err(ScanError::TooMany {
                            limit: self.limits.max_entries,
                        });
                    }
                    let (pax, long) = (std::mem::take(&mut pax), std::mem::take(&mut long));
                    self.entry(header, kind, size, pax, long)?;
                }
            }
        }
        Ok(entries)
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        kind: u8,
        size: u64,
        pax: Pax,
        long: Pax,
    ) -> Result<(), ScanError> {
        let path = pax
            .path
            .or(long.path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .link
            .or(long.link)
            .or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
        // Only devices are asked, others may hold anything there.
        let number = |value: io::Result<Option<u32>>| value.ok().flatten().unwrap_or(u32::MAX);
        let device = match kind {
            b'3' | b'4' => (number(header.device_major()), number(header.device_minor())),
            _ => (0, 0),
        };
        check_entry(kind, &path, link.as_deref(), device).map_err(|source| ScanError::Entry {
            path: shown(&path),
            source,
        })?;
        // Only regular files have a body; a size elsewhere is read differently by different unpackers.
        let size = pax.size.unwrap_or(size);
        match kind {
            b'0' | 0 | b'7' => {}
            _ if size == 0 => {}
            _ => {
                return Err(ScanError::Corrupt(
                    "an entry that is no file claims a size".to_owned(),
                ));
            }
        }
        if size > self.limits.max_uncompressed {
            return Err(ScanError::TooLarge {
                limit: self.limits.max_uncompressed,
            });
        }
        self.skip(size, &mut |_| {})?;
        self.skip(padding(size), &mut |_| {})
    }
}

const fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn checksum(block: &[u8; BLOCK]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
    sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..])
}

fn unterminated(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|b| *b == 0) {
        name.truncate(end);
    }
    name
}

#[cfg(test)]
mod tests;
