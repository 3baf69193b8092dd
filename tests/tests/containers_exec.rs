//! Exec, init, events and isolation details of containers on a real containerd.

#[path = "containers_bench/mod.rs"]
mod containers_bench;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_agent::container::runtime::{ExecSession, Runtime as _, RuntimeEvent};
use berth_common::protocol::{ExecDown, ExecSpec, ExecUp};
use berth_common::units::Bytes;
use berth_tests::containerd::Version;
use containers_bench::Bench;

fn shell(script: &str) -> ExecSpec {
    serde_json::from_value(serde_json::json!({"args": ["/bin/sh", "-c", script]})).unwrap()
}

/// Both outputs and the last message.
async fn finish(session: &mut ExecSession) -> (String, String, ExecDown) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), session.down.recv()).await;
        match message
            .expect("the exec goes on")
            .expect("an exec says how it ended")
        {
            ExecDown::Stdout { data } => out.extend(STANDARD.decode(data).unwrap()),
            ExecDown::Stderr { data } => err.extend(STANDARD.decode(data).unwrap()),
            ExecDown::Started | ExecDown::Unknown => {}
            last => {
                assert!(session.down.recv().await.is_none(), "nothing follows the end");
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                return (text(out), text(err), last);
            }
        }
    }
}

async fn send(session: &ExecSession, text: &str) {
    session
        .up
        .send(ExecUp::Stdin {
            data: STANDARD.encode(text),
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn exec_runs_confined_with_input_output_and_code() {
    let bench = Bench::start(Version::System).await;
    let request = bench.request("host", "exec sleep 1000");
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    bench.runtime.start(id).await.unwrap();

    let mut session = bench
        .runtime
        .exec(id, &shell("cat /proc/self/status; echo bad >&2; exit 7"))
        .await
        .unwrap();
    let (out, err, end) = finish(&mut session).await;
    assert!(
        out.contains("NoNewPrivs:\t1") && out.contains("Seccomp:\t2"),
        "{out}"
    );
    assert_eq!((err.as_str(), end), ("bad\n", ExecDown::Exit { code: 7 }));

    let mut spec = shell("cat; id -u; pwd; echo $A");
    spec.stdin = true;
    spec.user = Some("web".into());
    spec.working_dir = Some("/www".into());
    spec.env.insert("A".into(), "b c".into());
    let mut session = bench.runtime.exec(id, &spec).await.unwrap();
    send(&session, "typed\n").await;
    session.up.send(ExecUp::StdinEof).await.unwrap();
    let (out, _, end) = finish(&mut session).await;
    assert_eq!(
        (out.as_str(), end),
        ("typed\n1000\n/www\nb c\n", ExecDown::Exit { code: 0 })
    );

    let mut spec = shell("stty size; read line; stty size; echo got $line");
    (spec.tty, spec.stdin, spec.size) = (true, true, Some((101, 37)));
    let mut session = bench.runtime.exec(id, &spec).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    session
        .up
        .send(ExecUp::Resize { cols: 50, rows: 20 })
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    send(&session, "hello\n").await;
    let (out, _, end) = finish(&mut session).await;
    assert!(out.contains("20 50") && out.contains("got hello"), "{out:?}");
    assert_eq!(end, ExecDown::Exit { code: 0 });

    let none = ExecSpec {
        args: vec!["/no/such".into()],
        ..shell("")
    };
    let mut session = bench.runtime.exec(id, &none).await.unwrap();
    assert!(matches!(finish(&mut session).await.2, ExecDown::Problem { .. }));

    // Nobody listens any more: the process goes.
    let mut session = bench
        .runtime
        .exec(id, &shell("echo up; exec sleep 4321"))
        .await
        .unwrap();
    while !matches!(session.down.recv().await, Some(ExecDown::Stdout { .. })) {}
    // It says so before it has become the other program.
    bench.eventually("its sleep", || sleepers("4321") == 1).await;
    drop(session);
    bench
        .eventually("the abandoned exec to end", || sleepers("4321") == 0)
        .await;
    bench
        .eventually("its pipes to go", || {
            std::fs::read_dir(bench.dir().join(format!("run/{id}")))
                .unwrap()
                .count()
                == 0
        })
        .await;
    bench.finish(&[id]).await;
}

fn sleepers(seconds: &str) -> usize {
    berth_tests::containerd::processes(|line| line.trim() == format!("sleep {seconds}")).len()
}

#[tokio::test]
async fn an_exec_that_outlived_its_agent_is_ended() {
    let bench = Bench::start(Version::System).await;
    let request = bench.request("orphan", "exec sleep 1000");
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    bench.runtime.start(id).await.unwrap();
    // A runtime of its own, whose tasks die with it, is the agent that is killed.
    let doomed = bench.another_agent_in_a_thread(id, shell("echo up; exec sleep 5432"));
    doomed.join().unwrap();
    assert_eq!(sleepers("5432"), 1, "it runs on without its agent");
    let next = bench.another_agent();
    assert_eq!(next.list().await.unwrap().len(), 1);
    bench
        .eventually("the old exec to end", || sleepers("5432") == 0)
        .await;
    bench.finish(&[id]).await;
}

#[tokio::test]
async fn init_reaps_forwards_and_gives_the_code() {
    let bench = Bench::start(Version::System).await;
    let script = "trap 'echo stopping; exit 5' TERM; (sh -c 'sleep 0.2 & exit' &) ; echo ready; while :; do sleep 0.1; done";
    let mut request = bench.request("init", script);
    request.spec.init = true;
    request.spec.read_only = true;
    request.spec.tmpfs =
        vec![serde_json::from_value(serde_json::json!({"path": "/tmp", "size": 1 << 20})).unwrap()];
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    let started = bench.runtime.start(id).await.unwrap();
    bench.wait_log(id, "ready").await;
    let mut probe = bench
        .runtime
        .exec(id, &shell("cat /proc/1/cmdline | tr '\\0' ' '; touch /x 2>&1; dd if=/dev/zero of=/tmp/f bs=1M count=3 2>&1; ls -l /tmp/f"))
        .await
        .unwrap();
    let (out, _, _) = finish(&mut probe).await;
    assert!(
        out.contains("/dev/.berth-init") && out.contains("Read-only") && out.contains("No space"),
        "{out}"
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    let zombies = berth_tests::process::run(std::process::Command::new("ps").args([
        "-o",
        "stat=",
        "--ppid",
        &started.pid.to_string(),
    ]));
    assert!(!zombies.contains('Z'), "{zombies}");
    assert_eq!(
        bench.runtime.stop_signal(id).await.unwrap(),
        2,
        "the image says SIGINT"
    );
    bench.runtime.signal(id, 15, false).await.unwrap();
    assert_eq!(bench.wait_exit(id).await.code, 5);
    bench.wait_log(id, "stopping").await;
    bench.finish(&[id]).await;
}

#[tokio::test]
async fn events_tell_ends_and_ooms_and_disk_use_is_measured() {
    let bench = Bench::start(Version::System).await;
    let mut events = bench.runtime.events();
    let first = tokio::time::timeout(Duration::from_secs(5), events.recv())
        .await
        .expect("soon");
    assert_eq!(first, Some(RuntimeEvent::Relist));
    let mut request = bench.request(
        "ev",
        "dd if=/dev/zero of=/file bs=1M count=5; dd if=/dev/zero of=/dev/null bs=200M count=1",
    );
    request.spec.limits.memory = Bytes::mib(24);
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    bench.runtime.start(id).await.unwrap();
    let (mut oom, mut exited) = (false, false);
    while !(oom && exited) {
        match tokio::time::timeout(Duration::from_secs(20), events.recv())
            .await
            .expect("events")
            .expect("stream")
        {
            RuntimeEvent::Oom(which) => oom |= which == id,
            RuntimeEvent::Exited(which) => exited |= which == id,
            RuntimeEvent::Relist => {}
        }
    }
    let used = bench.runtime.disk_usage(id).await.unwrap();
    assert!((5 << 20..6 << 20).contains(&used), "{used}");
    bench.wait_exit(id).await;
    bench.finish(&[id]).await;
}

#[tokio::test]
async fn privileged_is_limited_all_the_same() {
    let bench = Bench::start(Version::System).await;
    let mut request = bench.request(
        "priv",
        "cat /proc/self/status; mount -t tmpfs x /tmp && echo mounted; exec sleep 1000",
    );
    request.spec.privileged = true;
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    bench.runtime.start(id).await.unwrap();
    let text = bench.wait_log(id, "mounted").await;
    assert!(text.contains("Seccomp:\t0"), "{text}");
    assert_eq!(bench.runtime.read_limits(id).await.unwrap(), request.spec.limits);
    bench.finish(&[id]).await;
}
