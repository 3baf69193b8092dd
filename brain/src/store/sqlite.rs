//! The store of a single brain: SQLite with a write-ahead log and full synchronisation.
//!
//! One connection on a thread of its own; requests queue up for it. `synchronous=FULL` with WAL makes every commit wait for
//! the disk (<https://www.sqlite.org/pragma.html#pragma_synchronous>), which is what R5 asks for.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use berth_common::id::Revision;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Compare, Entry, Op, Outcome, Store, StoreError};

const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
    CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE log (revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, PRIMARY KEY (revision, key)) WITHOUT ROWID;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('revision', 0), ('compacted', 0);
";

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// See the module.
pub struct SqliteStore {
    /// None once it is being closed.
    jobs: Option<mpsc::UnboundedSender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    news: watch::Sender<Revision>,
    path: PathBuf,
}

impl Drop for SqliteStore {
    /// Waits until the file is closed. SQLite's locks can block each other for ever when one thread closes a file while another
    /// opens it (seen in 3.51.1: `findReusableFd` against `sqlite3WalClose`).
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // It panicked only if a job did, which was told then.
            let _ = thread.join();
        }
    }
}

impl SqliteStore {
    /// Opens the store, making it if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] for a damaged file or one of a newer berth, with what to do.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let unusable = |why: String| StoreError::Unusable {
            path: shown.clone(),
            why,
        };
        // Made with its mode before SQLite sees it: no moment in which others can read it.
        std::os::unix::fs::OpenOptionsExt::mode(std::fs::OpenOptions::new().create(true).append(true), 0o600)
            .open(path)
            .map_err(|e| unusable(format!("{e}; check the folder, its owner and free space")))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let damaged = |e: rusqlite::Error| {
            unusable(format!(
                "{e}; the file may be damaged: stop the brain, keep a copy of it, and restore a backup or try `sqlite3 FILE .recover`"
            ))
        };
        let mut connection = Connection::open_with_flags(path, flags).map_err(damaged)?;
        connection
            .busy_timeout(std::time::Duration::from_secs(5))
            .map_err(damaged)?;
        let mode: String = connection
            .query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))
            .map_err(damaged)?;
        if mode != "wal" {
            return Err(unusable(format!(
                "no write-ahead log on this file system (got {mode:?}); use a local disk"
            )));
        }
        connection
            .execute_batch("PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;")
            .map_err(damaged)?;
        let check: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(damaged)?;
        if check != "ok" {
            return Err(unusable(format!(
                "{check}; restore a backup or try `sqlite3 FILE .recover`"
            )));
        }
        let version: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(damaged)?;
        match version {
            0 => {
                let transaction = connection.transaction().map_err(damaged)?;
                transaction.execute_batch(SCHEMA).map_err(damaged)?;
                transaction
                    .pragma_update(None, "user_version", SCHEMA_VERSION)
                    .map_err(damaged)?;
                transaction.commit().map_err(damaged)?;
            }
            SCHEMA_VERSION => {}
            newer => {
                return Err(unusable(format!(
                    "it has version {newer}, this brain knows {SCHEMA_VERSION}; start the newer brain that made it"
                )));
            }
        }
        let revision = meta(&connection, "revision").map_err(damaged)?;
        let (jobs, mut queue) = mpsc::unbounded_channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                while let Some(job) = queue.blocking_recv() {
                    job(&mut connection);
                }
            })
            .map_err(|e| unusable(format!("no thread for it: {e}")))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            news: watch::Sender::new(revision),
            path: path.to_path_buf(),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<rusqlite::Result<T>, StoreError> {
        let (answer, wait) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let _ = answer.send(work(connection));
        });
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job).map_err(|_| StoreError::Closed)?;
        wait.await.map_err(|_| StoreError::Closed)
    }

    fn read_error(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Read {
            path: self.path.display().to_string(),
            source: source.into(),
        }
    }
}

fn meta(connection: &Connection, name: &str) -> rusqlite::Result<Revision> {
    let value: i64 =
        connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0))?;
    Ok(Revision(value as u64))
}

fn commit(connection: &mut Connection, compare: &[Compare], ops: &[Op]) -> rusqlite::Result<Outcome> {
    // Dropping the transaction on any error rolls it back.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for wanted in compare {
        let found: Option<i64> = transaction
            .prepare_cached("SELECT revision FROM entries WHERE key = ?1")?
            .query_row([&wanted.key], |row| row.get(0))
            .optional()?;
        if found != wanted.revision.map(|r| r.0 as i64) {
            return Ok(Outcome::Differs);
        }
    }
    let held = meta(&transaction, "revision")?;
    if ops.is_empty() {
        return Ok(Outcome::Committed(held));
    }
    let revision = held.next();
    let number = revision.0 as i64;
    for op in ops {
        match op {
            Op::Put(key, value) => {
                transaction
                    .prepare_cached(
                        "INSERT OR REPLACE INTO entries (key, value, revision) VALUES (?1, ?2, ?3)",
                    )?
                    .execute(params![key, value, number])?;
                transaction
                    .prepare_cached("INSERT OR REPLACE INTO log (revision, key, value) VALUES (?1, ?2, ?3)")?
                    .execute(params![number, key, value])?;
            }
            Op::Delete(key) => {
                let removed = transaction
                    .prepare_cached("DELETE FROM entries WHERE key = ?1")?
                    .execute([key])?;
                if removed > 0 {
                    transaction
                        .prepare_cached(
                            "INSERT OR REPLACE INTO log (revision, key, value) VALUES (?1, ?2, NULL)",
                        )?
                        .execute(params![number, key])?;
                }
            }
        }
    }
    transaction
        .prepare_cached("UPDATE meta SET value = ?1 WHERE name = 'revision'")?
        .execute([number])?;
    transaction.commit()?;
    Ok(Outcome::Committed(revision))
}

#[async_trait]
impl Store for SqliteStore {
    async fn txn(&self, compare: Vec<Compare>, ops: Vec<Op>) -> Result<Outcome, StoreError> {
        let outcome = self
            .run(move |connection| commit(connection, &compare, &ops))
            .await?;
        let outcome = outcome.map_err(|source| StoreError::Write {
            path: self.path.display().to_string(),
            source: source.into(),
        })?;
        if let Outcome::Committed(revision) = outcome {
            self.news.send_if_modified(|held| {
                let newer = revision > *held;
                *held = revision.max(*held);
                newer
            });
        }
        Ok(outcome)
    }

    async fn range(
        &self,
        prefix: String,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<Entry>, Revision), StoreError> {
        let read = move |connection: &mut Connection| {
            let snapshot = connection.transaction()?;
            let from = after.as_deref().unwrap_or("");
            // The last possible key with this prefix: U+10FFFF sorts after every other character.
            let end = format!("{prefix}\u{10ffff}");
            let entries = {
                let mut statement = snapshot.prepare_cached(
                    "SELECT key, value, revision FROM entries WHERE key >= ?1 AND key > ?2 AND key < ?3 ORDER BY key LIMIT ?4",
                )?;
                let rows = statement.query_map(params![prefix, from, end, limit as i64], entry)?;
                rows.collect::<rusqlite::Result<Vec<_>>>()?
            };
            let revision = meta(&snapshot, "revision")?;
            Ok((entries, revision))
        };
        self.run(read).await?.map_err(|e| self.read_error(e))
    }

    async fn changes_after(&self, revision: Revision, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let read = move |connection: &mut Connection| {
            let snapshot = connection.transaction()?;
            let compacted = meta(&snapshot, "compacted")?;
            if revision < compacted {
                return Ok(Err(compacted));
            }
            // Up to the end of the transaction in which the limit is reached.
            let last: Option<i64> = snapshot
                .prepare_cached(
                    "SELECT revision FROM log WHERE revision > ?1 ORDER BY revision LIMIT 1 OFFSET ?2",
                )?
                .query_row(
                    params![revision.0 as i64, limit.saturating_sub(1) as i64],
                    |row| row.get(0),
                )
                .optional()?;
            let mut statement = snapshot.prepare_cached(
                "SELECT key, value, revision FROM log WHERE revision > ?1 AND revision <= ?2 ORDER BY revision, key",
            )?;
            let rows = statement.query_map(params![revision.0 as i64, last.unwrap_or(i64::MAX)], entry)?;
            rows.collect::<rusqlite::Result<Vec<_>>>().map(Ok)
        };
        let found = self.run(read).await?.map_err(|e| self.read_error(e))?;
        found.map_err(|oldest| StoreError::Compacted { oldest })
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let work = move |connection: &mut Connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let upto = revision.min(meta(&transaction, "revision")?).0 as i64;
            transaction.execute("DELETE FROM log WHERE revision <= ?1", [upto])?;
            transaction.execute(
                "UPDATE meta SET value = max(value, ?1) WHERE name = 'compacted'",
                [upto],
            )?;
            transaction.commit()
        };
        self.run(work).await?.map_err(|source| StoreError::Write {
            path: self.path.display().to_string(),
            source: source.into(),
        })
    }

    fn revisions(&self) -> watch::Receiver<Revision> {
        self.news.subscribe()
    }
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    let revision: i64 = row.get(2)?;
    Ok(Entry {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: Revision(revision as u64),
    })
}
