//! The container runtime against a real containerd: limits, isolation, output, exec, faults, and that nothing is left.

mod containers_bench;

use std::time::Duration;

use berth_agent::container::runtime::{Runtime as _, TaskState};
use berth_common::units::{Bytes, Millicores};
use berth_tests::containerd::Version;
use containers_bench::Bench;

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn r1_limits_are_in_the_kernel_and_the_program_is_confined() {
    let bench = Bench::start(Version::System).await;
    let script = "cat /proc/self/status; cat /proc/self/uid_map; hostname; id; cat /etc/hosts /etc/resolv.conf >/dev/null \
        && echo files; mount -t tmpfs x /tmp 2>&1; echo x > /sys/kernel/mm/x 2>&1; echo x > /proc/sys/kernel/hostname 2>&1; \
        touch /written && echo writable; exec sleep 1000";
    let request = bench.request("web", script);
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    bench.runtime.create(&request).await.unwrap();
    let started = bench.runtime.start(id).await.unwrap();
    let again = bench.runtime.start(id).await.unwrap();
    assert_eq!(started, again, "a second start finds it running");
    assert_eq!(bench.runtime.read_limits(id).await.unwrap(), request.spec.limits);
    let text = bench.wait_log(id, "writable").await;
    for want in ["NoNewPrivs:\t1", "Seccomp:\t2", "web-1", "uid=0(root)", "files"] {
        assert!(text.contains(want), "{want} is missing in:\n{text}");
    }
    // The eleven capabilities of container::caps, in effect and as a bound.
    let mask =
        1u64 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31;
    for field in ["CapEff", "CapBnd"] {
        assert!(
            text.contains(&format!("{field}:\t{mask:016x}")),
            "{field} should be {mask:016x}:\n{text}"
        );
    }
    assert!(!text.contains("CapAmb:\t0000000000000001"));
    let host_map = std::fs::read_to_string(format!("/proc/{}/uid_map", started.pid)).unwrap();
    let base: u32 = host_map.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((0x7000_0000..0x7FFE_0000).contains(&base), "{host_map}");
    assert!(
        text.contains("denied") || text.contains("not permitted"),
        "mount and writes to /sys must fail:\n{text}"
    );
    bench.finish(&[id]).await;
}

#[tokio::test]
async fn two_containers_have_disjoint_ids_and_a_user_is_found_by_name() {
    let bench = Bench::start(Version::System).await;
    let mut maps = Vec::new();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let mut request = bench.request(
            name,
            "id; ls -ln /etc/hosts; echo to-stdout > /dev/stdout; exec sleep 1000",
        );
        request.spec.user = Some("web".into());
        bench.runtime.create(&request).await.unwrap();
        let started = bench.runtime.start(request.meta.id).await.unwrap();
        let text = bench.wait_log(request.meta.id, "to-stdout").await;
        assert!(text.contains("uid=1000(web) gid=1000(web)"), "{text}");
        maps.push(std::fs::read_to_string(format!("/proc/{}/uid_map", started.pid)).unwrap());
        ids.push(request.meta.id);
    }
    assert_ne!(maps[0], maps[1]);
    let mut nobody = bench.request("three", "true");
    nobody.spec.user = Some("no-such-user".into());
    let error = bench.runtime.create(&nobody).await.unwrap_err();
    assert!(
        !error.retryable() && error.to_string().contains("/etc/passwd"),
        "{error}"
    );
    bench.finish(&ids).await;
}

#[tokio::test]
async fn output_is_kept_in_order_to_the_last_line_and_rotates() {
    let bench = Bench::start(Version::System).await;
    let request = bench.request(
        "talk",
        "i=0; while [ $i -lt 6000 ]; do echo line-$i; i=$((i+1)); done; echo oops >&2; printf last-without-newline",
    );
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    bench.runtime.start(id).await.unwrap();
    let exit = bench.wait_exit(id).await;
    assert_eq!(exit.code, 0);
    let text = bench.wait_log(id, "last-without-newline").await;
    let numbers: Vec<u32> = text
        .lines()
        .filter_map(|l| l.strip_prefix("line-")?.parse().ok())
        .collect();
    assert_eq!(*numbers.last().unwrap(), 5999);
    assert!(
        numbers.windows(2).all(|w| w[0] + 1 == w[1]),
        "in order, without a gap"
    );
    assert!(text.contains("oops"));
    let files = std::fs::read_dir(bench.runtime.log_dir(id)).unwrap().count();
    assert_eq!(files, 3, "64 KiB rotated into at most three files");
    bench.finish(&[id]).await;
}

#[tokio::test]
async fn limits_change_live_and_read_back() {
    let bench = Bench::start(Version::System).await;
    let request = bench.request("live", "exec sleep 1000");
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    let started = bench.runtime.start(id).await.unwrap();
    let mut spec = request.spec.clone();
    spec.limits.cpu = Millicores(250);
    spec.limits.cpu_weight = 700;
    spec.limits.memory = Bytes::mib(48);
    spec.limits.pids = 33;
    spec.limits.io.read_bps = Bytes::mib(3);
    spec.limits.io.write_bps = Bytes::mib(2);
    spec.limits.io.read_iops = 77;
    spec.limits.io.write_iops = 66;
    bench.runtime.update(id, &spec).await.unwrap();
    assert_eq!(bench.runtime.read_limits(id).await.unwrap(), spec.limits);
    let listed = bench.runtime.list().await.unwrap().pop().unwrap();
    assert_eq!(listed.spec, spec);
    assert_eq!(
        listed.task,
        TaskState::Running {
            pid: started.pid,
            started_at: Some(started.at)
        }
    );
    // They also hold after the next start.
    bench.runtime.signal(id, 9, false).await.unwrap();
    assert_eq!(bench.wait_exit(id).await.code, 137);
    bench.runtime.start(id).await.unwrap();
    assert_eq!(bench.runtime.read_limits(id).await.unwrap(), spec.limits);
    spec.env.insert("A".into(), "b".into());
    assert!(
        bench.runtime.update(id, &spec).await.is_err(),
        "more than limits is refused"
    );
    bench.finish(&[id]).await;
}

#[tokio::test]
async fn ooms_are_counted_whether_pid_1_falls_or_a_child() {
    let bench = Bench::start(Version::System).await;
    let hog = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    let mut fatal = bench.request("fatal", &format!("exec {hog}"));
    let mut child = bench.request("child", &format!("{hog}; echo survived; exec sleep 1000"));
    fatal.spec.limits.memory = Bytes::mib(24);
    child.spec.limits.memory = Bytes::mib(24);
    for request in [&fatal, &child] {
        bench.runtime.create(request).await.unwrap();
        bench.runtime.start(request.meta.id).await.unwrap();
    }
    let exit = bench.wait_exit(fatal.meta.id).await;
    assert_eq!(exit.code, 137);
    assert!(exit.oom_kills.unwrap() >= 1);
    bench.wait_log(child.meta.id, "survived").await;
    assert!(bench.runtime.oom_kills(child.meta.id).await.unwrap() >= 1);
    assert!(
        tokio::time::timeout(LONG, bench.running(child.meta.id))
            .await
            .is_ok()
    );
    bench.finish(&[fatal.meta.id, child.meta.id]).await;
}

#[tokio::test]
async fn bad_programs_fail_clearly_and_leave_nothing() {
    let bench = Bench::start(Version::System).await;
    let mut request = bench.request("bad", "true");
    request.spec.command = Some(vec!["/no/such/program".into()]);
    let id = request.meta.id;
    bench.runtime.create(&request).await.unwrap();
    let error = bench.runtime.start(id).await.unwrap_err();
    assert!(!error.retryable(), "{error}");
    assert!(error.to_string().contains("no such file"), "{error}");
    assert_eq!(
        bench.runtime.list().await.unwrap().pop().unwrap().task,
        TaskState::None
    );
    bench.finish(&[id]).await;
}
