//! Containers when something is killed, doubled or half done, on every containerd that people run.

#[path = "containers_bench/mod.rs"]
mod containers_bench;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use berth_agent::container::runtime::{Runtime as _, TaskState};
use berth_tests::containerd::Version;
use berth_tests::process::{alive, signal};
use containers_bench::Bench;
use nix::sys::signal::Signal::SIGKILL;

const LONG: Duration = Duration::from_secs(20);

async fn whole_life(version: Version) {
    let bench = Bench::start(version).await;
    let mut request = bench.request(
        "life",
        "echo hello; trap 'exit 3' TERM; while :; do sleep 0.05; done",
    );
    request.spec.user = Some("web".into());
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    let started = bench.runtime.start(id).await.unwrap();
    assert_eq!(bench.runtime.read_limits(id).await.unwrap(), request.spec.limits);
    bench.wait_log(id, "hello").await;
    let mut spec = request.spec.clone();
    spec.limits.pids = 40;
    spec.limits.io.write_iops = 123;
    bench.runtime.update(id, &spec).await.unwrap();
    assert_eq!(bench.runtime.read_limits(id).await.unwrap(), spec.limits);
    assert_eq!(
        bench.task(id).await,
        Some(TaskState::Running {
            pid: started.pid,
            started_at: Some(started.at)
        })
    );
    bench.runtime.signal(id, 15, false).await.unwrap();
    assert_eq!(bench.wait_exit(id).await.code, 3);
    bench.runtime.start(id).await.unwrap();
    bench.finish(&[id]).await;
}

#[tokio::test]
async fn a_whole_life_on_the_systems_containerd() {
    whole_life(Version::System).await;
}

#[tokio::test]
async fn a_whole_life_on_containerd_1_7() {
    whole_life(Version::V1_7).await;
}

#[tokio::test]
async fn a_whole_life_on_containerd_2_1() {
    whole_life(Version::V2_1).await;
}

#[tokio::test]
async fn a_killed_shim_takes_its_container_and_leaves_nothing_in_the_way() {
    let bench = Bench::start(Version::System).await;
    let request = bench.request("shim", "exec sleep 1000");
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    let started = bench.runtime.start(id).await.unwrap();
    for shim in bench.containerd.shims() {
        signal(shim, SIGKILL);
    }
    bench
        .eventually("the container to end", || !alive(started.pid))
        .await;
    let mut left = bench.task(id).await;
    for _ in 0..200 {
        if !matches!(left, Some(TaskState::Running { .. })) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        left = bench.task(id).await;
    }
    assert!(!matches!(left, Some(TaskState::Running { .. })), "{left:?}");
    let _ = bench.runtime.collect(id).await.unwrap();
    let mut again = bench.runtime.start(id).await;
    for _ in 0..100 {
        match &again {
            Err(error) if error.retryable() => tokio::time::sleep(Duration::from_millis(50)).await,
            _ => break,
        }
        again = bench.runtime.start(id).await;
    }
    assert_ne!(again.unwrap().pid, started.pid);
    assert_eq!(bench.runtime.read_limits(id).await.unwrap(), request.spec.limits);
    bench.finish(&[id]).await;
}

#[tokio::test]
async fn r3_a_killed_containerd_stops_nothing_and_ends_meanwhile_are_told() {
    let mut bench = Bench::start(Version::System).await;
    let stays = bench.request("stays", "exec sleep 1000");
    let ends = bench.request("ends", "sleep 2; exit 9");
    for request in [&stays, &ends] {
        bench.runtime.create(request).await.unwrap();
    }
    let started = bench.runtime.start(stays.meta.id).await.unwrap();
    let short = bench.runtime.start(ends.meta.id).await.unwrap();
    bench.containerd.kill9();
    assert!(bench.runtime.list().await.is_err());
    bench
        .eventually("the short one to end", || !alive(short.pid))
        .await;
    assert!(alive(started.pid));
    bench.containerd.restart();
    bench.runtime = bench.another_agent();
    assert_eq!(bench.wait_exit(ends.meta.id).await.code, 9);
    let again = bench.runtime.start(stays.meta.id).await.unwrap();
    assert_eq!(again, started, "adopted, not started again");
    bench.finish(&[stays.meta.id, ends.meta.id]).await;
}

#[tokio::test]
async fn what_was_interrupted_is_found_and_finished() {
    let mut bench = Bench::start(Version::System).await;
    // Killed between snapshot and record: a snapshot and folders without a container.
    let first = bench.request("first", "exec sleep 1000");
    bench.runtime.create(&first).await.unwrap();
    bench
        .containerd
        .ctr(&["containers", "rm", "--keep-snapshot", &first.meta.id.to_string()]);
    // Killed in the middle of a deletion: marked, snapshot gone, record there.
    let second = bench.request("second", "exec sleep 1000");
    bench.runtime.create(&second).await.unwrap();
    bench.containerd.ctr(&[
        "containers",
        "label",
        &second.meta.id.to_string(),
        "berth/complete=0",
    ]);
    bench.containerd.ctr(&[
        "snapshots",
        "--snapshotter",
        "overlayfs",
        "rm",
        &format!("berth-{}", second.meta.id),
    ]);
    // Killed between task and start: made, not begun.
    let third = bench.request("third", "exec sleep 1000");
    bench.runtime.create(&third).await.unwrap();

    bench.runtime = bench.another_agent();
    let listed = bench.runtime.list().await.unwrap();
    let complete: BTreeSet<_> = listed.iter().map(|c| (c.meta.id, c.complete)).collect();
    assert_eq!(
        complete,
        BTreeSet::from([(second.meta.id, false), (third.meta.id, true)])
    );
    let snapshots = bench
        .containerd
        .ctr(&["snapshots", "--snapshotter", "overlayfs", "ls"]);
    assert!(
        !snapshots.contains(&first.meta.id.to_string()),
        "the orphan was swept:\n{snapshots}"
    );
    // A reboot empties the run folder.
    std::fs::remove_dir_all(bench.dir().join("run")).unwrap();
    bench.runtime.create(&first).await.unwrap();
    bench.runtime.start(first.meta.id).await.unwrap();
    bench.runtime.start(third.meta.id).await.unwrap();
    assert!(
        bench.runtime.create(&second).await.is_err(),
        "remains are deleted first"
    );
    bench.runtime.delete(second.meta.id).await.unwrap();
    bench.runtime.create(&second).await.unwrap();
    bench
        .finish(&[first.meta.id, second.meta.id, third.meta.id])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_each_started_once_with_ids_of_its_own() {
    let bench = Bench::start(Version::System).await;
    let requests: Vec<_> = (0..12)
        .map(|n| bench.request(&format!("many{n}"), "exec sleep 1000"))
        .collect();
    let mut jobs = tokio::task::JoinSet::new();
    for request in requests.clone() {
        let runtime = bench.runtime.clone();
        jobs.spawn(async move {
            let id = request.meta.id;
            let (one, two) = tokio::join!(runtime.create(&request), runtime.create(&request));
            one.and(two).unwrap();
            let (one, two) = tokio::join!(runtime.start(id), runtime.start(id));
            let (one, two) = (one.unwrap(), two.unwrap());
            assert_eq!(one.pid, two.pid, "two starts, one process");
            one.pid
        });
    }
    let pids = jobs.join_all().await;
    let maps: BTreeSet<String> = pids
        .iter()
        .map(|pid| std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap())
        .collect();
    assert_eq!(maps.len(), requests.len());
    let ids: Vec<_> = requests.iter().map(|r| r.meta.id).collect();
    bench.finish(&ids).await;
}

/// `runc start` lets a program begin by reading a FIFO, then deletes it. Killed in between, as it is with its containerd, it
/// leaves a task that is `Created` to its shim though its program runs; the next `runc start` would wait for ever.
#[tokio::test]
async fn a_start_killed_after_its_program_began_is_cleared_away_and_made_anew() {
    let mut bench = Bench::start(Version::System).await;
    let daemon = bench.containerd.pid().expect("it runs");
    let (cut, runc) = (bench.dir().join("cut"), bench.dir().join("runc"));
    let script = format!(
        "#!/bin/sh\nfor last; do :; done\ncase \" $* \" in *' start '*)\n\
        if [ ! -e {cut} ]; then touch {cut}; cat /run/containerd/runc/berth/$last/exec.fifo >{cut}; kill -9 {daemon}; exec sleep 100; fi;;\n\
        esac\nexec /usr/bin/env runc \"$@\"\n",
        cut = cut.display(),
    );
    std::fs::write(&runc, script).unwrap();
    std::fs::set_permissions(&runc, std::fs::Permissions::from_mode(0o755)).unwrap();
    bench.runtime = bench.agent_with(Some(runc));
    let request = bench.request("half", "echo began; exec sleep 1000");
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    assert!(bench.runtime.start(id).await.is_err(), "its containerd died");
    bench.wait_log(id, "began").await;
    bench.containerd.restart();

    let anew = async {
        loop {
            match bench.runtime.start(id).await {
                Ok(started) => return started,
                Err(error) => assert!(error.retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let started = tokio::time::timeout(LONG, anew)
        .await
        .expect("no start waits for ever");
    assert!(alive(started.pid));
    let text = bench.wait_log(id, "began\nbegan").await;
    assert_eq!(text.matches("began").count(), 2, "{text}");
    assert_eq!(bench.runtime.read_limits(id).await.unwrap(), request.spec.limits);
    bench.finish(&[id]).await;
}

/// containerd makes a bundle's folder first of all. Killed right then it does not clear it away, and refuses every later start.
#[tokio::test]
async fn a_folder_that_a_killed_containerd_left_is_cleared_out_of_the_way() {
    for version in Version::ALL {
        let bench = Bench::start(version).await;
        let request = bench.request("left", "exec sleep 1000");
        let id = request.meta.id;
        bench.runtime.create(&request).await.unwrap();
        let left = bench
            .containerd
            .state()
            .join("io.containerd.runtime.v2.task/berth")
            .join(id.to_string());
        std::fs::create_dir_all(left.join("rootfs")).unwrap();
        // One that was made just now may be a containerd's that was asked by an agent which is gone.
        let error = bench.runtime.start(id).await.expect_err("it is in the way");
        assert!(
            error.retryable() && error.to_string().contains("still making it"),
            "{error}"
        );
        assert!(left.join("rootfs").exists());
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(60);
        let folder = std::fs::File::open(&left).unwrap();
        folder.set_modified(long_ago).unwrap();
        let error = bench.runtime.start(id).await.expect_err("it is in the way");
        assert!(
            error.retryable() && error.to_string().contains("cleared away"),
            "{error}"
        );
        assert!(!left.exists());
        let started = bench.runtime.start(id).await.unwrap();
        assert!(alive(started.pid));
        bench.finish(&[id]).await;
    }
}
