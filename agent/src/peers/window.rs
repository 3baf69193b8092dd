//! What was sent and is not known to have arrived: kept, to go on from after a broken link. Pure.

use std::collections::VecDeque;

use bytes::Bytes;

/// Uncompressed bytes that may be kept, about: the last chunk may go beyond.
pub(super) const WINDOW: u64 = 8 << 20;

/// The receiver speaks of bytes that it can't have, or that are no longer kept.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the receiver speaks of {told} bytes after {acknowledged}, and no chunk that it was sent ends there")]
pub struct OutsideWindow {
    /// What it says.
    pub told: u64,
    /// What it said before.
    pub acknowledged: u64,
}

struct Kept {
    /// Offset of its last byte, plus one.
    ends: u64,
    frame: Bytes,
}

/// See the module.
#[derive(Default)]
pub(super) struct Window {
    kept: VecDeque<Kept>,
    /// Of the kept, so many went over the present connection.
    sent: usize,
    acknowledged: u64,
    ends: u64,
}

impl Window {
    /// Whether another chunk may be read.
    pub(super) const fn has_room(&self) -> bool {
        self.ends - self.acknowledged < WINDOW
    }

    /// Bytes the receiver has, as far as it said.
    pub(super) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Adds a chunk's frame, `length` bytes uncompressed.
    pub(super) fn push(&mut self, length: usize, frame: Bytes) {
        self.ends += length as u64;
        self.kept.push_back(Kept {
            ends: self.ends,
            frame,
        });
    }

    /// The next frame to write.
    pub(super) fn poll_frame(&mut self) -> Option<Bytes> {
        let frame = self.kept.get(self.sent)?.frame.clone();
        self.sent += 1;
        Some(frame)
    }

    /// The receiver has all up to `offset`, the end of a chunk.
    pub(super) fn handle_ack(&mut self, offset: u64) -> Result<(), OutsideWindow> {
        if offset == self.acknowledged {
            return Ok(());
        }
        let arrived = self.kept.iter().take(self.sent);
        let Some(last) = arrived.into_iter().position(|kept| kept.ends == offset) else {
            return Err(OutsideWindow {
                told: offset,
                acknowledged: self.acknowledged,
            });
        };
        self.kept.drain(..=last);
        self.sent -= last + 1;
        self.acknowledged = offset;
        Ok(())
    }

    /// A new connection, whose receiver has all up to `offset`: what comes after is sent again.
    pub(super) fn handle_resumed(&mut self, offset: u64) -> Result<(), OutsideWindow> {
        // It may have more than it could say.
        self.handle_ack(offset)?;
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(chunks: u64) -> Window {
        let mut window = Window::default();
        for n in 0..chunks {
            assert!(window.has_room());
            window.push(1 << 20, Bytes::from(n.to_string()));
        }
        window
    }

    #[test]
    fn it_fills_and_empties_and_goes_on_where_the_receiver_is() {
        let mut window = window(8);
        assert!(!window.has_room());
        assert_eq!(window.poll_frame().unwrap(), "0");
        assert_eq!(window.poll_frame().unwrap(), "1");
        window.handle_ack(1 << 20).unwrap();
        assert!(window.has_room());
        assert_eq!(window.poll_frame().unwrap(), "2");
        // It got more than it could say.
        window.handle_resumed(2 << 20).unwrap();
        let rest: Vec<Bytes> = std::iter::from_fn(|| window.poll_frame()).collect();
        assert_eq!(rest, ["2", "3", "4", "5", "6", "7"]);
        window.handle_ack(8 << 20).unwrap();
        assert_eq!((window.acknowledged(), window.poll_frame()), (8 << 20, None));
        window.handle_resumed(8 << 20).unwrap();
    }

    #[test]
    fn nobody_has_what_was_not_sent_or_loses_what_it_had() {
        let mut window = window(4);
        assert!(window.handle_ack(1 << 20).is_err(), "nothing was sent");
        window.poll_frame();
        window.handle_ack(1 << 20).unwrap();
        assert!(window.handle_ack(0).is_err());
        assert!(window.handle_ack(2 << 20).is_err());
        window.poll_frame();
        assert!(window.handle_ack((1 << 20) + 1).is_err(), "within a chunk");
        assert!(window.handle_resumed(0).is_err());
        assert!(window.handle_resumed(5 << 20).is_err());
    }
}
