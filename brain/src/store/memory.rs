//! A working store in memory, for tests and simulations, that can be told to fail.

use std::collections::BTreeMap;

use async_trait::async_trait;
use berth_common::id::Revision;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Compare, Entry, Op, Outcome, Store, StoreError};

#[derive(Default)]
struct Inner {
    values: BTreeMap<String, (Vec<u8>, Revision)>,
    log: Vec<Entry>,
    revision: Revision,
    compacted: Revision,
    fail_writes: u32,
}

/// See the module.
pub struct MemoryStore {
    inner: Mutex<Inner>,
    news: watch::Sender<Revision>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self {
            inner: Mutex::default(),
            news: watch::Sender::new(Revision(0)),
        }
    }

    /// Lets the next `count` transactions fail as a full disk would.
    pub fn fail_writes(&self, count: u32) {
        self.inner.lock().fail_writes = count;
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn txn(&self, compare: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        let mut inner = self.inner.lock();
        if inner.fail_writes > 0 {
            inner.fail_writes -= 1;
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull).into();
            return Err(StoreError::Write {
                path: "memory".into(),
                source,
            });
        }
        let differs = compare
            .iter()
            .any(|c| inner.values.get(&c.key).map(|(_, revision)| *revision) != c.revision);
        if differs {
            return Ok(Outcome::Differs);
        }
        if ops.is_empty() {
            return Ok(Outcome::Committed(inner.revision));
        }
        let revision = inner.revision.next();
        inner.revision = revision;
        for op in ops {
            let (key, value) = match op {
                Op::Put(key, value) => {
                    inner.values.insert(key.clone(), (value.clone(), revision));
                    (key, Some(value))
                }
                Op::Delete(key) => {
                    if inner.values.remove(&key).is_none() {
                        continue;
                    }
                    (key, None)
                }
            };
            inner.log.retain(|e| e.revision != revision || e.key != key);
            inner.log.push(Entry { key, value, revision });
        }
        drop(inner);
        self.news.send_replace(revision);
        Ok(Outcome::Committed(revision))
    }

    async fn range(
        &self,
        prefix: String,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<Entry>, Revision), StoreError> {
        let inner = self.inner.lock();
        let found = inner
            .values
            .range(prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&prefix))
            .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after))
            .take(limit)
            .map(|(key, (value, revision))| Entry {
                key: key.clone(),
                value: Some(value.clone()),
                revision: *revision,
            })
            .collect();
        Ok((found, inner.revision))
    }

    async fn changes_after(&self, revision: Revision, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let inner = self.inner.lock();
        if revision < inner.compacted {
            return Err(StoreError::Compacted {
                oldest: inner.compacted,
            });
        }
        let mut found: Vec<Entry> = Vec::new();
        for entry in inner.log.iter().filter(|e| e.revision > revision) {
            if found.len() >= limit && found.last().is_some_and(|last| last.revision != entry.revision) {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let mut inner = self.inner.lock();
        let revision = revision.min(inner.revision);
        inner.compacted = inner.compacted.max(revision);
        inner.log.retain(|e| e.revision > revision);
        Ok(())
    }

    fn revisions(&self) -> watch::Receiver<Revision> {
        self.news.subscribe()
    }
}
