//! The WebSocket of `exec`: opens it over the pinned TLS and speaks `ExecUp`/`ExecDown` on it.

use std::sync::Arc;
use std::time::Duration;

use berth_common::protocol::{ExecDown, ExecSpec, ExecUp};
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config};

use super::{Client, ClientError, problem_of};

const OPEN: Duration = Duration::from_secs(30);

/// An open exec.
pub struct ExecSocket {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    client: Client,
}

impl Client {
    /// Opens an exec in `container` and sends what to run.
    ///
    /// # Errors
    /// The brain's refusal, or why there is no connection.
    pub async fn exec(&self, container: &str, spec: &ExecSpec) -> Result<ExecSocket, ClientError> {
        let open = self.exec_open(container, spec);
        match tokio::time::timeout(OPEN, open).await {
            Ok(result) => result,
            Err(_) => Err(self.broken(&std::io::Error::from(std::io::ErrorKind::TimedOut))),
        }
    }

    async fn exec_open(&self, container: &str, spec: &ExecSpec) -> Result<ExecSocket, ClientError> {
        let mut url = self.tenant_url(&["containers", container, "exec"], &[]);
        let what = url.path().to_owned();
        let _ = url.set_scheme("wss");
        let mut request = url
            .as_str()
            .into_client_request()
            .map_err(|error| self.broken(&error))?;
        if let Some(token) = &self.target.token {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {token}")).map_err(|error| self.broken(&error))?;
            value.set_sensitive(true);
            request.headers_mut().insert("authorization", value);
        }
        let tcp = TcpStream::connect(&self.addresses[..])
            .await
            .map_err(|error| self.broken(&error))?;
        // Keys typed one by one must not wait for each other.
        let _ = tcp.set_nodelay(true);
        let connector = Connector::Rustls(Arc::new(self.tls.clone()));
        let socket = match client_async_tls_with_config(request, tcp, None, Some(connector)).await {
            Ok((socket, _)) => socket,
            Err(WsError::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                return Err(problem_of(&what, response.status().as_u16(), &body));
            }
            Err(error) => return Err(self.broken(&error)),
        };
        let mut exec = ExecSocket {
            socket,
            client: self.clone(),
        };
        exec.send_json(spec).await?;
        Ok(exec)
    }
}

impl ExecSocket {
    async fn send_json(&mut self, value: &impl serde::Serialize) -> Result<(), ClientError> {
        let text = serde_json::to_string(value).map_err(|error| ClientError::Nonsense {
            what: "exec".into(),
            why: error.to_string(),
        })?;
        self.socket
            .send(Message::text(text))
            .await
            .map_err(|error| self.client.broken(&error))
    }

    /// Sends one message up.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, up: &ExecUp) -> Result<(), ClientError> {
        self.send_json(up).await
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn ping(&mut self) -> Result<(), ClientError> {
        self.socket
            .send(Message::Ping(bytes::Bytes::new()))
            .await
            .map_err(|error| self.client.broken(&error))
    }

    /// The next message down; `None` for a mere sign of life. Safe to drop while waiting.
    ///
    /// # Errors
    /// The connection broke or ended before the process did.
    pub async fn next(&mut self) -> Result<Option<ExecDown>, ClientError> {
        let message = match self.socket.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(self.client.broken(&error)),
            None => return Err(self.early_end()),
        };
        match message {
            Message::Text(text) => {
                serde_json::from_str(&text)
                    .map(Some)
                    .map_err(|error| ClientError::Nonsense {
                        what: "exec".into(),
                        why: error.to_string(),
                    })
            }
            Message::Close(_) => Err(self.early_end()),
            _ => Ok(None),
        }
    }

    /// Says good-bye, so that the brain need not wait for us. How that goes changes nothing any more.
    pub async fn close(&mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.socket.close(None)).await;
    }

    fn early_end(&self) -> ClientError {
        self.client.broken(&std::io::Error::other(
            "the connection ended before the process; it may still run",
        ))
    }
}
