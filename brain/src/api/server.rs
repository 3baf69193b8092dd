//! Layers around the routes, and the listener.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::{Router, ServiceExt};
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use tower_http::catch_panic::CatchPanicLayer;

use super::{ApiState, limits, metrics, problem};

/// Time that requests under way have to finish when the brain stops.
const GRACE: Duration = Duration::from_secs(5);
/// Time a client has for its handshake, and for the head of its first request.
const FIRST_WORDS: Duration = Duration::from_secs(10);

/// Puts the layers around the routes, outermost last: request ids and problems, then what is counted, then panics, then
/// rates.
pub(super) fn layers(routes: Router<ApiState>, state: &ApiState) -> Router<ApiState> {
    routes
        .layer(DefaultBodyLimit::max(problem::MAX_JSON))
        .layer(from_fn_with_state(state.clone(), limits::by_address))
        .layer(CatchPanicLayer::new())
        .layer(from_fn_with_state(state.clone(), metrics::count))
        .layer(from_fn(problem::stamp))
}

/// Serves the API until `shutdown` is ready, then lets requests under way finish for five seconds.
///
/// # Errors
/// When the address can't be bound or the listener fails.
pub async fn serve(
    state: ApiState,
    listen: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(listen)?;
    serve_on(state, listener, tls, shutdown).await
}

/// As [`serve`], on a bound listener.
///
/// # Errors
/// When the listener fails.
pub async fn serve_on(
    state: ApiState,
    listener: std::net::TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let handle = Handle::new();
    let stop = handle.clone();
    let waiter = tokio::spawn(async move {
        shutdown.await;
        stop.graceful_shutdown(Some(GRACE));
    });
    let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(tls)).handshake_timeout(FIRST_WORDS);
    let app = super::router(state);
    let served = axum_server::from_tcp(listener)?
        .acceptor(acceptor)
        .first_request_timeout(FIRST_WORDS)
        .handle(handle)
        .serve(ServiceExt::<axum::extract::Request>::into_make_service_with_connect_info::<SocketAddr>(app))
        .await;
    waiter.abort();
    served
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::api::fixtures::Bench;

    /// A server's and a client's side of one self-signed certificate.
    fn tls() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
        let made = rcgen::generate_simple_self_signed(["brain.berth".to_owned()]).unwrap();
        let cert = made.cert.der().clone();
        let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.clone()], key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cert).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server), Arc::new(client))
    }

    fn fetch(to: SocketAddr, client: Arc<rustls::ClientConfig>) -> String {
        let name = "brain.berth".try_into().unwrap();
        let connection = rustls::ClientConnection::new(client, name).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, std::net::TcpStream::connect(to).unwrap());
        let request = "GET /v1/version HTTP/1.1\r\nhost: brain.berth\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        // The peer may close without saying so in TLS; what arrived before is what counts.
        let _ = stream.read_to_string(&mut text);
        text
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn it_speaks_tls_and_stops_when_told() {
        let bench = Bench::new().await;
        let (server, client) = tls();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = tokio::spawn(serve_on(bench.api.clone(), listener, server, async move {
            let _ = stopped.await;
        }));
        let text = tokio::task::spawn_blocking(move || fetch(to, client))
            .await
            .unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(
            text.contains("x-request-id") && text.contains(env!("CARGO_PKG_VERSION")),
            "{text}"
        );
        stop.send(()).unwrap();
        let end = tokio::time::timeout(GRACE * 2, served).await;
        end.expect("it stops").unwrap().unwrap();
    }
}
