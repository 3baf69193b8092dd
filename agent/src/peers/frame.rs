//! A transfer's body on the wire: chunks and an end. Pure: bytes in, frames out.
//!
//! A chunk: `1` (as it is) or `2` (zstd), offset u64, length u32, length on the wire u32, crc32c u32, and the bytes. The end: `3`,
//! length of all u64, chunks u64, crc32c of all u32. Numbers are big-endian; offsets, lengths and sums are of uncompressed bytes.
//! Lengths are judged before anything is kept for them, and a body without its end is never taken for a whole one.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// The most bytes that one chunk holds.
pub const CHUNK: usize = 128 << 10;
/// Bytes before a chunk's content; an end is as long.
pub(super) const HEADER: usize = 21;
const RAW: u8 = 1;
const ZSTD: u8 = 2;
const END: u8 = 3;

/// What is wrong with a body.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// No frame begins so.
    #[error("byte {0} begins no frame")]
    Kind(u8),
    /// A length that no chunk may have.
    #[error("a chunk of {length} bytes, {wire} on the wire: 1 to {CHUNK} are allowed")]
    Length {
        /// Announced, bytes.
        length: u32,
        /// Announced for the wire, bytes.
        wire: u32,
    },
    /// Content that can't be uncompressed, or not to what was announced.
    #[error("the chunk at {0} can't be uncompressed to its length")]
    Compressed(u64),
    /// Content that changed on the way.
    #[error("the chunk at {0} is damaged: its sum does not match")]
    Sum(u64),
    /// A chunk that is not the next one.
    #[error("a chunk at {found} where the one at {wanted} belongs")]
    Gap {
        /// Where the next chunk begins.
        wanted: u64,
        /// Where this one says it does.
        found: u64,
    },
    /// The end does not match what came.
    #[error("the end speaks of {announced:?}, and {found:?} came")]
    End {
        /// What the end says.
        announced: Position,
        /// What came.
        found: Position,
    },
}

/// How far a body has come; at its end: all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Bytes.
    pub offset: u64,
    /// Chunks.
    pub chunks: u64,
    /// crc32c of the bytes.
    pub sum: u32,
}

impl Position {
    /// The position after a chunk of this content.
    #[must_use]
    pub fn after(self, content: &[u8]) -> Self {
        Self {
            offset: self.offset + content.len() as u64,
            chunks: self.chunks + 1,
            // Not combined with the chunk's own sum: that takes longer than summing so few bytes again.
            sum: crc32c::crc32c_append(self.sum, content),
        }
    }

    /// The position after this chunk, if it is the next one.
    ///
    /// # Errors
    /// `Gap`.
    pub fn then(self, chunk: &Chunk) -> Result<Self, FrameError> {
        match chunk.offset == self.offset {
            true => Ok(self.after(&chunk.content)),
            false => Err(FrameError::Gap {
                wanted: self.offset,
                found: chunk.offset,
            }),
        }
    }

    /// Whether the end is that of what came.
    ///
    /// # Errors
    /// `End`.
    pub fn ends(self, announced: Self) -> Result<(), FrameError> {
        match announced == self {
            true => Ok(()),
            false => Err(FrameError::End {
                announced,
                found: self,
            }),
        }
    }
}

/// Verified content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Where in the body, bytes.
    pub offset: u64,
    /// At least one byte, at most [`CHUNK`].
    pub content: Bytes,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The next bytes.
    Chunk(Chunk),
    /// That was all.
    End(Position),
}

/// Room for a chunk's content, to be filled behind a head that is written last: most content goes as it is, and is not copied.
pub(super) fn room() -> BytesMut {
    let mut room = BytesMut::with_capacity(HEADER + CHUNK);
    room.put_bytes(0, HEADER);
    room
}

/// The room, filled with this.
#[cfg(test)]
pub(super) fn filled(content: &[u8]) -> BytesMut {
    let mut room = room();
    room.put_slice(content);
    room
}

/// A chunk's frame, from what [`room`] gave and 1 to [`CHUNK`] bytes of content behind; `packed`: the content by zstd, if that is what
/// goes on the wire.
pub(super) fn chunk(offset: u64, mut filled: BytesMut, packed: Option<&[u8]>) -> Bytes {
    let content = &filled[HEADER..];
    let (length, sum) = (content.len() as u32, crc32c::crc32c(content));
    if let Some(packed) = packed {
        filled.truncate(HEADER);
        filled.put_slice(packed);
    }
    let wire = (filled.len() - HEADER) as u32;
    let mut head = &mut filled[..HEADER];
    head.put_u8(if packed.is_some() { ZSTD } else { RAW });
    head.put_u64(offset);
    head.put_u32(length);
    head.put_u32(wire);
    head.put_u32(sum);
    filled.freeze()
}

/// The frame of the end.
pub(super) fn end(at: Position) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER);
    out.put_u8(END);
    out.put_u64(at.offset);
    out.put_u64(at.chunks);
    out.put_u32(at.sum);
    out.freeze()
}

/// Splits a stream into frames; feed it bytes, poll it for frames. Useless after an error.
pub struct Decoder {
    buffer: BytesMut,
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    /// At the beginning of a frame.
    ///
    /// # Errors
    /// No memory for zstd.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            buffer: BytesMut::new(),
            zstd: zstd::bulk::Decompressor::new()?,
        })
    }

    /// Adds received bytes.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, if there is one.
    ///
    /// # Errors
    /// `Kind`, `Length` as soon as the header is there; `Compressed`, `Sum`.
    pub fn poll_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(&kind) = self.buffer.first() else {
            return Ok(None);
        };
        if ![RAW, ZSTD, END].contains(&kind) {
            return Err(FrameError::Kind(kind));
        }
        if self.buffer.len() < HEADER {
            return Ok(None);
        }
        let mut header = &self.buffer[1..HEADER];
        let offset = header.get_u64();
        if kind == END {
            let (chunks, sum) = (header.get_u64(), header.get_u32());
            self.buffer.advance(HEADER);
            return Ok(Some(Frame::End(Position { offset, chunks, sum })));
        }
        let (length, wire, sum) = (header.get_u32(), header.get_u32(), header.get_u32());
        let most = if kind == RAW { length } else { CHUNK as u32 };
        let least = if kind == RAW { length } else { 1 };
        if !(1..=CHUNK as u32).contains(&length) || !(least..=most).contains(&wire) {
            return Err(FrameError::Length { length, wire });
        }
        let (length, wire) = (length as usize, wire as usize);
        if self.buffer.len() < HEADER + wire {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let sent = self.buffer.split_to(wire).freeze();
        let content = match kind {
            RAW => sent,
            _ => {
                // Never writes beyond what was announced, which is bounded above.
                let unpacked = self.zstd.decompress(&sent, length);
                Bytes::from(unpacked.map_err(|_| FrameError::Compressed(offset))?)
            }
        };
        if content.len() != length {
            return Err(FrameError::Compressed(offset));
        }
        if crc32c::crc32c(&content) != sum {
            return Err(FrameError::Sum(offset));
        }
        Ok(Some(Frame::Chunk(Chunk { offset, content })))
    }
}
