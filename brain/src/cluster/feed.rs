//! A bounded ring that many readers follow at their own pace.
//!
//! Owns the last so many items and their positions. A reader holds a position and nothing else, so a slow one costs no
//! memory; when the ring has moved past it, it is told ([`Lagged`]) instead of silently missing items.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// The reader was too slow: items between its position and the oldest kept one are gone. Read a snapshot and follow anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reader fell behind and missed {missed} changes; read the current state and watch again")]
pub struct Lagged {
    /// How many items are missing at least.
    pub missed: u64,
}

struct Ring<T> {
    items: VecDeque<(Arc<T>, usize)>,
    /// Position of `items[0]`.
    first: u64,
    weight: usize,
}

/// The writing end.
pub struct Feed<T> {
    ring: Mutex<Ring<T>>,
    head: watch::Sender<u64>,
    max_items: usize,
    max_weight: usize,
}

impl<T> Feed<T> {
    /// Keeps at most `max_items` items whose weights add up to at most `max_weight` (always the newest one).
    pub fn new(max_items: usize, max_weight: usize) -> Arc<Self> {
        Arc::new(Self {
            ring: Mutex::new(Ring {
                items: VecDeque::new(),
                first: 0,
                weight: 0,
            }),
            head: watch::Sender::new(0),
            max_items,
            max_weight,
        })
    }

    /// Adds an item and wakes readers.
    pub fn push(&self, item: Arc<T>, weight: usize) {
        let mut ring = self.ring.lock();
        ring.items.push_back((item, weight));
        ring.weight += weight;
        while ring.items.len() > 1 && (ring.items.len() > self.max_items || ring.weight > self.max_weight) {
            if let Some((_, gone)) = ring.items.pop_front() {
                ring.weight -= gone;
                ring.first += 1;
            }
        }
        let head = ring.first + ring.items.len() as u64;
        drop(ring);
        self.head.send_replace(head);
    }

    /// A reader that begins at the first kept item for which `wanted` holds, else after the newest.
    pub fn follow_from(self: &Arc<Self>, wanted: impl Fn(&T) -> bool) -> Cursor<T> {
        let ring = self.ring.lock();
        let skip = ring
            .items
            .iter()
            .position(|(item, _)| wanted(item))
            .unwrap_or(ring.items.len());
        Cursor {
            next: ring.first + skip as u64,
            head: self.head.subscribe(),
            feed: Arc::clone(self),
        }
    }

    /// A reader of what comes from now on.
    pub fn follow(self: &Arc<Self>) -> Cursor<T> {
        self.follow_from(|_| false)
    }

    /// Looks at the oldest kept item.
    pub fn oldest(&self) -> Option<Arc<T>> {
        self.ring.lock().items.front().map(|(item, _)| Arc::clone(item))
    }

    /// The newest kept items for which `wanted` holds, oldest of them first, at most `limit`.
    pub fn newest(&self, limit: usize, wanted: impl Fn(&T) -> bool) -> Vec<Arc<T>> {
        let ring = self.ring.lock();
        let mut found: Vec<_> = ring
            .items
            .iter()
            .rev()
            .filter(|(item, _)| wanted(item))
            .take(limit)
            .map(|(i, _)| Arc::clone(i))
            .collect();
        found.reverse();
        found
    }
}

/// The reading end.
pub struct Cursor<T> {
    feed: Arc<Feed<T>>,
    head: watch::Receiver<u64>,
    next: u64,
}

impl<T> Cursor<T> {
    /// The next item, waiting for it. Cancel-safe.
    ///
    /// # Errors
    /// [`Lagged`] once the ring has moved past this reader; it is then at the oldest kept item.
    pub async fn next(&mut self) -> Result<Arc<T>, Lagged> {
        loop {
            if let Some(item) = self.ready()? {
                return Ok(item);
            }
            // The sender lives in `feed`, which this reader keeps alive: it can't be closed.
            let _ = self.head.changed().await;
        }
    }

    /// The next item if it is there already.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn ready(&mut self) -> Result<Option<Arc<T>>, Lagged> {
        self.head.mark_unchanged();
        let ring = self.feed.ring.lock();
        if self.next < ring.first {
            let missed = ring.first - self.next;
            self.next = ring.first;
            return Err(Lagged { missed });
        }
        let at = usize::try_from(self.next - ring.first).unwrap_or(usize::MAX);
        let Some((item, _)) = ring.items.get(at) else {
            return Ok(None);
        };
        self.next += 1;
        Ok(Some(Arc::clone(item)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_get_every_item_or_are_told() {
        let feed = Feed::new(3, 100);
        let mut early = feed.follow();
        for n in 0..3 {
            feed.push(Arc::new(n), 1);
        }
        for n in 0..3 {
            assert_eq!(*early.next().await.unwrap(), n);
        }
        assert_eq!(early.ready().unwrap(), None);
        for n in 3..8 {
            feed.push(Arc::new(n), 1);
        }
        assert_eq!(early.next().await.unwrap_err(), Lagged { missed: 2 });
        assert_eq!(*early.next().await.unwrap(), 5);
        assert_eq!(*feed.follow_from(|n| *n >= 6).next().await.unwrap(), 6);
        assert_eq!(
            feed.newest(2, |n| n % 2 == 1)
                .iter()
                .map(|n| **n)
                .collect::<Vec<_>>(),
            [5, 7]
        );
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let feed = Feed::new(3, 100);
        let mut reader = feed.follow();
        let waiting = tokio::spawn(async move { reader.next().await.map(|n| *n) });
        tokio::task::yield_now().await;
        feed.push(Arc::new(7), 1);
        assert_eq!(waiting.await.unwrap().unwrap(), 7);
    }

    #[test]
    fn heavy_items_push_out_light_ones() {
        let feed = Feed::new(100, 10);
        feed.push(Arc::new(1), 5);
        feed.push(Arc::new(2), 50);
        assert_eq!(*feed.oldest().unwrap(), 2);
    }
}
