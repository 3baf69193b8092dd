//! A snapshot being sent: what is read from the pool, packed, and kept until it has arrived. Outlives the links it goes over.

use berth_common::id::SnapshotId;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

use super::frame::{self, CHUNK, HEADER, Position};
use super::pack::Packer;
use super::window::{OutsideWindow, Window};
use super::wire::TransferId;
use crate::volume::Sending;

/// Reads and packs.
pub(super) struct Source {
    stream: Sending,
    packer: Packer,
    filling: BytesMut,
    position: Position,
    ended: bool,
}

impl Source {
    pub(super) fn new(stream: Sending) -> std::io::Result<Self> {
        Ok(Self {
            stream,
            packer: Packer::new()?,
            filling: frame::room(),
            position: Position::default(),
            ended: false,
        })
    }

    /// Bytes read and packed.
    pub(super) const fn read(&self) -> u64 {
        self.position.offset
    }

    /// The next chunk's length and frame, or none at the end. Dropped half-way it loses nothing.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<(usize, Bytes)>> {
        while !self.ended && self.filling.len() < HEADER + CHUNK {
            let room = HEADER + CHUNK - self.filling.len();
            let mut bounded = (&mut self.stream).take(room as u64);
            self.ended = bounded.read_buf(&mut self.filling).await? == 0;
        }
        let content = &self.filling[HEADER..];
        if content.is_empty() {
            return Ok(None);
        }
        let (length, offset) = (content.len(), self.position.offset);
        self.position = self.position.after(content);
        let filled = std::mem::replace(&mut self.filling, frame::room());
        Ok(Some((length, self.packer.chunk(offset, filled))))
    }

    /// The frame of the end.
    pub(super) fn end(&self) -> Bytes {
        frame::end(self.position)
    }
}

/// What is kept, between who reads, who writes and who hears answers.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) window: Mutex<Window>,
    room: Notify,
    filled: Notify,
    end: Mutex<Option<Bytes>>,
}

/// What is written next.
pub(super) enum Next {
    /// A chunk's frame.
    Chunk(Bytes),
    /// The end's, after all chunks'.
    End(Bytes),
}

impl Kept {
    /// Adds a chunk's frame, `length` bytes uncompressed.
    pub(super) fn push(&self, length: usize, frame: Bytes) {
        self.window.lock().push(length, frame);
        self.filled.notify_one();
    }

    /// All was read.
    pub(super) fn ended(&self, frame: Bytes) {
        *self.end.lock() = Some(frame);
        self.filled.notify_one();
    }

    /// Waits for the next frame. After the end's there is none.
    pub(super) async fn next(&self) -> Next {
        loop {
            if let Some(frame) = self.window.lock().poll_frame() {
                return Next::Chunk(frame);
            }
            if let Some(end) = self.end.lock().clone() {
                return Next::End(end);
            }
            self.filled.notified().await;
        }
    }

    /// Waits until another chunk may be read.
    pub(super) async fn has_room(&self) {
        while !self.window.lock().has_room() {
            self.room.notified().await;
        }
    }

    /// The receiver has so much.
    pub(super) fn handle_ack(&self, offset: u64) -> Result<(), OutsideWindow> {
        self.window.lock().handle_ack(offset)?;
        self.room.notify_one();
        Ok(())
    }
}

/// A transfer that was begun.
pub(super) struct Body {
    pub(super) transfer: TransferId,
    pub(super) parent: Option<SnapshotId>,
    pub(super) source: Source,
    pub(super) kept: Kept,
}
