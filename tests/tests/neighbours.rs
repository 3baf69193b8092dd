//! A fork bomb, a memory hog, a CPU hog, a disk filler and a log flooder beside a well-behaved neighbour.

use std::time::Duration;

use berth_tests::cluster::{Agent, Brain};
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;

/// Lines that the neighbour has written: it writes one for every small piece of work.
fn work_done(brain: &Brain) -> u64 {
    let out = brain.try_berth(&["logs", "--tail", "1", "good.1"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.trim()
        .rsplit(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}

fn rate(brain: &Brain, span: Duration) -> f64 {
    let (before, began) = (work_done(brain), std::time::Instant::now());
    std::thread::sleep(span);
    (work_done(brain) - before) as f64 / began.elapsed().as_secs_f64()
}

#[test]
fn r1_hogs_are_held_and_the_neighbour_goes_on() {
    let dir = tempfile::tempdir().expect("folder");
    let brain = Brain::start(&dir.path().join("brain"));
    let agent = Agent::start(&brain, &dir.path().join("h1"), "h1", None);
    brain.wait_node("h1", "ready", 20);
    brain.load_example();
    brain.berth(&[
        "run", "example:1", "--name", "good", "-d", "--cpus", "0.5", "--reserve-cpu", "0.3", "--memory", "32MiB", "--disk",
        "32MiB", "--", "sh", "-c",
        "n=0; while true; do i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; n=$((n+1)); echo work $n; sleep 0.05; done",
    ]);
    brain.wait_running(1, 20);
    std::thread::sleep(Duration::from_secs(2));
    let alone = rate(&brain, Duration::from_secs(5));
    assert!(alone > 1.0, "the neighbour works: {alone}");

    let hogs: [(&str, &str); 5] = [
        (
            "forker",
            "bomb() { bomb | bomb & }; while true; do bomb 2>/dev/null; sleep 1; done",
        ),
        ("eater", "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done"),
        ("burner", "while true; do :; done"),
        (
            "filler",
            "i=0; while true; do dd if=/dev/zero of=/tmp/f$i bs=1M count=4 2>/dev/null; i=$((i+1)); sleep 0.1; done",
        ),
        ("flooder", "yes flood-flood-flood-flood-flood-flood-flood"),
    ];
    for (name, script) in hogs {
        brain.berth(&[
            "run",
            "example:1",
            "--name",
            name,
            "-d",
            "--cpus",
            "0.3",
            "--reserve-cpu",
            "50m",
            "--memory",
            "32MiB",
            "--pids",
            "40",
            "--disk",
            "16MiB",
            "--write-bps",
            "10MiB",
            "--",
            "sh",
            "-c",
            script,
        ]);
    }
    std::thread::sleep(Duration::from_secs(10));
    let beside = rate(&brain, Duration::from_secs(10));
    assert!(
        beside > alone * 0.5,
        "beside the hogs the neighbour did {beside:.1} a second, alone {alone:.1}"
    );

    let items = brain.items(&["ps"]);
    let find = |name: &str| {
        items
            .iter()
            .find(|c| c["name"] == format!("{name}.1"))
            .unwrap_or_else(|| panic!("{name}"))
    };
    assert_eq!(
        find("good")["observed"]["restarts"],
        0,
        "the neighbour was never touched"
    );
    assert!(
        find("eater")["observed"]["last_exit"]["oom"] == true,
        "{:#}",
        find("eater")
    );
    let filler = eventually(Duration::from_secs(30), || {
        let items = brain.items(&["ps"]);
        let filler = items.iter().find(|c| c["name"] == "filler.1")?;
        let reason = filler["observed"]["last_exit"]["reason"]
            .as_str()
            .or(filler["observed"]["reason"].as_str())?;
        reason.contains("disk").then(|| reason.to_owned())
    });
    assert!(
        filler.is_some(),
        "the disk filler is stopped with its reason:\n{}",
        brain.berth(&["ps"])
    );

    // The flooder's log stays within its files: three of ten MiB by default.
    let size = eventually(Duration::from_secs(1), || {
        let out = std::process::Command::new("du")
            .args(["-sk"])
            .arg(agent.dir().join("state"))
            .output()
            .ok()?;
        String::from_utf8_lossy(&out.stdout)
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    })
    .expect("du");
    assert!(size < 60 * 1024, "logs are bounded: {size} KiB");
    for (name, _) in hogs {
        brain.berth(&["service", "rm", name]);
    }
    brain.wait_running(1, 60);
}

#[test]
fn r1_where_io_cannot_be_limited_no_container_starts_and_says_why() {
    let dir = tempfile::tempdir().expect("folder");
    let brain = Brain::start(&dir.path().join("brain"));
    let home = dir.path().join("h1");
    let part = |name: &str| {
        let path = dir.path().join("overlay").join(name);
        std::fs::create_dir_all(&path).expect("folder");
        path.display().to_string()
    };
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        part("lower"),
        part("upper"),
        part("work")
    );
    let at = home.join("containerd");
    std::fs::create_dir_all(&at).expect("folder");
    nix::mount::mount(
        Some("overlay"),
        &at,
        Some("overlay"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .expect("mounting an overlay");
    // Unmounts when it is dropped.
    let agent = Agent::start(&brain, &home, "h1", None);
    brain.wait_node("h1", "ready", 20);
    brain.load_example();
    let out = brain.try_berth(&[
        "run",
        "example:1",
        "--name",
        "box",
        "--wait",
        "20s",
        "--",
        "sleep",
        "1000",
    ]);
    let why = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "it ran without IO limits");
    assert!(
        why.contains("IO can't be limited") && why.contains("overlay") && why.contains("io_device"),
        "no cause or cure: {why}"
    );
    assert!(brain.running().is_empty());
    brain.berth(&["service", "rm", "box"]);
    drop(agent);
}
