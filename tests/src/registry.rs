//! A small image registry in this process that can misbehave on request.
//!
//! Speaks just enough of HTTP/1.1 by hand, because a well-made server library would refuse to send what a hostile one
//! does: bodies that end early, answers that never come, blobs that are not what their name says.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_common::model::Digest;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// An uncompressed layer.
#[derive(Debug, Clone)]
pub struct Layer(pub Vec<u8>);

impl Layer {
    /// Of regular files, with their names as they are, also hostile ones.
    pub fn files(files: &[(&str, &[u8])]) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, body) in files {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(body.len() as u64);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_cksum();
            tar.append(&header, *body).expect("archive in memory");
        }
        Self(tar.into_inner().expect("archive in memory"))
    }
}

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As it is.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// An image in memory.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Digest of its config.
    pub config: Digest,
    /// Digests of its layers as stored.
    pub layers: Vec<Digest>,
    /// Manifest, config and layers.
    pub blobs: BTreeMap<Digest, Vec<u8>>,
}

/// The architecture of this host as images name it.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Image {
    /// Builds one, in OCI's or docker's media types.
    pub fn new(layers: &[(Layer, Packing)], docker: bool) -> Self {
        let mut blobs = BTreeMap::new();
        let mut add = |body: Vec<u8>| {
            let digest = Digest::of(&body);
            let size = body.len();
            blobs.insert(digest, body);
            (digest, size)
        };
        let mut descriptors = Vec::new();
        let mut digests = Vec::new();
        let mut diff_ids = Vec::new();
        for (layer, packing) in layers {
            diff_ids.push(Digest::of(&layer.0).to_string());
            let (packed, suffix) = match packing {
                Packing::Plain => (layer.0.clone(), ""),
                Packing::Gzip => {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(&layer.0).expect("memory");
                    (gzip.finish().expect("memory"), "gzip")
                }
                Packing::Zstd => (zstd::stream::encode_all(&layer.0[..], 1).expect("memory"), "zstd"),
            };
            let media = match (docker, suffix) {
                (true, "gzip") => "application/vnd.docker.image.rootfs.diff.tar.gzip".to_owned(),
                (true, _) => "application/vnd.docker.image.rootfs.diff.tar".to_owned(),
                (false, "") => "application/vnd.oci.image.layer.v1.tar".to_owned(),
                (false, suffix) => format!("application/vnd.oci.image.layer.v1.tar+{suffix}"),
            };
            let (digest, size) = add(packed);
            digests.push(digest);
            descriptors.push(json!({"mediaType": media, "digest": digest, "size": size}));
        }
        let config = json!({"architecture": arch(), "os": "linux", "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"]},
                            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let (config, size) = add(serde_json::to_vec(&config).expect("json"));
        let (media, config_media) = match docker {
            true => (
                "application/vnd.docker.distribution.manifest.v2+json",
                "application/vnd.docker.container.image.v1+json",
            ),
            false => (
                "application/vnd.oci.image.manifest.v1+json",
                "application/vnd.oci.image.config.v1+json",
            ),
        };
        let manifest = json!({"schemaVersion": 2, "mediaType": media,
                              "config": {"mediaType": config_media, "digest": config, "size": size}, "layers": descriptors});
        let (manifest, _) = add(serde_json::to_vec(&manifest).expect("json"));
        Self {
            manifest,
            config,
            layers: digests,
            blobs,
        }
    }

    /// Wraps it into an index that also names an image for another platform; gives the index's digest.
    pub fn indexed(mut self) -> (Self, Digest) {
        let size = self.blobs[&self.manifest].len();
        let entry = |digest: String, arch: &str| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
                   "platform": {"os": "linux", "architecture": arch}})
        };
        let other = format!("sha256:{}", "0".repeat(64));
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                           "manifests": [entry(other, "s390x"), entry(self.manifest.to_string(), arch())]});
        let body = serde_json::to_vec(&index).expect("json");
        let digest = Digest::of(&body);
        self.blobs.insert(digest, body);
        (self, digest)
    }
}

/// What to do wrong with requests for one digest or tag.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answer with this status, so many times.
    Status(u16, u32),
    /// Accept the request and never answer.
    Hang,
    /// End the body after so many bytes of it, so many times.
    Cut(usize, u32),
    /// Send nothing more after so many bytes of the body, and keep the connection; so many times.
    Stall(usize, u32),
    /// Send this instead.
    Body(Vec<u8>),
    /// Pretend not to know of ranges.
    NoRange,
    /// Answer with a redirect.
    Redirect(String),
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Path and query.
    pub path: String,
    /// The Authorization header.
    pub authorization: Option<String>,
    /// The Range header.
    pub range: Option<String>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<Digest, Vec<u8>>,
    /// `repository:tag` to digest.
    tags: HashMap<String, Digest>,
    faults: HashMap<String, Fault>,
    login: Option<(String, String)>,
    realm: Option<String>,
    seen: Vec<Seen>,
    delay: Duration,
}

/// The running registry; it ends when dropped.
pub struct Registry {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

const TOKEN: &str = "a-token-of-the-test-registry";

impl Registry {
    /// Starts on a free port of the loopback address.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, shared.clone(), address));
            }
        });
        Self { address, state, task }
    }

    /// `host:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The reference under which an image of [`Self::add`] is found here.
    pub fn reference(&self, name: &str) -> berth_common::model::ImageRef {
        format!("{}/{name}", self.address).parse().expect("a reference")
    }

    /// Offers an image as `repository:tag`. `top` is its manifest or index.
    pub fn add(&self, name: &str, image: &Image, top: Digest) {
        let mut state = self.state.lock().expect("lock");
        state.blobs.extend(image.blobs.clone());
        state.tags.insert(name.to_owned(), top);
    }

    /// Forgets a blob.
    pub fn forget(&self, digest: Digest) {
        self.state.lock().expect("lock").blobs.remove(&digest);
    }

    /// Misbehaves when asked for this digest, or tag.
    pub fn fault(&self, what: impl ToString, fault: Fault) {
        self.state
            .lock()
            .expect("lock")
            .faults
            .insert(what.to_string(), fault);
    }

    /// Behaves again.
    pub fn heal(&self) {
        let mut state = self.state.lock().expect("lock");
        state.faults.clear();
        state.delay = Duration::ZERO;
    }

    /// Waits before each answer.
    pub fn slow(&self, delay: Duration) {
        self.state.lock().expect("lock").delay = delay;
    }

    /// From now on asks for a token, which only this user gets. `realm` names another token service than its own.
    pub fn require_login(&self, user: &str, password: &str, realm: Option<String>) {
        let mut state = self.state.lock().expect("lock");
        state.login = Some((user.to_owned(), password.to_owned()));
        state.realm = realm;
    }

    /// Requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().expect("lock").seen.clone()
    }

    /// Requests for one digest or tag so far.
    pub fn asked_for(&self, what: impl ToString) -> usize {
        let end = format!("/{}", what.to_string());
        self.seen()
            .iter()
            .filter(|seen| seen.path.ends_with(&end))
            .count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Send only so many bytes of the body.
    cut: Option<usize>,
    /// Then wait for the client to give up.
    stall: bool,
}

impl Answer {
    fn plain(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            cut: None,
            stall: false,
        }
    }
}

async fn serve(mut socket: TcpStream, state: Arc<Mutex<State>>, address: SocketAddr) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) if head.len() < 64 << 10 => head.push(byte),
            _ => return,
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let header = |name: &str| {
        let lines = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines
            .clone()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    let seen = Seen {
        path,
        authorization: header("authorization"),
        range: header("range"),
    };
    let (delay, answer) = {
        let mut state = state.lock().expect("lock");
        state.seen.push(seen.clone());
        (state.delay, answer(&mut state, &seen, address))
    };
    tokio::time::sleep(delay).await;
    let Some(answer) = answer else {
        // Hangs until the client gives up.
        let _ = socket.read_u8().await;
        return;
    };
    let mut out = format!(
        "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    let body = &answer.body[..answer.cut.unwrap_or(answer.body.len()).min(answer.body.len())];
    let _ = socket.write_all(out.as_bytes()).await;
    let _ = socket.write_all(body).await;
    if answer.stall {
        let _ = socket.read_u8().await;
    }
    let _ = socket.shutdown().await;
}

fn answer(state: &mut State, seen: &Seen, address: SocketAddr) -> Option<Answer> {
    if seen.path.starts_with("/token") {
        let (user, password) = state.login.clone().unwrap_or_default();
        use base64::Engine as _;
        let expected = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        if seen.authorization.as_deref() != Some(&format!("Basic {expected}")) {
            return Some(Answer::plain(401));
        }
        let mut answer = Answer::plain(200);
        answer.body = serde_json::to_vec(&json!({"token": TOKEN})).expect("json");
        return Some(answer);
    }
    if state.login.is_some() && seen.authorization.as_deref() != Some(&format!("Bearer {TOKEN}")) {
        let realm = state
            .realm
            .clone()
            .unwrap_or_else(|| format!("http://{address}/token"));
        let mut answer = Answer::plain(401);
        let challenge = format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:x:pull\"");
        answer.headers.push(("WWW-Authenticate", challenge));
        return Some(answer);
    }
    let (rest, what) = seen.path.rsplit_once('/')?;
    let repository = rest.trim_start_matches("/v2/");
    let repository = repository
        .trim_end_matches("/manifests")
        .trim_end_matches("/blobs");
    let fault = match state.faults.get_mut(what) {
        Some(Fault::Status(_, 0) | Fault::Cut(_, 0) | Fault::Stall(_, 0)) | None => None,
        Some(fault) => {
            let now = fault.clone();
            if let Fault::Status(_, left) | Fault::Cut(_, left) | Fault::Stall(_, left) = fault {
                *left -= 1;
            }
            Some(now)
        }
    };
    match &fault {
        Some(Fault::Hang) => return None,
        Some(Fault::Status(status, _)) => return Some(Answer::plain(*status)),
        Some(Fault::Redirect(to)) => {
            let mut answer = Answer::plain(307);
            answer.headers.push(("Location", to.clone()));
            return Some(answer);
        }
        _ => {}
    }
    let digest = what
        .parse()
        .ok()
        .or_else(|| state.tags.get(&format!("{repository}:{what}")).copied());
    let Some(body) = digest.and_then(|digest| state.blobs.get(&digest)) else {
        return Some(Answer::plain(404));
    };
    let mut answer = Answer::plain(200);
    answer.body = body.clone();
    let offset = seen.range.as_deref().and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    match (offset, fault) {
        (_, Some(Fault::Body(other))) => answer.body = other,
        (_, Some(Fault::NoRange)) | (None, None) => {}
        (offset, fault) => {
            if let Some(offset) = offset.filter(|offset| *offset <= answer.body.len()) {
                answer.status = 206;
                let last = answer.body.len().saturating_sub(1);
                answer.headers.push((
                    "Content-Range",
                    format!("bytes {offset}-{last}/{}", answer.body.len()),
                ));
                answer.body.drain(..offset);
            }
            if let Some(Fault::Cut(after, _) | Fault::Stall(after, _)) = fault {
                answer.cut = Some(after);
                answer.stall = matches!(fault, Some(Fault::Stall(..)));
            }
        }
    }
    Some(answer)
}
