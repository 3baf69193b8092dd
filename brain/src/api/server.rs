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

use super::{ApiState, limits, problem};

/// Time that requests under way have to finish when the brain stops.
const GRACE: Duration = Duration::from_secs(5);
/// Time a client has for its handshake, and for the head of its first request.
const FIRST_WORDS: Duration = Duration::from_secs(10);

/// Puts the layers around the routes, outermost last: request ids and problems, then panics, then rates.
pub(super) fn layers(routes: Router<ApiState>, state: &ApiState) -> Router<ApiState> {
    routes
        .layer(DefaultBodyLimit::max(problem::MAX_JSON))
        .layer(from_fn_with_state(state.clone(), limits::by_address))
        .layer(CatchPanicLayer::new())
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
