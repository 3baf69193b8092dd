//! The bench that end-to-end tests stand on: real programs, real containerd, hosts as network namespaces or virtual machines.
//!
//! Owns starting and stopping, and cleans up in `Drop` also when a test fails: processes by pid, mounts and cgroups by the
//! test's own folder and ids; and by [`reaper`] when a test is killed. Refuses to skip: a missing prerequisite is a failed test with its cure.

pub mod acknowledged;
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

/// The example image as an archive.
pub fn example_image() -> &'static Path {
    static IMAGE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    IMAGE.get_or_init(|| image("example-image", &["busybox"]))
}

/// PostgreSQL and SQLite as an image's archive.
pub fn database_image() -> PathBuf {
    image("database-image", &["busybox", "sqlite3", "psql"])
}

/// An image's archive: made once for each version of its recipe and of the programs in it, and kept in the target folder, where all test
/// processes find it.
fn image(recipe: &str, programs: &[&str]) -> PathBuf {
    let script = root().join("scripts").join(recipe);
    let mut made_of = [&script, &root().join("scripts/lib.sh")]
        .map(|file| std::fs::read(file).expect("the recipe"))
        .concat();
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in programs {
        let found = std::env::split_paths(&path).find_map(|dir| std::fs::metadata(dir.join(program)).ok());
        let found =
            found.unwrap_or_else(|| panic!("{program} is not installed; run the tests by scripts/test"));
        made_of.extend(format!("{program} {} {:?}", found.len(), found.modified()).into_bytes());
    }
    let dir = root().join("target/tmp");
    std::fs::create_dir_all(&dir).expect("target/tmp");
    let image = dir.join(format!("{recipe}-{}.tar", lab::store::key([made_of.as_slice()])));
    if !image.exists() {
        // Others may be making it, too: whoever is last puts the same there.
        let made = dir.join(format!("{recipe}-{}.part", std::process::id()));
        let out = std::process::Command::new(script).arg(&made).output();
        let out = out.expect("the recipe runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::rename(&made, &image).expect("renamed");
    }
    image
}
