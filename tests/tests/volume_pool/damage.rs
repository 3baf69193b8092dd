//! Pools after reboots, kills, lost files, full and read-only disks.

use std::fs::{self, File};
use std::process::Command;

use berth_agent::volume::pool::Settings;
use berth_agent::volume::pool_apply::ensure;
use berth_agent::volume::pool_error::PoolError;
use berth_agent::volume::{BtrfsPool, Pool as _};
use berth_common::id::SnapshotId;
use berth_common::units::Bytes;
use berth_tests::process::run;

use super::bench::{Bench, Unmounts, fill, meta, wait_detached};

#[tokio::test]
async fn a_pool_comes_back_after_a_reboot_and_grows_and_a_lost_file_is_no_empty_pool() {
    let bench = Bench::new(256);
    let (one, snapshot) = (meta(16), SnapshotId::random());
    bench.pool.create(&one).await.unwrap();
    fs::write(bench.data(&one).join("file"), "here").unwrap();
    bench.pool.snapshot(one.id, snapshot).await.unwrap();
    let before = bench.pool.list().await.unwrap();
    assert_eq!(ensure(&bench.settings).unwrap(), bench.ready, "already so");
    let options = run(Command::new("findmnt").args(["-no", "OPTIONS"]).arg(bench.root()));
    for wanted in ["noatime", "nodev", "nosuid"] {
        assert!(options.contains(wanted), "{options}");
    }
    let bench = bench.again();
    let after = bench.pool.list().await.unwrap();
    assert_eq!(before.volumes[0].meta, after.volumes[0].meta);
    assert_eq!(
        before.volumes[0].snapshots[0].uuid,
        after.volumes[0].snapshots[0].uuid
    );
    assert_eq!(fs::read_to_string(bench.data(&one).join("file")).unwrap(), "here");
    let (_, error) = fill(&bench.data(&one).join("f"), 30);
    assert!(error.is_some(), "limited as before");

    let larger = Settings {
        size: Some(Bytes::mib(512)),
        ..bench.settings.clone()
    };
    let size = |bench: &Bench| {
        let stat = nix::sys::statvfs::statvfs(&bench.root()).unwrap();
        stat.blocks() * stat.fragment_size()
    };
    assert!(size(&bench) <= 256 << 20);
    assert!(ensure(&larger).unwrap().warnings.is_empty());
    assert_eq!(size(&bench), 512 << 20, "grown in use");
    let warnings = ensure(&bench.settings).unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|warning| warning.found.contains("does not shrink")),
        "{warnings:?}"
    );

    // Nobody has anything of it open.
    let bench = bench.closed();
    let file = bench.settings.file();
    wait_detached(&file);
    let aside = file.with_extension("aside");
    fs::rename(&file, &aside).unwrap();
    let error = ensure(&bench.settings).unwrap_err();
    assert!(matches!(error, PoolError::Lost { .. }), "{error}");
    assert!(!file.exists(), "nothing was made in its place");
    fs::write(&file, [0; 4096]).unwrap();
    assert!(matches!(ensure(&bench.settings), Err(PoolError::NotBtrfs { .. })));
    fs::write(&file, "letters, not volumes").unwrap();
    assert!(matches!(ensure(&bench.settings), Err(PoolError::NotBtrfs { .. })));
    assert_eq!(fs::read_to_string(&file).unwrap(), "letters, not volumes");
    fs::rename(&aside, &file).unwrap();
    let bench = bench.opened();
    assert_eq!(fs::read_to_string(bench.data(&one).join("file")).unwrap(), "here");
}

#[tokio::test]
async fn a_btrfs_that_is_there_is_used_and_missed_when_it_is_not() {
    let outer = Bench::new(512);
    // The folder on a btrfs: the outer pool's own.
    let settings = Settings {
        dir: outer.dir.path().join("disk"),
        size: None,
    };
    fs::create_dir(&settings.dir).unwrap();
    let on = outer.root().join("disk");
    fs::create_dir(&on).unwrap();
    run(Command::new("mount").arg("--bind").arg(&on).arg(&settings.dir));
    let ready = ensure(&settings).unwrap();
    let (pool, _) = BtrfsPool::open(&ready.root).unwrap();
    let one = meta(16);
    pool.create(&one).await.unwrap();
    assert!(!settings.file().exists());
    assert_eq!(ensure(&settings).unwrap(), ready);
    drop(pool);
    run(Command::new("umount").arg(&settings.dir));
    let error = ensure(&settings).unwrap_err();
    assert!(matches!(error, PoolError::NotMounted { .. }), "{error}");
    assert!(
        fs::read_dir(&settings.dir).unwrap().next().is_none(),
        "nothing was made in its place"
    );
}

#[tokio::test]
async fn read_only_and_full_disks_are_told() {
    let bench = Bench::new(256);
    let one = meta(16);
    bench.pool.create(&one).await.unwrap();
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(bench.root()));
    let error = ensure(&bench.settings).unwrap_err();
    assert!(matches!(error, PoolError::ReadOnly { .. }), "{error}");
    let error = bench.pool.create(&meta(16)).await.unwrap_err();
    assert!(!error.retryable(), "{error}");
    run(Command::new("mount").args(["-o", "remount,rw"]).arg(bench.root()));
    bench.pool.create(&meta(16)).await.unwrap();

    // A disk beneath that fills up under the sparse file.
    let dir = tempfile::tempdir().unwrap();
    let _unmounts = Unmounts(dir.path().to_owned());
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=400m", "none"])
        .arg(&disk));
    let settings = |size| Settings {
        dir: disk.join("volumes"),
        size: Some(Bytes::mib(size)),
    };
    let error = ensure(&settings(500)).unwrap_err();
    assert!(matches!(error, PoolError::BeneathFull { .. }), "{error}");
    let ready = ensure(&settings(300)).unwrap();
    let (pool, _) = BtrfsPool::open(&ready.root).unwrap();
    let two = meta(200);
    pool.create(&two).await.unwrap();
    let (_, error) = fill(&disk.join("other"), 450);
    assert!(error.is_some(), "the disk is full");
    let data = ready.root.join(format!("v/{}/data", two.id));
    let (_, error) = fill(&data.join("f"), 100);
    println!("a write into a pool whose disk is full: {error:?}");
    assert!(error.is_some());
    match ensure(&settings(300)) {
        Ok(ready) => assert!(
            ready.warnings[0].cure.contains("free some on the disk"),
            "{ready:?}"
        ),
        Err(error) => {
            assert!(matches!(error, PoolError::ReadOnly { .. }), "{error}");
            assert!(error.to_string().contains("free some"), "{error}");
        }
    }
    drop(pool);
    fs::remove_file(disk.join("other")).unwrap();
    let _ = nix::mount::umount2(&ready.root, nix::mount::MntFlags::empty());
    wait_detached(&settings(300).file());
    let ready = ensure(&settings(300)).unwrap();
    let (pool, troubles) = BtrfsPool::open(&ready.root).unwrap();
    assert!(troubles.is_empty(), "{troubles:?}");
    assert_eq!(
        pool.list().await.unwrap().volumes[0].meta,
        two,
        "the volume is there"
    );
    assert_eq!(fill(&data.join("g"), 50).1, None, "and writable");
}

#[tokio::test]
async fn what_a_kill_left_is_cleared_and_what_is_not_of_berth_is_told_and_left() {
    let bench = Bench::new(256);
    let (one, gone, odd) = (meta(16), SnapshotId::random(), SnapshotId::random());
    bench.pool.create(&one).await.unwrap();
    for id in [gone, odd] {
        bench.pool.snapshot(one.id, id).await.unwrap();
    }
    let (root, snapshots) = (bench.root(), bench.root().join(format!("v/{}/s", one.id)));
    let btrfs = |args: &[&str], path: &std::path::Path| {
        run(Command::new("btrfs").args(args).arg(path));
    };
    // Half of a creation, of a receipt, of a resize.
    fs::create_dir(root.join("tmp/0-half")).unwrap();
    btrfs(&["-q", "subvolume", "create"], &root.join("tmp/0-half/s"));
    btrfs(&["-q", "subvolume", "create"], &root.join("tmp/0-half/data"));
    btrfs(&["-q", "subvolume", "create"], &snapshots.join(".in-x"));
    fs::write(snapshots.join(".in-x/file"), "half").unwrap();
    let file = root.join(format!("v/{}/volume.json", one.id));
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace(&(16u64 << 20).to_string(), &(24u64 << 20).to_string()),
    )
    .unwrap();
    fs::write(file.with_extension("json.tmp"), "{").unwrap();
    // Meddling.
    btrfs(&["-q", "subvolume", "delete"], &snapshots.join(gone.to_string()));
    fs::create_dir(root.join("v/notes")).unwrap();
    File::create(snapshots.join("README")).unwrap();

    let bench = bench.again();
    let listing = bench.pool.list().await.unwrap();
    assert_eq!(listing.volumes.len(), 1);
    let held = &listing.volumes[0];
    assert_eq!(
        held.data.as_ref().unwrap().limit,
        Some(Bytes::mib(24)),
        "the file's word is in force"
    );
    assert_eq!(held.snapshots.len(), 1);
    assert_eq!(listing.strange.len(), 2, "{:?}", listing.strange);
    assert!(fs::read_dir(root.join("tmp")).unwrap().next().is_none());
    assert!(!snapshots.join(".in-x").exists());
    assert!(root.join("v/notes").exists() && snapshots.join("README").exists());
    bench.pool.delete_snapshot(one.id, gone).await.unwrap();
    let error = bench.pool.roll_back(one.id, gone, None).await.unwrap_err();
    assert!(error.to_string().contains("no snapshot"), "{error}");
}
