//! A snapshot being sent: what is read from the pool, packed, and kept until it has arrived. Outlives the links it goes over.

use berth_common::id::SnapshotId;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;

use super::frame::{self, CHUNK, Position};
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
            filling: BytesMut::with_capacity(CHUNK),
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
        while !self.ended && self.filling.len() < CHUNK {
            let room = CHUNK - self.filling.len();
            let mut bounded = (&mut self.stream).take(room as u64);
            self.ended = bounded.read_buf(&mut self.filling).await? == 0;
        }
        if self.filling.is_empty() {
            return Ok(None);
        }
        let frame = self.packer.chunk(self.position.offset, &self.filling);
        let length = self.filling.len();
        self.position = self.position.after(&self.filling);
        self.filling.clear();
        Ok(Some((length, frame)))
    }

    /// The frame of the end.
    pub(super) fn end(&self) -> Bytes {
        frame::end(self.position)
    }
}

/// What is kept, between who writes and who hears answers.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) window: Mutex<Window>,
    room: Notify,
}

impl Kept {
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
