//! Whether compressing pays. [`Habit`] decides (pure), [`Packer`] compresses.

use bytes::{Bytes, BytesMut};

use super::frame::{self, CHUNK};

/// zstd's level: the fastest that still finds most; a move is bounded by disks and links.
const LEVEL: i32 = 1;
/// Chunks in a row that did not shrink, after which compression is tried only now and then.
const GIVE_UP: u32 = 4;
/// Of chunks that do not shrink, every so manieth is tried.
const TRY_EVERY: u32 = 32;

/// What is known of the last chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Habit {
    /// In a row.
    failed: u32,
    /// Since the last attempt.
    skipped: u32,
}

impl Habit {
    /// Whether to try the next chunk.
    pub(super) const fn tries(self) -> bool {
        self.failed < GIVE_UP || self.skipped + 1 >= TRY_EVERY
    }

    /// The chunk was not tried.
    pub(super) const fn skipped(&mut self) {
        self.skipped += 1;
    }

    /// The chunk was tried, and shrank enough or not.
    pub(super) const fn tried(&mut self, paid: bool) {
        self.skipped = 0;
        self.failed = if paid { 0 } else { self.failed.saturating_add(1) };
    }
}

/// The most bytes that so many may become for compression to pay: a tenth less.
const fn pays(length: usize) -> usize {
    length / 10 * 9
}

/// Makes chunks' frames.
pub(super) struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
    habit: Habit,
    packed: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Compressor::new(LEVEL)?,
            habit: Habit::default(),
            packed: vec![0; pays(CHUNK)],
        })
    }

    /// The frame of what [`frame::room`] gave, with 1 to [`CHUNK`] bytes behind.
    pub(super) fn chunk(&mut self, offset: u64, filled: BytesMut) -> Bytes {
        let content = &filled[frame::HEADER..];
        if !self.habit.tries() {
            self.habit.skipped();
            return frame::chunk(offset, filled, None);
        }
        // No room for more than what pays: zstd gives up by itself.
        let room = &mut self.packed[..pays(content.len())];
        let packed = self.zstd.compress_to_buffer(content, room).ok();
        self.habit.tried(packed.is_some());
        frame::chunk(offset, filled, packed.map(|length| &self.packed[..length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore as _;

    #[test]
    fn what_does_not_shrink_is_tried_only_now_and_then_and_what_does_always() {
        let mut habit = Habit::default();
        let mut tried = 0;
        for _ in 0..1_000 {
            match habit.tries() {
                true => {
                    tried += 1;
                    habit.tried(false);
                }
                false => habit.skipped(),
            }
        }
        assert_eq!(tried, GIVE_UP + (1_000 - GIVE_UP) / TRY_EVERY);
        while !habit.tries() {
            habit.skipped();
        }
        habit.tried(true);
        for _ in 0..100 {
            assert!(habit.tries());
            habit.tried(true);
        }
    }

    #[test]
    fn frames_are_smaller_where_it_pays_and_never_much_larger() {
        let mut packer = Packer::new().unwrap();
        let text = b"the same again, ".repeat(CHUNK / 16);
        assert!(packer.chunk(0, frame::filled(&text)).len() < CHUNK / 10);
        let mut noise = vec![0; CHUNK];
        rand::rng().fill_bytes(&mut noise);
        for _ in 0..10 {
            assert_eq!(
                packer.chunk(0, frame::filled(&noise)).len(),
                CHUNK + frame::HEADER
            );
        }
        // Given up: even what would shrink goes as it is, until the next attempt.
        let sizes: Vec<usize> = (0..TRY_EVERY)
            .map(|_| packer.chunk(0, frame::filled(&text)).len())
            .collect();
        assert_eq!(sizes[0], CHUNK + frame::HEADER);
        assert!(sizes[TRY_EVERY as usize - 1] < CHUNK / 10);
        // Too short to become a tenth shorter.
        assert_eq!(
            Packer::new().unwrap().chunk(0, frame::filled(b"x")).len(),
            1 + frame::HEADER
        );
    }
}
