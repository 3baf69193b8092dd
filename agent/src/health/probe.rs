//! Asking: a connection, a page, or a command, each from where the container's own programs would.
//!
//! The container is hostile: what it answers is bounded in time (by the caller) and in size, and shown as text alone.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use berth_common::model::{HttpCheck, Probe};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};

use super::Target;
use crate::container::command::{self, shown};
use crate::container::runtime::Runtime;
use crate::network::Namespace;
use crate::reconcile::apply::chain;

/// Most bytes of an answer that are kept.
const OUTPUT: usize = 300;
/// Most bytes of an answer's head.
const HEAD: usize = 16 << 10;

/// Who checks.
#[async_trait]
pub trait Prober: Send + Sync + 'static {
    /// Checks once. What is wrong comes out in words; it may take for ever.
    async fn probe(&self, target: &Target) -> Result<(), String>;
}

/// Checks containers of a runtime.
pub struct RuntimeProber(Arc<dyn Runtime>);

impl RuntimeProber {
    /// Over a runtime, which runs the commands.
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self(runtime)
    }
}

#[async_trait]
impl Prober for RuntimeProber {
    async fn probe(&self, target: &Target) -> Result<(), String> {
        match target.check.probe() {
            None => Err("this agent does not know this kind of check; upgrade it".to_owned()),
            Some(Probe::Tcp(port)) => connect(target, port).await.map(drop),
            Some(Probe::Http(http)) => get(target, http).await,
            Some(Probe::Command(words)) => command::run(&*self.0, target.id, words).await,
        }
    }
}

/// Connects from inside the container's network: so neither its tenant's rules nor the host's have a say.
async fn connect(target: &Target, port: u16) -> Result<TcpStream, String> {
    let address = target.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let at = SocketAddr::new(address, port);
    let pid = target.pid;
    let made = tokio::task::spawn_blocking(move || {
        let socket = move || match address {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        };
        Namespace::of_process(pid)?.within(socket)?
    });
    let socket = made.await.map_err(|error| error.to_string())?;
    let socket = socket.map_err(|error| format!("its network can't be entered: {error}"))?;
    socket.connect(at).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            format!(
                "nobody listens at {at} (a program that listens at 127.0.0.1 alone is reached by nobody else)"
            )
        }
        _ => format!("connecting to {at}: {error}"),
    })
}

async fn get(target: &Target, http: &HttpCheck) -> Result<(), String> {
    let stream = connect(target, http.port).await?;
    let failed = |error: hyper::Error| format!("GET {}: {}", http.path, chain(&error));
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(HEAD);
    let (mut sender, connection) = builder
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let host = target
        .address
        .map_or_else(|| "localhost".to_owned(), |address| address.to_string());
    let request = hyper::Request::get(http.path.as_str())
        .header("host", host)
        .header("user-agent", concat!("berth-agent/", env!("CARGO_PKG_VERSION")))
        .header("connection", "close")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let asked = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        let text = beginning(answer.into_body()).await;
        Err(format!("GET {} was answered with {status}: {text}", http.path))
    };
    // A connection that ends has given its answer to whoever asked, or the reason why there is none.
    let carried = async {
        let _ = connection.await;
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        done = asked => done,
        never = carried => match never {},
    }
}

/// The first words of an answer.
async fn beginning(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < OUTPUT
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data[..data.len().min(OUTPUT)]);
        }
    }
    shown(&bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_common::id::ContainerId;
    use berth_common::model::HealthCheck;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::fakes::FakeRuntime;

    /// A check of this process itself, at a port that answers each connection so.
    async fn checked(answer: &'static [u8], http: bool) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer).await;
            }
        });
        probe(port, http).await
    }

    async fn probe(port: u16, http: bool) -> Result<(), String> {
        let check = HealthCheck {
            tcp: (!http).then_some(port),
            http: http.then(|| HttpCheck {
                port,
                path: "/ready?now".into(),
            }),
            ..HealthCheck::default()
        };
        let target = Target {
            id: ContainerId::random(),
            pid: std::process::id(),
            address: None,
            check,
        };
        let prober = RuntimeProber::new(Arc::new(FakeRuntime::default()));
        let asked = tokio::time::timeout(Duration::from_secs(10), prober.probe(&target));
        asked.await.expect("in time")
    }

    #[tokio::test]
    async fn answers_are_judged_by_their_status_and_shown_as_text() {
        let well = checked(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true).await;
        assert_eq!(well, Ok(()));
        assert_eq!(
            checked(b"HTTP/1.0 302 Found\r\nlocation: /x\r\n\r\n", true).await,
            Ok(())
        );
        let ill = checked(
            b"HTTP/1.1 503 Busy\r\ncontent-length: 12\r\n\r\nno\x1b[31m db\n\0",
            true,
        )
        .await;
        let ill = ill.unwrap_err();
        assert!(
            ill.contains("503") && ill.contains("no [31m db") && !ill.contains('\x1b'),
            "{ill}"
        );
        assert!(
            checked(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", true)
                .await
                .is_err()
        );
        assert_eq!(checked(b"", false).await, Ok(()));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_a_failure_and_nothing_more() {
        for nonsense in [
            &b""[..],
            b"\0\0\0\0",
            b"HTTP/1.1 999999 \r\n\r\n",
            b"SSH-2.0-x\r\n",
        ] {
            let said = checked(nonsense, true).await.unwrap_err();
            assert!(said.starts_with("GET /ready?now"), "{said}");
        }
        let endless: &'static [u8] = vec![b'a'; 1 << 20].leak();
        assert!(checked(endless, true).await.is_err());
        let head = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'a'; 1 << 20]].concat();
        assert!(checked(head.leak(), true).await.is_err());
        let body = [b"HTTP/1.1 500 No\r\n\r\n".to_vec(), vec![b'a'; 1 << 20]].concat();
        let said = checked(body.leak(), true).await.unwrap_err();
        assert!(said.len() < 500, "{}", said.len());
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_at_is_told_with_what_it_may_be() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let said = probe(free, false).await.unwrap_err();
        assert!(
            said.contains("nobody listens at 127.0.0.1") && said.contains("127.0.0.1 alone"),
            "{said}"
        );
    }
}
