//! The bench that end-to-end tests stand on: real programs, real containerd, hosts as network namespaces or virtual machines.
//!
//! Owns starting and stopping, and cleans up in `Drop` also when a test fails: processes by pid, mounts and cgroups by the
//! test's own folder and ids; and by [`reaper`] when a test is killed. Refuses to skip: a missing prerequisite is a failed test with its cure.

pub mod answer;
pub mod bench;
pub mod cluster;
pub mod containerd;
pub mod crowd;
pub mod fleet;
pub mod hammer;
pub mod host;
pub mod lab;
pub mod machine;
pub mod names;
pub mod operator;
pub mod overlay;
pub mod process;
pub mod reaper;
pub mod registry;
pub mod terminal;

use std::path::{Path, PathBuf};

/// The folder of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent")
        .to_path_buf()
}

/// A program built from this workspace: from `BERTH_BIN_DIR`, else beside the test's own executable.
pub fn program(name: &str) -> PathBuf {
    let dir = std::env::var_os("BERTH_BIN_DIR").map_or_else(
        || {
            let own = std::env::current_exe().expect("own path");
            own.parent()
                .and_then(Path::parent)
                .expect("target/<profile>/deps")
                .to_path_buf()
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is not built; run the tests by scripts/test",
        path.display()
    );
    path
}

/// The example image as an archive, made once a process.
pub fn example_image() -> &'static Path {
    static IMAGE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    IMAGE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("berth-example-{}.tar", std::process::id()));
        let out = std::process::Command::new(root().join("scripts/example-image"))
            .arg(&path)
            .output();
        let out = out.expect("scripts/example-image runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        path
    })
}
