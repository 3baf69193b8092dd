//! The bench that end-to-end tests stand on: real programs, real containerd, hosts as network namespaces or virtual machines.
//!
//! Owns starting and stopping, and cleans up in `Drop` also when a test fails: processes by pid, mounts and cgroups by the
//! test's own folder and ids; and by [`reaper`] when a test is killed. Refuses to skip: a missing prerequisite is a failed test with its cure.

pub mod answer;
pub mod bench;
pub mod cluster;
pub mod containerd;
pub mod crowd;
pub mod disk;
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

/// The example image as an archive: made once for each version of its recipe and of busybox, and kept in the target folder, where all test
/// processes find it.
pub fn example_image() -> &'static Path {
    static IMAGE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    IMAGE.get_or_init(|| {
        let recipe = root().join("scripts/example-image");
        let text = std::fs::read(&recipe).expect("scripts/example-image");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let busybox =
            std::env::split_paths(&path).find_map(|dir| std::fs::metadata(dir.join("busybox")).ok());
        let busybox = busybox.expect("busybox is not installed: apt-get install busybox-static");
        let stamp = format!("{} {:?}", busybox.len(), busybox.modified());
        let dir = root().join("target/tmp");
        std::fs::create_dir_all(&dir).expect("target/tmp");
        let image = dir.join(format!(
            "example-{}.tar",
            lab::store::key([text.as_slice(), stamp.as_bytes()])
        ));
        if !image.exists() {
            // Others may be making it, too: whoever is last puts the same there.
            let made = dir.join(format!("example-{}.part", std::process::id()));
            let out = std::process::Command::new(recipe).arg(&made).output();
            let out = out.expect("scripts/example-image runs");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            std::fs::rename(&made, &image).expect("renamed");
        }
        image
    })
}
