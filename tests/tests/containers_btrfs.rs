//! The disk limit where the kernel enforces it: containers on containerd's btrfs snapshotter.

#[path = "containers_bench/mod.rs"]
mod containers_bench;

use std::process::Command;

use berth_agent::container::runtime::Runtime as _;
use berth_common::units::Bytes;
use berth_tests::containerd::Version;
use berth_tests::disk::Btrfs;
use berth_tests::process::run;
use containers_bench::Bench;

#[tokio::test]
async fn a_disk_filler_hits_its_limit_and_the_limit_moves_live() {
    let folder = tempfile::tempdir().unwrap();
    let pool = Btrfs::new(&folder.path().join("m"), 512 << 20);
    let dir = tempfile::tempdir_in(&pool.mount).unwrap();
    let bench = Bench::start_on(Version::System, "btrfs", dir).await;
    assert!(bench.runtime.disk_limit_hard());
    let fill = "dd if=/dev/zero of=/f bs=1M count=40 2>&1; sync; wc -c </f";
    let mut request = bench.request("fill", &format!("id; {fill}; echo full; while [ ! -e /go ]; do sleep 0.1; done; {fill}; echo done; exec sleep 1000"));
    request.spec.limits.disk = Bytes::mib(16);
    request.spec.user = Some("0".into());
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    bench.runtime.start(id).await.unwrap();
    let text = bench.wait_log(id, "full").await;
    assert!(
        text.contains("quota exceeded") || text.contains("No space"),
        "{text}"
    );
    let written: u64 = text
        .lines()
        .filter_map(|l| l.trim().parse().ok())
        .next_back()
        .unwrap();
    assert!((12 << 20..=16 << 20).contains(&written), "{written}");
    assert_eq!(bench.runtime.read_limits(id).await.unwrap().disk, Bytes::mib(16));
    let mut spec = request.spec.clone();
    spec.limits.disk = Bytes::mib(64);
    bench.runtime.update(id, &spec).await.unwrap();
    let go = serde_json::from_value(serde_json::json!({"args": ["touch", "/go"]})).unwrap();
    let mut session = bench.runtime.exec(id, &go).await.unwrap();
    while session.down.recv().await.is_some() {}
    let text = bench.wait_log(id, "done").await;
    assert!(
        text.contains(&(40u64 << 20).to_string()),
        "all of it fits now:\n{text}"
    );
    bench.finish(&[id]).await;
    drop(pool);
}

/// A program that makes a subvolume, as text for a shell's `base64 -d`.
fn subvolume_maker(dir: &std::path::Path) -> String {
    let source = berth_tests::root().join("tests/tests/containers_bench/subvolume.c");
    let program = dir.join("subvolume");
    let mut cc = Command::new("cc");
    cc.args(["-static", "-nostdlib", "-fno-stack-protector", "-Os", "-s", "-o"]);
    run(cc.arg(&program).arg(source));
    run(Command::new("base64").arg("-w0").arg(program))
}

#[tokio::test]
async fn r1_nobody_gets_around_the_disk_limit_by_a_subvolume_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let pool = Btrfs::new(&folder.path().join("m"), 512 << 20);
    let dir = tempfile::tempdir_in(&pool.mount).unwrap();
    // On the host it is made: what follows is not for want of a program that works.
    let maker = subvolume_maker(dir.path());
    let made = Command::new(dir.path().join("subvolume"))
        .current_dir(dir.path())
        .status();
    assert_eq!(made.unwrap().code(), Some(0));
    assert!(dir.path().join("sub").is_dir());
    run(Command::new("btrfs")
        .args(["subvolume", "delete"])
        .arg(dir.path().join("sub")));
    let bench = Bench::start_on(Version::System, "btrfs", dir).await;
    let script = format!(
        "cd /tmp; printf %s '{maker}' | base64 -d >m; chmod +x m; ./m; echo code $?; ls -d sub; cp m n && echo copied"
    );
    let mut request = bench.request("maker", &script);
    request.spec.user = Some("0".into());
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    bench.runtime.start(id).await.unwrap();
    let text = bench.wait_log(id, "copied").await;
    assert!(text.contains("code 1\n"), "EPERM is 1: {text}");
    assert!(!text.lines().any(|line| line == "sub"), "{text}");
    bench.finish(&[id]).await;
    drop(pool);
}
