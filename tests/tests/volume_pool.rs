//! Volumes on a real btrfs in a loop file: limits, snapshots, transfers, mounts, and a pool that is damaged in many ways.

#[path = "volume_pool/bench.rs"]
mod bench;
#[path = "volume_pool/damage.rs"]
mod damage;
#[path = "volume_pool/peers.rs"]
mod peers;
#[path = "volume_pool/transfers.rs"]
mod transfers;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use bench::{Bench, fill, meta};
use berth_agent::volume::pool_apply::ensure;
use berth_agent::volume::{Pool as _, VolumeError, Wanted, pool_remove};
use berth_common::id::{Epoch, SnapshotId};
use berth_common::units::Bytes;
use berth_tests::process::run;

#[tokio::test]
async fn a_volume_holds_what_it_may_and_no_more_and_its_size_changes_in_use() {
    let bench = Bench::new(512);
    let (one, two) = (meta(16), meta(64));
    bench.pool.create(&one).await.unwrap();
    bench.pool.create(&two).await.unwrap();
    bench.pool.create(&one).await.unwrap();
    let (data, other) = (bench.data(&one), bench.data(&two));
    let top = fs::metadata(&data).unwrap();
    assert_eq!((top.uid(), top.gid(), top.mode() & 0o7777), (0, 0, 0o755));

    let (written, error) = fill(&data.join("f"), 40);
    assert_eq!(error, Some(nix::errno::Errno::EDQUOT));
    assert!((12 << 20..=16 << 20).contains(&written), "{written}");
    assert_eq!(
        fill(&other.join("f"), 32),
        (32 << 20, None),
        "the neighbour has its own"
    );

    bench.pool.resize(one.id, Bytes::mib(64)).await.unwrap();
    assert_eq!(fill(&data.join("f"), 40), (40 << 20, None));
    let error = bench.pool.resize(one.id, Bytes::mib(20)).await.unwrap_err();
    assert!(
        matches!(error, VolumeError::TooSmall { wanted, used, .. } if wanted == Bytes::mib(20) && used >= Bytes::mib(40)),
        "{error}"
    );
    fs::remove_file(data.join("f")).unwrap();
    bench.pool.resize(one.id, Bytes::mib(20)).await.unwrap();
    let (written, error) = fill(&data.join("f"), 40);
    assert_eq!(error, Some(nix::errno::Errno::EDQUOT));
    assert!((16 << 20..=20 << 20).contains(&written), "{written}");

    let listing = bench.pool.list().await.unwrap();
    assert_eq!(
        (listing.volumes.len(), listing.strange.len()),
        (2, 0),
        "{listing:?}"
    );
    let held = listing
        .volumes
        .iter()
        .find(|volume| volume.meta.id == one.id)
        .unwrap();
    assert_eq!(held.meta.size, Bytes::mib(20));
    assert_eq!(held.data.as_ref().unwrap().limit, Some(Bytes::mib(20)));
    let mut stranger = meta(20);
    stranger.id = one.id;
    let error = bench.pool.create(&stranger).await.unwrap_err();
    assert!(error.to_string().contains("another tenant"), "{error}");
    assert!(matches!(
        bench.pool.create(&meta(0)).await,
        Err(VolumeError::LeastSize(_))
    ));
    bench.pool.delete(one.id).await.unwrap();
    bench.pool.delete(one.id).await.unwrap();
    assert!(!data.exists() && other.exists());
}

#[tokio::test]
async fn snapshots_clones_and_roll_backs_have_the_content_of_their_moment() {
    let bench = Bench::new(512);
    let one = meta(32);
    let (first, second, kept, old) = (
        SnapshotId::random(),
        SnapshotId::random(),
        SnapshotId::random(),
        SnapshotId::random(),
    );
    bench.pool.create(&one).await.unwrap();
    let file = bench.data(&one).join("file");
    fs::write(&file, "first").unwrap();
    let taken = bench.pool.snapshot(one.id, first).await.unwrap();
    fs::write(&file, "second").unwrap();
    bench.pool.snapshot(one.id, second).await.unwrap();
    assert_eq!(
        bench.pool.snapshot(one.id, first).await.unwrap().uuid,
        taken.uuid,
        "not taken anew"
    );
    let in_snapshot = bench.root().join(format!("v/{}/s/{first}/file", one.id));
    assert_eq!(fs::read_to_string(&in_snapshot).unwrap(), "first");
    assert!(fs::write(&in_snapshot, "x").is_err(), "read-only");

    let copy = meta(24);
    bench.pool.clone_snapshot(one.id, first, &copy).await.unwrap();
    bench.pool.clone_snapshot(one.id, first, &copy).await.unwrap();
    assert_eq!(
        fs::read_to_string(bench.data(&copy).join("file")).unwrap(),
        "first"
    );
    let (written, error) = fill(&bench.data(&copy).join("f"), 40);
    assert!(
        error.is_some() && written <= 24 << 20,
        "a clone has a limit too: {written}"
    );

    fs::write(&file, "third").unwrap();
    for _ in 0..2 {
        // The second time it has been done.
        bench.pool.roll_back(one.id, first, Some(kept)).await.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "first");
    }
    let of = |id: SnapshotId| bench.root().join(format!("v/{}/s/{id}/file", one.id));
    assert_eq!(fs::read_to_string(of(kept)).unwrap(), "third");
    let (written, error) = fill(&bench.data(&one).join("f"), 40);
    assert!(
        error.is_some() && written <= 32 << 20,
        "limited after a roll back: {written}"
    );
    bench.pool.roll_back(one.id, second, None).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "second");

    let large = SnapshotId::random();
    assert_eq!(fill(&bench.data(&one).join("f"), 20).1, None);
    bench.pool.snapshot(one.id, large).await.unwrap();
    let small = meta(8);
    let error = bench
        .pool
        .clone_snapshot(one.id, large, &small)
        .await
        .unwrap_err();
    assert!(matches!(error, VolumeError::TooSmall { .. }), "{error}");
    assert!(!bench.data(&small).exists());

    bench.pool.retire(one.id, Some(old)).await.unwrap();
    bench.pool.retire(one.id, Some(old)).await.unwrap();
    assert!(!file.exists());
    assert!(matches!(
        bench.pool.snapshot(one.id, SnapshotId::random()).await,
        Err(VolumeError::OnlyCopy(_))
    ));
    bench.pool.roll_back(one.id, old, None).await.unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "second");
    for id in [first, first, second] {
        bench.pool.delete_snapshot(one.id, id).await.unwrap();
    }
    let listing = bench.pool.list().await.unwrap();
    let held = listing
        .volumes
        .iter()
        .find(|volume| volume.meta.id == one.id)
        .unwrap();
    assert_eq!(held.snapshots.len(), 3);
    assert!(
        held.snapshots
            .iter()
            .all(|s| s.read_only && !s.uuid.is_nil() && s.generation > 0)
    );
    assert!(
        fs::read_dir(bench.root().join("tmp")).unwrap().next().is_none(),
        "nothing is left over"
    );
}

#[tokio::test]
async fn r2_an_epoch_never_goes_back_and_mounts_need_it() {
    let bench = Bench::new(256);
    let one = meta(16);
    bench.pool.create(&one).await.unwrap();
    bench.pool.set_epoch(one.id, Epoch(5)).await.unwrap();
    bench.pool.set_epoch(one.id, Epoch(5)).await.unwrap();
    let error = bench.pool.set_epoch(one.id, Epoch(4)).await.unwrap_err();
    assert!(
        matches!(error, VolumeError::Epoch { .. }) && !error.retryable(),
        "{error}"
    );
    let bench = bench.again();
    let wanted = Wanted {
        volume: one.id,
        epoch: Epoch(4),
        snapshot: None,
        target: bench.dir.path().join("m"),
        base: 0,
        read_only: false,
    };
    let error = bench.pool.mount(&wanted).await.unwrap_err();
    assert!(
        matches!(error, VolumeError::Epoch { held: Epoch(5), .. }),
        "{error}"
    );
}

/// As where a disk with an older state of the pool is looked into.
#[tokio::test]
async fn what_another_file_system_has_under_the_same_id_is_not_this_pools() {
    let (here, there) = (Bench::new(256), Bench::new(256));
    let one = meta(16);
    for bench in [&here, &there] {
        bench.pool.create(&one).await.unwrap();
    }
    let target = there.dir.path().join("m");
    let wanted = Wanted {
        volume: one.id,
        epoch: one.epoch,
        snapshot: None,
        target: target.clone(),
        base: 0,
        read_only: false,
    };
    there.pool.mount(&wanted).await.unwrap();
    assert_eq!(there.pool.mounted().await.unwrap(), [(target, one.id)]);
    assert_eq!(here.pool.mounted().await.unwrap(), []);
    here.pool.delete(one.id).await.unwrap();
    let error = there.pool.delete(one.id).await.unwrap_err();
    assert!(matches!(error, VolumeError::Mounted { .. }), "{error}");
}

#[tokio::test]
async fn a_container_of_any_range_owns_what_its_root_owns() {
    let bench = Bench::new(256);
    let one = meta(16);
    bench.pool.create(&one).await.unwrap();
    let data = bench.data(&one);
    fs::write(data.join("mine"), "x").unwrap();
    fs::write(data.join("other"), "x").unwrap();
    chown(data.join("other"), Some(1000), Some(1000)).unwrap();
    let target = bench.dir.path().join("mounts/web");
    for base in [0x7001_0000, 0x7002_0000] {
        let wanted = Wanted {
            volume: one.id,
            epoch: one.epoch,
            snapshot: None,
            target: target.clone(),
            base,
            read_only: false,
        };
        for _ in 0..2 {
            bench.pool.mount(&wanted).await.unwrap();
        }
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(table.matches(target.to_str().unwrap()).count(), 1, "mounted once");
        let owner = |name: &str| fs::metadata(target.join(name)).unwrap().uid();
        assert_eq!(
            (owner(""), owner("mine"), owner("other")),
            (base, base, base + 1000)
        );
        // As the container's root: not the host's.
        let made = target.join(format!("made-{base}"));
        let as_root = Command::new("setpriv")
            .args([
                "--reuid",
                &base.to_string(),
                "--regid",
                &base.to_string(),
                "--clear-groups",
            ])
            .args(["sh", "-c", "echo x > \"$0\""])
            .arg(&made)
            .status()
            .unwrap();
        let reachable = fs::metadata(bench.dir.path()).unwrap().mode() & 0o001 != 0;
        assert!(as_root.success() && reachable, "{as_root}");
        let stored = fs::metadata(data.join(format!("made-{base}"))).unwrap();
        assert_eq!(
            (stored.uid(), stored.gid()),
            (0, 0),
            "on the disk it is root's of any range"
        );
    }
    let error = bench.pool.delete(one.id).await.unwrap_err();
    assert!(
        matches!(&error, VolumeError::Mounted { at, .. } if *at == target),
        "{error}"
    );
    let wanted = Wanted {
        volume: one.id,
        epoch: one.epoch,
        snapshot: None,
        target: target.clone(),
        base: 0x7002_0000,
        read_only: true,
    };
    bench.pool.mount(&wanted).await.unwrap();
    let error = fs::write(target.join("mine"), "y").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EROFS as i32));
    for _ in 0..2 {
        bench.pool.unmount(target.clone()).await.unwrap();
        assert!(!target.exists());
    }
    bench.pool.delete(one.id).await.unwrap();
}

#[tokio::test]
async fn subvolumes_that_a_container_made_are_told_and_go_with_the_volume() {
    let bench = Bench::new(256);
    let one = meta(16);
    bench.pool.create(&one).await.unwrap();
    let data = bench.data(&one);
    fs::create_dir(data.join("deep")).unwrap();
    let made = |path: &Path| {
        run(Command::new("btrfs")
            .args(["-q", "subvolume", "create"])
            .arg(path));
    };
    // Without any privilege.
    chown(data.join("deep"), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(bench.root(), fs::Permissions::from_mode(0o755)).unwrap();
    made(&data.join("deep/a"));
    made(&data.join("deep/a/b"));
    fs::create_dir(data.join("deep/a/b/dir")).unwrap();
    made(&data.join("deep/a/b/dir/c"));
    made(&data.join("plain"));
    for path in ["deep/a/b", "deep/a", ""] {
        run(Command::new("btrfs")
            .args(["property", "set", "-ts"])
            .arg(data.join(path))
            .args(["ro", "true"]));
    }
    let listing = bench.pool.list().await.unwrap();
    assert!(listing.strange[0].contains("made 2 subvolumes"), "{listing:?}");
    assert!(listing.volumes[0].data.as_ref().unwrap().read_only);
    let snapshot = SnapshotId::random();
    bench.pool.snapshot(one.id, snapshot).await.unwrap();
    bench.pool.delete(one.id).await.unwrap();
    let listing = bench.pool.list().await.unwrap();
    assert_eq!(
        (listing.volumes.len(), listing.strange.len()),
        (0, 0),
        "{listing:?}"
    );
    assert!(fs::read_dir(bench.root().join("tmp")).unwrap().next().is_none());
}

#[tokio::test]
async fn many_volumes_and_snapshots_take_the_time_that_is_printed() {
    let bench = Bench::in_memory(1024);
    let begin = Instant::now();
    let mut lap = begin;
    let mut told = |what: &str| {
        println!("{what}: {} ms", lap.elapsed().as_millis());
        lap = Instant::now();
    };
    let metas: Vec<_> = (0..200).map(|_| meta(8)).collect();
    for meta in &metas {
        bench.pool.create(meta).await.unwrap();
    }
    told("200 volumes");
    for round in 0..5 {
        for meta in &metas {
            fs::write(bench.data(meta).join("f"), format!("{round}")).unwrap();
            bench.pool.snapshot(meta.id, SnapshotId::random()).await.unwrap();
        }
    }
    told("1,000 snapshots");
    let listing = bench.pool.list().await.unwrap();
    told("listing them");
    assert_eq!(
        listing.volumes.iter().map(|v| v.snapshots.len()).sum::<usize>(),
        1000
    );
    assert!(listing.strange.is_empty(), "{:?}", listing.strange);
    fs::write(bench.data(&metas[0]).join("g"), vec![7; 1 << 20]).unwrap();
    bench.pool.resize(metas[0].id, Bytes::mib(4)).await.unwrap();
    told("a shrink, with its commit");
    let bench = bench.again();
    told("opening the pool anew");
    for meta in &metas {
        bench.pool.delete(meta.id).await.unwrap();
    }
    told("deleting all");
}

#[tokio::test]
async fn a_pool_is_taken_away_when_nothing_is_in_it_and_not_before() {
    let bench = Bench::new(256);
    let meta = meta(8);
    bench.pool.create(&meta).await.unwrap();
    let settings = bench.settings.clone();
    let stays = pool_remove::take_away(&settings).unwrap_err().to_string();
    assert!(
        stays.contains("(1)") && stays.contains("berth volume move"),
        "{stays}"
    );
    assert_eq!(bench.pool.list().await.unwrap().volumes.len(), 1);
    bench.pool.delete(meta.id).await.unwrap();
    let bench = bench.closed();
    pool_remove::take_away(&settings).unwrap();
    assert!(!settings.dir.exists() && !settings.marker().exists());
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&settings.dir.display().to_string()));
    // Again is fine, and the next begins anew.
    pool_remove::take_away(&settings).unwrap();
    ensure(&settings).unwrap();
    assert!(settings.file().exists());
    drop(bench);
}
