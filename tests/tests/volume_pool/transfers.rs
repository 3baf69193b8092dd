//! Snapshots from one pool to another.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use berth_agent::volume::stream::StreamError;
use berth_agent::volume::{Meta, Pool as _, VolumeError};
use berth_common::id::SnapshotId;
use berth_tests::process::run;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use super::bench::{Bench, meta};

/// What makes two trees equal: content, kind, mode, owners, links, blocks, attributes.
pub fn tree(top: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![top.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            let (path, stat) = (entry.path(), entry.path().symlink_metadata().unwrap());
            let content = match stat.file_type() {
                kind if kind.is_dir() => {
                    dirs.push(path.clone());
                    String::new()
                }
                kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                kind if kind.is_file() => hex::encode(Sha256::digest(fs::read(&path).unwrap())),
                other => format!("{other:?}"),
            };
            let line = format!(
                "{:o} {}:{} links {} size {} modified {} {content}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                if stat.is_dir() { 1 } else { stat.nlink() },
                stat.size(),
                stat.mtime()
            );
            found.insert(
                path.strip_prefix(top).unwrap().to_string_lossy().into_owned(),
                line,
            );
        }
    }
    found.insert("attributes".into(), attributes(&top.join("large")));
    found
}

fn attributes(path: &Path) -> String {
    let get = "import os,sys; print([(n, os.getxattr(sys.argv[1], n)) for n in os.listxattr(sys.argv[1])])";
    let text = run(Command::new("python3").args(["-c", get]).arg(path));
    assert!(text.contains("blue"), "{text}");
    text
}

pub fn furnish(data: &Path) {
    fs::create_dir_all(data.join("a/b")).unwrap();
    fs::write(data.join("a/b/file"), "content").unwrap();
    chown(data.join("a/b/file"), Some(1000), Some(1001)).unwrap();
    fs::hard_link(data.join("a/b/file"), data.join("a/link")).unwrap();
    symlink("/etc/passwd", data.join("a/symlink")).unwrap();
    let noise: Vec<u8> = (0..3u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(data.join("large"), noise).unwrap();
    let sparse = File::create(data.join("sparse")).unwrap();
    sparse.set_len(100 << 20).unwrap();
    sparse.write_at(b"end", 90 << 20).unwrap();
    run(Command::new("mkfifo").arg(data.join("fifo")));
    let set = "import os,sys; os.setxattr(sys.argv[1], 'user.colour', b'blue')";
    run(Command::new("python3").args(["-c", set]).arg(data.join("large")));
}

pub fn change(data: &Path) {
    fs::write(data.join("new"), vec![9; 1 << 20]).unwrap();
    fs::remove_file(data.join("a/link")).unwrap();
    fs::rename(data.join("a/b"), data.join("moved")).unwrap();
    File::options()
        .write(true)
        .open(data.join("large"))
        .unwrap()
        .write_at(b"changed", 12345)
        .unwrap();
}

async fn stream(bench: &Bench, of: &Meta, snapshot: SnapshotId, parent: Option<SnapshotId>) -> Vec<u8> {
    let mut all = Vec::new();
    let mut sending = bench.pool.send(of.id, snapshot, parent).await.unwrap();
    sending.read_to_end(&mut all).await.unwrap();
    all
}

#[tokio::test]
async fn a_volume_moves_whole_and_by_increments_and_goes_on_there() {
    let (here, there) = (Bench::new(512), Bench::new(512));
    let one = meta(128);
    here.pool.create(&one).await.unwrap();
    furnish(&here.data(&one));
    let (first, second, third) = (SnapshotId::random(), SnapshotId::random(), SnapshotId::random());
    let announced = here.pool.snapshot(one.id, first).await.unwrap().announced();
    let begin = Instant::now();
    let mut sending = here.pool.send(one.id, first, None).await.unwrap();
    let got = there
        .pool
        .receive(&one, first, announced, &mut sending)
        .await
        .unwrap();
    println!("a full copy of 3 MiB: {} ms", begin.elapsed().as_millis());
    assert_eq!(got.announced().uuid, announced.uuid);
    let at = |bench: &Bench, id: SnapshotId| bench.root().join(format!("v/{}/s/{id}", one.id));
    assert_eq!(tree(&at(&here, first)), tree(&at(&there, first)));
    assert!(
        fs::metadata(at(&there, first).join("sparse")).unwrap().blocks() < 1000,
        "holes stay holes"
    );

    change(&here.data(&one));
    let announced = here.pool.snapshot(one.id, second).await.unwrap().announced();
    let increment = stream(&here, &one, second, Some(first)).await;
    assert!(increment.len() < 2 << 20, "{}", increment.len());
    there
        .pool
        .receive(&one, second, announced, &mut &increment[..])
        .await
        .unwrap();
    // Once more: it is there, nothing is read.
    there
        .pool
        .receive(&one, second, announced, &mut &b""[..])
        .await
        .unwrap();
    assert_eq!(tree(&at(&here, second)), tree(&at(&there, second)));

    // Nobody writes to a copy; then it takes over, and increments go the other way.
    assert!(!there.data(&one).exists());
    there.pool.roll_back(one.id, second, None).await.unwrap();
    assert_eq!(tree(&there.data(&one)), tree(&here.data(&one)));
    here.pool.retire(one.id, None).await.unwrap();
    fs::write(there.data(&one).join("later"), "x").unwrap();
    let later = there.pool.snapshot(one.id, third).await.unwrap();
    let back = stream(&there, &one, third, Some(second)).await;
    here.pool
        .receive(&one, third, later.announced(), &mut &back[..])
        .await
        .unwrap();
    assert_eq!(tree(&at(&here, third)), tree(&at(&there, third)));
    let listing = there.pool.list().await.unwrap();
    assert!(listing.strange.is_empty(), "{listing:?}");
}

#[tokio::test]
async fn what_is_cut_short_or_damaged_leaves_nothing_and_says_why() {
    let (here, there) = (Bench::new(256), Bench::new(256));
    let one = meta(64);
    here.pool.create(&one).await.unwrap();
    furnish(&here.data(&one));
    let first = SnapshotId::random();
    let announced = here.pool.snapshot(one.id, first).await.unwrap().announced();
    let whole = stream(&here, &one, first, None).await;
    let clean = |bench: &Bench| {
        let left: Vec<_> = fs::read_dir(bench.root().join("v"))
            .unwrap()
            .flatten()
            .map(|e| e.path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(fs::read_dir(bench.root().join("tmp")).unwrap().next().is_none());
    };
    // Where commands end: there btrfs itself would be content.
    let mut ends = vec![17];
    while let Some(head) = whole.get(ends[ends.len() - 1]..ends[ends.len() - 1] + 4) {
        let length = u32::from_le_bytes(head.try_into().unwrap()) as usize;
        ends.push(ends[ends.len() - 1] + 10 + length);
    }
    assert_eq!(ends[ends.len() - 1], whole.len());
    for at in [
        0,
        5,
        17,
        ends[1],
        ends[3],
        ends[ends.len() / 2],
        whole.len() / 2,
        ends[ends.len() - 2],
        whole.len() - 1,
    ] {
        let error = there
            .pool
            .receive(&one, first, announced, &mut &whole[..at])
            .await
            .unwrap_err();
        let cut = matches!(&error, VolumeError::Stream { source: StreamError::CutShort(seen), .. } if *seen == at as u64);
        assert!(cut, "{at}: {error:?}");
        clean(&there);
    }
    for at in [
        3,
        14,
        18,
        30,
        60,
        ends[2] + 5,
        whole.len() / 3,
        whole.len() / 2,
        whole.len() - 9,
    ] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        let error = there
            .pool
            .receive(&one, first, announced, &mut &flipped[..])
            .await
            .unwrap_err();
        assert!(matches!(error, VolumeError::Stream { .. }), "{at}: {error:?}");
        clean(&there);
    }
    let mut other = announced;
    other.changed += 1;
    let error = there
        .pool
        .receive(&one, first, other, &mut &whole[..])
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            VolumeError::Stream {
                source: StreamError::Another { .. },
                ..
            }
        ),
        "{error:?}"
    );
    clean(&there);
    // An increment whose base is not there.
    fs::write(here.data(&one).join("more"), "x").unwrap();
    let second = SnapshotId::random();
    let next = here.pool.snapshot(one.id, second).await.unwrap().announced();
    let increment = stream(&here, &one, second, Some(first)).await;
    let error = there
        .pool
        .receive(&one, second, next, &mut &increment[..])
        .await
        .unwrap_err();
    let VolumeError::Stream {
        source: StreamError::Refused(why),
        ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert!(why.contains("parent"), "{why}");
    clean(&there);
    there
        .pool
        .receive(&one, first, announced, &mut &whole[..])
        .await
        .unwrap();
    there
        .pool
        .receive(&one, second, next, &mut &increment[..])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_dropped_stream_ends_its_sender() {
    let bench = Bench::new(256);
    let one = meta(64);
    bench.pool.create(&one).await.unwrap();
    furnish(&bench.data(&one));
    let first = SnapshotId::random();
    bench.pool.snapshot(one.id, first).await.unwrap();
    let mut sending = bench.pool.send(one.id, first, None).await.unwrap();
    sending.read_exact(&mut [0; 1000]).await.unwrap();
    let error = bench.pool.delete_snapshot(one.id, first).await.unwrap_err();
    assert!(
        matches!(error, VolumeError::BeingSent { .. }) && error.retryable(),
        "{error}"
    );
    drop(sending);
    let mut last = None;
    for _ in 0..100 {
        match bench.pool.delete_snapshot(one.id, first).await {
            Ok(()) => return,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{last:?}");
}
