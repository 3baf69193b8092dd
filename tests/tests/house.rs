//! The rules of the house: arrows between crates, file sizes, where unsafe may be, words, shipped units and configs.

use std::path::{Path, PathBuf};

use berth_tests::root;

fn files(below: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(below).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                files(&path, ending, found);
            }
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for part in ["common", "agent", "brain", "tests"] {
        files(&root().join(part), ".rs", &mut found);
    }
    assert!(found.len() > 50, "the sources were found");
    found
        .into_iter()
        .map(|path| (path.clone(), std::fs::read_to_string(path).expect("source")))
        .collect()
}

#[test]
fn neither_daemon_knows_the_other() {
    let manifest =
        |part: &str| std::fs::read_to_string(root().join(part).join("Cargo.toml")).expect("manifest");
    assert!(!manifest("agent").contains("berth-brain"));
    assert!(!manifest("brain").contains("berth-agent"));
    for part in ["berth-agent", "berth-brain"] {
        assert!(
            !manifest("brain/cli").contains(part),
            "the command speaks HTTP and nothing else"
        );
        assert!(!manifest("common").contains(part));
    }
}

#[test]
fn plans_are_pure() {
    let pure = [
        "agent/src/reconcile/plan.rs",
        "agent/src/link/session.rs",
        "agent/src/container/spec.rs",
        "agent/src/volume/pool.rs",
        "agent/src/volume/stream.rs",
        "agent/src/peers/frame.rs",
        "agent/src/peers/pack.rs",
        "agent/src/peers/window.rs",
        "agent/src/volume/keeper/attempts.rs",
        "agent/src/volume/keeper/plan.rs",
        "agent/src/volume/keeper/ready.rs",
        "agent/src/volume/keeper/report.rs",
        "brain/src/scheduler",
        "brain/src/controllers",
        "brain/src/policies/book.rs",
        "brain/src/policies/request.rs",
        "brain/src/policies/verdict.rs",
        "brain/src/cluster/state.rs",
        "brain/src/cluster/desired.rs",
    ];
    let banned = [
        "async fn",
        ".await",
        "SystemTime::now",
        "Instant::now",
        "UnixMillis::now",
        "rand::",
        "std::fs",
        "::random()",
    ];
    for (path, text) in sources() {
        let name = path
            .strip_prefix(root())
            .expect("below")
            .to_string_lossy()
            .into_owned();
        if !pure.iter().any(|p| name.starts_with(p)) || name.contains("tests") || name.contains("sim.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or(&text);
        for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
            for word in banned {
                assert!(!line.contains(word), "{name}: a decision does {word}: {line}");
            }
        }
    }
}

#[test]
fn unsafe_lives_in_one_place_and_gives_its_reason() {
    for (path, text) in sources() {
        let name = path
            .strip_prefix(root())
            .expect("below")
            .to_string_lossy()
            .into_owned();
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let opens = code.contains(concat!("unsafe", " {")) || code.contains(concat!("unsafe", " fn"));
            if !opens {
                continue;
            }
            assert!(
                name.starts_with("agent/src/sys/"),
                "{name}:{}: only agent/src/sys may",
                n + 1
            );
            let reason = lines[n.saturating_sub(4)..=n]
                .iter()
                .any(|l| l.contains("SAFETY"));
            assert!(reason, "{name}:{}: the invariant is not stated", n + 1);
        }
    }
    for part in ["common/src/lib.rs", "brain/src/lib.rs"] {
        let text = std::fs::read_to_string(root().join(part)).expect("lib");
        assert!(text.contains("#![forbid(unsafe_code)]"), "{part}");
    }
}

#[test]
fn files_stay_small_and_say_what_they_own() {
    for (path, text) in sources() {
        let name = path
            .strip_prefix(root())
            .expect("below")
            .to_string_lossy()
            .into_owned();
        // "About 400": what is beyond 700 is two things.
        assert!(
            text.lines().count() <= 700,
            "{name} has {} lines",
            text.lines().count()
        );
        let tests = name.contains("tests") || name.contains("fixtures") || name.contains("cases");
        assert!(
            tests || text.starts_with("//!") || text.starts_with("#!"),
            "{name} does not say what it owns"
        );
        assert!(
            !name.ends_with("util.rs") && !name.ends_with("utils.rs") && !name.ends_with("helpers.rs"),
            "{name}"
        );
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("#[ig", "nore"),
    ];
    for (path, text) in sources() {
        for mark in marks {
            assert!(!text.contains(mark), "{}: {mark}", path.display());
        }
    }
}

#[test]
fn shipped_units_are_whole() {
    for unit in ["berth-brain.service", "berth-agent.service"] {
        let text = std::fs::read_to_string(root().join("systemd").join(unit)).expect(unit);
        let mut section = "";
        for line in text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty() && !l.starts_with('#'))
        {
            if line.starts_with('[') {
                section = line;
                assert!(
                    ["[Unit]", "[Service]", "[Install]"].contains(&line),
                    "{unit}: {line}"
                );
            } else {
                assert!(line.contains('=') && !section.is_empty(), "{unit}: {line}");
            }
        }
        for wanted in [
            "Restart=always",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "UMask=0077",
            "Type=notify",
            "WatchdogSec=",
        ] {
            assert!(text.contains(wanted), "{unit} lacks {wanted}");
        }
    }
    let agent = std::fs::read_to_string(root().join("systemd/berth-agent.service")).expect("unit");
    assert!(
        agent.contains("KillMode=process"),
        "R3: stopping the agent must stop no container"
    );
    // systemd.exec(5): each gives the unit a mount namespace, in which containerd's shims would not see the agent's mounts.
    for key in [
        "Private",
        "Protect",
        "ProcSubset",
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "TemporaryFileSystem",
        "BindPaths",
        "BindReadOnlyPaths",
        "MountFlags",
        "RootDirectory",
        "RootImage",
        "DynamicUser",
    ] {
        assert!(
            !agent.lines().any(|line| line.starts_with(key)),
            "{key} hides the agent's mounts from containerd"
        );
    }
}

#[test]
fn every_error_is_documented() {
    let text = std::fs::read_to_string(root().join("docs/errors.md")).expect("docs/errors.md");
    for kind in berth_common::error::ErrorKind::ALL {
        assert!(text.contains(kind.slug()), "docs/errors.md lacks {}", kind.slug());
    }
}

/// Every Rust file of the project, as one text.
fn all_code() -> String {
    let mut text = String::new();
    let mut dirs: Vec<_> = ["common", "agent", "brain", "tests"]
        .iter()
        .map(|d| root().join(d))
        .collect();
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("folder").map_while(Result::ok) {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&std::fs::read_to_string(&path).expect("file"));
            }
        }
    }
    text
}

#[test]
fn the_tests_that_show_faults_exist() {
    let page = std::fs::read_to_string(root().join("docs/faults.md")).expect("docs/faults.md");
    let code = all_code();
    let rows = page.lines().filter(|line| line.starts_with("| ")).skip(2);
    let names: Vec<&str> = rows
        .filter_map(|row| row.rsplit('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|name| name.len() > 8)
        .collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        assert!(
            code.contains(&format!("fn {name}(")),
            "docs/faults.md names {name}, which is not there"
        );
    }
}

#[test]
fn readme_commands_exist() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    for script in ["scripts/up", "scripts/test", "scripts/down", "scripts/bench"] {
        assert!(readme.contains(script), "README lacks {script}");
        assert!(root().join(script).exists());
    }
}
