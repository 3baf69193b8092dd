//! The one-line installer: the brain serves a script that makes a host a node, and the programs that this needs.
//!
//! Open to everyone: there is no secret in it. Who fetches the script checks the brain by the pin of its public key, which
//! is part of the line that `berth node token` prints; the script carries the pin and the digest of every file.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use berth_common::error::{ErrorKind, Problem};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;

use super::ApiState;
use super::problem::ApiError;
use crate::config;

/// The programs of a node, as they lie in the folder of programs.
const PROGRAMS: [&str; 3] = ["berth-agent", "berth-log", "berth-init"];
/// The units of a node.
const UNITS: [(&str, &str); 2] = [
    (
        "berth-agent.service",
        include_str!("../../../systemd/berth-agent.service"),
    ),
    (
        "berth-containers.service",
        include_str!("../../../systemd/berth-containers.service"),
    ),
];
const SCRIPT: &str = include_str!("install.sh");
/// Other architectures have a folder of this name each.
const ARCHITECTURES: [&str; 4] = ["x86_64", "aarch64", "armv7l", "riscv64"];

/// What the installer is made of.
#[derive(Debug)]
pub struct Installer {
    /// Where the programs are: those for the brain's own architecture, and a folder for each other one.
    programs: PathBuf,
    /// curl's `--pinnedpubkey` for the brain's key.
    pin: String,
    /// A file's digest is computed once, until the file changes.
    digests: Mutex<HashMap<PathBuf, (SystemTime, String)>>,
}

impl Installer {
    /// An installer of the programs in a folder, for a brain with this pin.
    pub fn new(programs: PathBuf, pin: String) -> Self {
        Self {
            programs,
            pin,
            digests: Mutex::default(),
        }
    }

    /// The line that makes a host a node.
    pub fn line(&self, brain: &str, token: &str) -> String {
        format!(
            "curl -fsSk --pinnedpubkey '{}' https://{brain}/install | sudo sh -s -- {token}",
            self.pin
        )
    }

    fn path(&self, arch: &str, program: &str) -> PathBuf {
        let own = arch == std::env::consts::ARCH && !self.programs.join(arch).is_dir();
        match own {
            true => self.programs.join(program),
            false => self.programs.join(arch).join(program),
        }
    }

    fn digest(&self, path: &Path) -> io::Result<String> {
        let changed = std::fs::metadata(path)?.modified()?;
        if let Some((at, digest)) = self.digests.lock().get(path)
            && *at == changed
        {
            return Ok(digest.clone());
        }
        let mut hash = Sha256::new();
        io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
        let digest = hex::encode(hash.finalize());
        self.digests
            .lock()
            .insert(path.to_owned(), (changed, digest.clone()));
        Ok(digest)
    }

    /// `arch file digest`, a line each, of the architectures that are complete.
    fn sums(&self) -> String {
        let mut sums = String::new();
        for arch in ARCHITECTURES {
            let digests: io::Result<Vec<_>> = PROGRAMS
                .iter()
                .map(|program| Ok((*program, self.digest(&self.path(arch, program))?)))
                .collect();
            let Ok(mut digests) = digests else { continue };
            digests.extend(UNITS.map(|(unit, text)| (unit, hex::encode(Sha256::digest(text)))));
            for (file, digest) in digests {
                sums.push_str(&format!("{arch} {file} {digest}\n"));
            }
        }
        sums.trim_end().to_owned()
    }

    fn script(&self, brains: &[String]) -> String {
        SCRIPT
            .replace("@BRAINS@", &brains.join(" "))
            .replace("@PIN@", &self.pin)
            .replace("@VERSION@", berth_common::VERSION)
            .replace("@SUMS@", &self.sums())
    }
}

/// The routes, which stand beside `/v1`.
pub fn routes() -> Router<ApiState> {
    Router::new()
        .route("/install", get(script))
        .route("/install/{arch}/{file}", get(file))
}

/// The brain's addresses for the script: first the one at which it was asked, which may be known to nobody but the caller's
/// router. It ends up in a shell script, so only what an address is made of passes.
fn brains(asked: Option<&str>, advertise: &[String]) -> Vec<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    let asked = asked.filter(|host| host.chars().all(plain) && config::split(host).is_some());
    let mut all: Vec<String> = asked.map(str::to_owned).into_iter().collect();
    all.extend(
        advertise
            .iter()
            .filter(|address| asked != Some(address.as_str()))
            .cloned(),
    );
    all
}

async fn script(State(state): State<ApiState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let held = Arc::clone(&state.installer);
    let asked = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let brains = brains(asked, &state.advertise);
    let script = tokio::task::spawn_blocking(move || held.script(&brains))
        .await
        .map_err(|error| Problem::new(ErrorKind::Internal, error.to_string()))?;
    Ok((
        [(header::CONTENT_TYPE, "text/x-shellscript; charset=utf-8")],
        script,
    )
        .into_response())
}

async fn file(
    State(state): State<ApiState>,
    axum::extract::Path((arch, name)): axum::extract::Path<(String, String)>,
) -> Result<Response, ApiError> {
    let missing = || {
        Problem::new(ErrorKind::NotFound, "the installer has no such file")
            .cure("GET /install says which files there are")
    };
    if let Some((_, text)) = UNITS.iter().find(|(unit, _)| *unit == name) {
        return Ok((*text).into_response());
    }
    // Only known names: nothing else of the folder can be asked for.
    if !PROGRAMS.contains(&name.as_str()) || !ARCHITECTURES.contains(&arch.as_str()) {
        return Err(missing().into());
    }
    let path = state.installer.path(&arch, &name);
    let file = tokio::fs::File::open(&path).await.map_err(|_| missing())?;
    let length = file.metadata().await.map(|found| found.len()).unwrap_or(0);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(file))).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installer() -> (tempfile::TempDir, Installer) {
        let dir = tempfile::tempdir().unwrap();
        for program in PROGRAMS {
            std::fs::write(dir.path().join(program), program).unwrap();
        }
        let installer = Installer::new(dir.path().to_owned(), "sha256//AAAA".to_owned());
        (dir, installer)
    }

    #[test]
    fn the_script_knows_every_file_of_every_complete_architecture() {
        let (dir, installer) = installer();
        let own = std::env::consts::ARCH;
        std::fs::create_dir(dir.path().join("riscv64")).unwrap();
        std::fs::write(dir.path().join("riscv64/berth-agent"), "alone").unwrap();
        let script = installer.script(&["192.0.2.1:7443".to_owned(), "brain.example:7443".to_owned()]);
        for blank in ["@BRAINS@", "@PIN@", "@VERSION@", "@SUMS@"] {
            assert!(
                SCRIPT.contains(blank) && !script.contains(blank),
                "{blank} is filled in"
            );
        }
        assert!(script.contains("BRAINS='192.0.2.1:7443 brain.example:7443'"));
        let digest = hex::encode(Sha256::digest("berth-log"));
        assert!(
            script.contains(&format!("{own} berth-log {digest}\n")),
            "{script}"
        );
        assert!(script.contains(&format!("{own} berth-containers.service ")));
        assert!(
            !script.contains("riscv64 berth"),
            "what is not whole is not offered"
        );
        // A program that was replaced is told anew.
        std::fs::write(dir.path().join("berth-log"), "another").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        let file = std::fs::File::options()
            .append(true)
            .open(dir.path().join("berth-log"))
            .unwrap();
        file.set_modified(later).unwrap();
        assert!(!installer.script(&[]).contains(&digest));
    }

    #[test]
    fn the_address_that_was_asked_comes_first_and_nothing_else_gets_into_the_script() {
        let advertise = ["192.0.2.1:7443".to_owned()];
        assert_eq!(
            brains(Some("brain.example:7443"), &advertise),
            ["brain.example:7443", "192.0.2.1:7443"]
        );
        for host in [
            None,
            Some("192.0.2.1:7443"),
            Some("no-port"),
            Some("';id;':1"),
            Some("$(id):1"),
            Some(""),
        ] {
            assert_eq!(brains(host, &advertise), advertise, "{host:?}");
        }
        assert_eq!(brains(Some("[2001:db8::1]:7443"), &[]), ["[2001:db8::1]:7443"]);
    }

    #[test]
    fn the_script_is_a_script() {
        let (_dir, installer) = installer();
        let script = installer.script(&["192.0.2.1:7443".to_owned()]);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        io::Write::write_all(&mut file, script.as_bytes()).unwrap();
        let out = std::process::Command::new("sh")
            .arg("-n")
            .arg(file.path())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}
