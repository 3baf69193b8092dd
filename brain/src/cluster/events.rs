//! The event log: the last 10,000 things that happened, for people. Not durable: it explains, it decides nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_common::api::EventView;
use berth_common::model::UnixMillis;

use super::feed::{Cursor, Feed};
use crate::controllers::NewEvent;

const KEPT: usize = 10_000;

/// The ring of recent events.
pub struct EventLog {
    feed: Arc<Feed<EventView>>,
    next: AtomicU64,
}

impl EventLog {
    /// An empty log. Sequence numbers begin at `started` (milliseconds since 1970), so that they go on growing over
    /// restarts as long as fewer than a thousand events a second happen on average.
    pub fn new(started: UnixMillis) -> Self {
        Self {
            feed: Feed::new(KEPT, usize::MAX),
            next: AtomicU64::new(started.0.max(1)),
        }
    }

    /// Adds an event.
    pub fn push(&self, event: NewEvent, at: UnixMillis) {
        let view = EventView {
            sequence: self.next.fetch_add(1, Ordering::Relaxed),
            at,
            kind: event.kind.to_owned(),
            tenant: event.tenant,
            subject: event.subject,
            text: event.text,
        };
        self.feed.push(Arc::new(view), 1);
    }

    /// The newest events for which `wanted` holds, oldest of them first, at most `limit`.
    pub fn newest(&self, limit: usize, wanted: impl Fn(&EventView) -> bool) -> Vec<Arc<EventView>> {
        self.feed.newest(limit, wanted)
    }

    /// Events from now on.
    pub fn subscribe(&self) -> Cursor<EventView> {
        self.feed.follow()
    }

    /// Events after a sequence number, as far as they are kept, then those to come.
    pub fn subscribe_after(&self, sequence: u64) -> Cursor<EventView> {
        self.feed.follow_from(|event| event.sequence > sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sequences_grow_and_readers_resume() {
        let log = EventLog::new(UnixMillis(100));
        for n in 0..3 {
            let event = NewEvent {
                kind: "placed",
                tenant: None,
                subject: format!("container {n}"),
                text: String::new(),
            };
            log.push(event, UnixMillis(n));
        }
        assert_eq!(
            log.newest(10, |_| true)
                .iter()
                .map(|e| e.sequence)
                .collect::<Vec<_>>(),
            [100, 101, 102]
        );
        assert_eq!(log.subscribe_after(101).next().await.unwrap().sequence, 102);
    }
}
