//! What the brain must never forget (R5).
//!
//! Owns durability in etcd's model: one flat map of keys to bytes under one growing revision, transactions with comparisons, a
//! change log to resume from. So etcd can stand behind the same trait. Refuses to interpret values; the cluster does that.

pub mod memory;
pub mod sqlite;

use async_trait::async_trait;
use berth_common::id::Revision;

/// Why the store failed. Whatever was asked has not happened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full, read-only or broken.
    #[error("the store at {path} can't be written")]
    Write {
        /// Its file.
        path: String,
        /// The engine's complaint.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is damaged or of a newer version.
    #[error("the store at {path} can't be used: {why}")]
    Unusable {
        /// Its file.
        path: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// Reading failed.
    #[error("the store at {path} can't be read")]
    Read {
        /// Its file.
        path: String,
        /// The engine's complaint.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The changes asked for are no longer kept.
    #[error("changes before revision {oldest} are no longer kept")]
    Compacted {
        /// The oldest revision after which changes are complete.
        oldest: Revision,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// What a key must be for a transaction to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// Revision of its last change; none: it must not exist.
    pub revision: Option<Revision>,
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Set a key.
    Put(String, Vec<u8>),
    /// Remove a key; a missing one is no error.
    Delete(String),
}

impl Op {
    /// Its key.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All writes happened, at this revision.
    Committed(Revision),
    /// A comparison failed; nothing happened.
    Differs,
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Its value; none in the change log: deleted.
    pub value: Option<Vec<u8>>,
    /// Revision of the change.
    pub revision: Revision,
}

/// The store.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Does all of `ops` durably, or nothing if a comparison fails. An empty `ops` changes nothing and keeps the revision.
    async fn txn(&self, compare: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError>;

    /// Keys beginning with `prefix` in order, after the key `after`, at most `limit`, and the revision they are from.
    async fn range(
        &self,
        prefix: String,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<Entry>, Revision), StoreError>;

    /// Changes after `revision` in order, at most `limit`, never splitting a transaction.
    async fn changes_after(&self, revision: Revision, limit: usize) -> Result<Vec<Entry>, StoreError>;

    /// Forgets the change log up to and including `revision`; current values stay.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// The newest revision, for those who wait for changes.
    fn revisions(&self) -> tokio::sync::watch::Receiver<Revision>;
}

/// Follows changes from a revision on, first from the log, then as they come.
pub struct Watch<'a> {
    store: &'a dyn Store,
    at: Revision,
    news: tokio::sync::watch::Receiver<Revision>,
}

impl<'a> Watch<'a> {
    /// Changes after `from`.
    pub fn new(store: &'a dyn Store, from: Revision) -> Self {
        Self {
            store,
            at: from,
            news: store.revisions(),
        }
    }

    /// The next changes, at least one; waits for them.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if they are gone already: read everything and watch anew.
    pub async fn next(&mut self) -> Result<Vec<Entry>, StoreError> {
        loop {
            let changes = self.store.changes_after(self.at, 1_000).await?;
            if let Some(last) = changes.last() {
                self.at = last.revision;
                return Ok(changes);
            }
            self.news.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }
}

#[cfg(test)]
mod conformance;
