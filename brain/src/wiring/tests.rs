//! A whole brain in a folder: first start, restart, refusal of a second one.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn config(dir: &Path) -> Config {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    Config {
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
        state_dir: dir.join("state"),
        ..Config::default()
    }
}

struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), BrainError>>,
}

async fn start(config: &Config) -> Running {
    let (told, up) = tokio::sync::oneshot::channel();
    let stop = CancellationToken::new();
    let ready = || {
        let _ = told.send(());
    };
    let task = tokio::spawn(run(config.clone(), stop.clone(), ready));
    if up.await.is_err() {
        panic!("{:?}", task.await);
    }
    Running { stop, task }
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), self.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// The status line that the API answers a request for tenants with.
async fn tenants(config: &Config, token: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let pem = fs::read_to_string(config.state_dir.join("ca/ca.crt")).unwrap();
    let ca = berth_common::identity::parse_cert("it", &pem).unwrap();
    let tls = Arc::new(berth_common::identity::http_client_tls(&ca).unwrap());
    let mut client = rustls::ClientConnection::new(tls, "127.0.0.1".try_into().unwrap()).unwrap();
    let request = format!(
        "GET /v1/tenants HTTP/1.1\r\nhost: brain\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    io::Write::write_all(&mut client.writer(), request.as_bytes()).unwrap();
    let mut socket = tokio::net::TcpStream::connect(config.listen).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let mut out = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut out).unwrap();
        }
        socket.write_all(&out).await.unwrap();
        let mut bytes = [0; 4096];
        let read = socket.read(&mut bytes).await.unwrap();
        if read == 0 {
            return String::from_utf8_lossy(&answer).into_owned();
        }
        let mut received = &bytes[..read];
        while !received.is_empty() {
            client.read_tls(&mut received).unwrap();
            client.process_new_packets().unwrap();
            let _ = io::Read::read_to_end(&mut client.reader(), &mut answer);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_makes_a_tenant_and_a_token_that_last() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let brain = start(&config).await;
    let path = config.state_dir.join(first::TOKEN_FILE);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let token = fs::read_to_string(&path).unwrap();
    let answer = tenants(&config, token.trim()).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"default\""),
        "{answer}"
    );
    assert!(tenants(&config, "berth_x").await.starts_with("HTTP/1.1 401"));
    // One brain a folder.
    let second = Config {
        listen: self::config(dir.path()).listen,
        ..config.clone()
    };
    let refused = run(second, CancellationToken::new(), || {}).await;
    assert!(matches!(refused, Err(BrainError::Locked(_))), "{refused:?}");
    brain.stop().await;
    // The second start makes nothing anew.
    let brain = start(&config).await;
    assert_eq!(fs::read_to_string(&path).unwrap(), token);
    assert!(tenants(&config, token.trim()).await.starts_with("HTTP/1.1 200"));
    brain.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let _taken = TcpListener::bind(config.listen).unwrap();
    match run(config.clone(), CancellationToken::new(), || panic!("ready")).await {
        Err(BrainError::Bind { listen, .. }) => assert_eq!(listen, config.listen),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_a_host_that_just_booted_makes_the_brain_patient() {
    let seconds = |up| patience_ms(Some(Duration::from_secs(up))) / 1000;
    assert_eq!([0, 20, 179, 180, 9_999].map(seconds), [180, 160, 1, 0, 0]);
    assert_eq!(patience_ms(None), 0);
    assert!(uptime().is_some_and(|up| up > Duration::ZERO));
}
