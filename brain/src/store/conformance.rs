//! What every store must do, run against each of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::Revision;
use proptest::prelude::*;

use super::memory::MemoryStore;
use super::sqlite::SqliteStore;
use super::{Compare, Op, Outcome, Store, StoreError, Watch};

fn put(key: &str, value: &str) -> Op {
    Op::Put(key.into(), value.as_bytes().to_vec())
}

fn all() -> Vec<(Arc<dyn Store>, Option<tempfile::TempDir>)> {
    let dir = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(&dir.path().join("s.db")).unwrap();
    vec![
        (Arc::new(MemoryStore::new()), None),
        (Arc::new(sqlite), Some(dir)),
    ]
}

#[tokio::test]
async fn transactions_compare_commit_and_log() {
    for (store, _dir) in all() {
        let absent = Compare {
            key: "/a".into(),
            revision: None,
        };
        let made = store
            .txn(vec![absent.clone()], vec![put("/a", "1"), put("/b", "1")])
            .await
            .unwrap();
        assert_eq!(made, Outcome::Committed(Revision(1)));
        assert_eq!(
            store.txn(vec![absent], vec![put("/a", "2")]).await.unwrap(),
            Outcome::Differs
        );
        let held = Compare {
            key: "/a".into(),
            revision: Some(Revision(1)),
        };
        let changed = store
            .txn(vec![held], vec![put("/a", "3"), Op::Delete("/b".into())])
            .await
            .unwrap();
        assert_eq!(changed, Outcome::Committed(Revision(2)));
        assert_eq!(
            store.txn(vec![], vec![]).await.unwrap(),
            Outcome::Committed(Revision(2))
        );
        let (entries, revision) = store.range("/".into(), None, 10).await.unwrap();
        assert_eq!(revision, Revision(2));
        assert_eq!(entries.len(), 1);
        let log = store.changes_after(Revision(0), 1).await.unwrap();
        assert_eq!(log.len(), 2, "a transaction is never split");
        assert_eq!(store.changes_after(Revision(1), 10).await.unwrap().len(), 2);
        store.compact(Revision(1)).await.unwrap();
        assert!(matches!(
            store.changes_after(Revision(0), 10).await,
            Err(StoreError::Compacted { .. })
        ));
        assert_eq!(store.changes_after(Revision(1), 10).await.unwrap().len(), 2);
        let mut watch = Watch::new(&*store, Revision(2));
        let (next, _) = tokio::join!(watch.next(), store.txn(vec![], vec![put("/c", "1")]));
        assert_eq!(next.unwrap()[0].key, "/c");
    }
}

#[tokio::test]
async fn paging_walks_everything_once() {
    for (store, _dir) in all() {
        for n in 0..25 {
            store
                .txn(vec![], vec![put(&format!("/x/{n:02}"), "v"), put("/y", "v")])
                .await
                .unwrap();
        }
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let (page, _) = store.range("/x/".into(), after.clone(), 7).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            seen.extend(page.into_iter().map(|e| e.key));
        }
        assert_eq!(seen.len(), 25);
        assert!(seen.is_sorted());
    }
}

#[tokio::test]
async fn r5_a_reopened_sqlite_store_has_what_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let store = SqliteStore::open(&path).unwrap();
    store.txn(vec![], vec![put("/a", "1")]).await.unwrap();
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(
        store.range("/".into(), None, 9).await.unwrap().0[0]
            .value
            .as_deref(),
        Some(&b"1"[..])
    );
    assert_eq!(*store.revisions().borrow(), Revision(1));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_a_cure() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    std::fs::write(&path, vec![7u8; 8192]).unwrap();
    let error = SqliteStore::open(&path)
        .err()
        .expect("damage is noticed")
        .to_string();
    assert!(error.contains("restore a backup"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn both_stores_agree_with_a_map(steps in proptest::collection::vec((0u8..6, 0u8..4, any::<bool>()), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut model: BTreeMap<String, String> = BTreeMap::new();
            let stores = all();
            for (n, (key, value, delete)) in steps.iter().enumerate() {
                let key = format!("/k/{key}");
                let op = if *delete { Op::Delete(key.clone()) } else { put(&key, &value.to_string()) };
                for (store, _) in &stores {
                    let outcome = store.txn(vec![], vec![op.clone()]).await.unwrap();
                    assert_eq!(outcome, Outcome::Committed(Revision(n as u64 + 1)));
                }
                if *delete { model.remove(&key); } else { model.insert(key, value.to_string()); }
            }
            for (store, _) in &stores {
                let (found, _) = store.range("/k/".into(), None, 100).await.unwrap();
                let found: BTreeMap<_, _> = found
                    .into_iter()
                    .map(|e| (e.key, String::from_utf8(e.value.unwrap()).unwrap()))
                    .collect();
                assert_eq!(found, model);
            }
        });
    }
}
