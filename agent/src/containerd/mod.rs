//! The one connection to containerd.
//!
//! Owns the socket, the namespace and lease headers, and the limits on messages, so that no caller can forget one.
//! Refuses to know what images or containers are. Exists because the daemon is restarted and upgraded under a running
//! agent: the channel connects when first used and again after every break, a call made meanwhile fails and says so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1 as api;
use jiff::{SignedDuration, Timestamp};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// berth's namespace in containerd.
pub const NAMESPACE: &str = "berth";
/// Largest message sent or accepted, bytes; containerd's own limit is 16 MiB.
pub const MAX_MESSAGE: usize = 16 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WINDOW: u32 = 2 << 20;
const EXPIRE_LABEL: &str = "containerd.io/gc.expire";

/// A call to containerd that failed.
#[derive(Debug, thiserror::Error)]
#[error("containerd at {socket}: {operation} {object:?}")]
pub struct ContainerdError {
    /// Which daemon.
    pub socket: String,
    /// What was asked, as a gerund: `creating lease`.
    pub operation: &'static str,
    /// Of what.
    pub object: String,
    /// Its answer.
    #[source]
    pub source: Box<Status>,
}

impl ContainerdError {
    /// The answer's code.
    pub fn code(&self) -> Code {
        self.source.code()
    }

    /// Whether the daemon was not there or broke off, so that the same call may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(
            self.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted
        )
    }
}

/// A lease: what keeps unreferenced content and snapshots from containerd's garbage collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: String,
    /// Its labels.
    pub labels: std::collections::HashMap<String, String>,
}

/// A handle on one containerd and one namespace in it; clones share the connection.
#[derive(Clone)]
pub struct Containerd {
    channel: Channel,
    socket: PathBuf,
    namespace: MetadataValue<Ascii>,
}

impl std::fmt::Debug for Containerd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Containerd")
            .field("socket", &self.socket)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

macro_rules! clients {
    ($($(#[$doc:meta])* $name:ident: $path:path;)*) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> $path {
            <$path>::new(self.channel())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
        }
    )*};
}

impl Containerd {
    /// A handle; nothing is connected before the first call. Must be called inside a tokio runtime.
    ///
    /// # Panics
    /// If `namespace` is not visible ASCII: it is a constant of the program.
    pub fn connect(socket: &Path, namespace: &str) -> Self {
        // No HTTP/2 pings: containerd's gRPC server takes more than one in five minutes for abuse and hangs up. A peer
        // on a unix socket that died is reported by the kernel anyway.
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .expect("any path makes a unix endpoint")
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW);
        Self {
            channel: endpoint.connect_lazy(),
            socket: socket.to_owned(),
            namespace: namespace
                .parse()
                .expect("a containerd namespace is visible ASCII"),
        }
    }

    /// The raw channel, for services that have no accessor here.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.namespace.to_str().unwrap_or_default()
    }

    /// A request in the namespace.
    pub fn request<T>(&self, body: T) -> Request<T> {
        let mut request = Request::new(body);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// A request in the namespace whose new content and snapshots belong to `lease`.
    ///
    /// # Panics
    /// If `lease` is not visible ASCII: lease names are made by the program.
    pub fn leased<T>(&self, lease: &str, body: T) -> Request<T> {
        let mut request = self.request(body);
        let lease = lease.parse().expect("lease names are visible ASCII");
        request.metadata_mut().insert("containerd-lease", lease);
        request
    }

    clients! {
        /// Blobs.
        content: api::content_client::ContentClient<Channel>;
        /// Applying layers.
        diff: api::diff_client::DiffClient<Channel>;
        /// Snapshots.
        snapshots: api::snapshots::snapshots_client::SnapshotsClient<Channel>;
        /// Image records.
        images: api::images_client::ImagesClient<Channel>;
        /// Container records.
        containers: api::containers_client::ContainersClient<Channel>;
        /// Running containers.
        tasks: api::tasks_client::TasksClient<Channel>;
        /// Events.
        events: api::events_client::EventsClient<Channel>;
        /// Plugins and their state.
        introspection: api::introspection_client::IntrospectionClient<Channel>;
    }

    fn lease_client(&self) -> api::leases_client::LeasesClient<Channel> {
        api::leases_client::LeasesClient::new(self.channel())
    }

    /// The error of a call, with what was tried on what.
    pub fn error(
        &self,
        operation: &'static str,
        object: impl Into<String>,
        source: Status,
    ) -> ContainerdError {
        ContainerdError {
            socket: self.socket.display().to_string(),
            operation,
            object: object.into(),
            source: Box::new(source),
        }
    }

    /// Makes a lease that ends by itself after `expire_secs` seconds, whatever happens to this process. A lease of this
    /// name that is already there is kept as it is.
    ///
    /// # Errors
    /// When containerd can't be reached or refuses.
    pub async fn lease_create(
        &self,
        id: &str,
        labels: impl IntoIterator<Item = (String, String)>,
        expire_secs: u64,
    ) -> Result<(), ContainerdError> {
        let secs = i64::try_from(expire_secs)
            .unwrap_or(i64::MAX)
            .min(10 * 365 * 86_400);
        let end = Timestamp::now().saturating_add(SignedDuration::from_secs(secs));
        let end = end.unwrap_or(Timestamp::MAX);
        let mut labels: std::collections::HashMap<_, _> = labels.into_iter().collect();
        // Whole seconds: containerd parses RFC 3339.
        labels.insert(EXPIRE_LABEL.to_owned(), format!("{end:.0}"));
        let body = api::CreateRequest {
            id: id.to_owned(),
            labels,
        };
        match self.lease_client().create(self.request(body)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.error("creating lease", id, status)),
        }
    }

    /// Ends a lease; one that is gone is fine. Content that nothing else refers to is collected in the background.
    ///
    /// # Errors
    /// When containerd can't be reached or refuses.
    pub async fn lease_delete(&self, id: &str) -> Result<(), ContainerdError> {
        let body = api::DeleteRequest {
            id: id.to_owned(),
            sync: false,
        };
        match self.lease_client().delete(self.request(body)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.error("deleting lease", id, status)),
        }
    }

    /// All leases of the namespace.
    ///
    /// # Errors
    /// When containerd can't be reached or refuses.
    pub async fn leases(&self) -> Result<Vec<Lease>, ContainerdError> {
        let body = api::ListRequest { filters: Vec::new() };
        let reply = self.lease_client().list(self.request(body)).await;
        let reply = reply.map_err(|status| self.error("listing leases", "", status))?;
        let leases = reply.into_inner().leases.into_iter();
        Ok(leases
            .map(|lease| Lease {
                id: lease.id,
                labels: lease.labels,
            })
            .collect())
    }

    /// The daemon's version, as `1.6.20`; also the cheapest proof that it answers.
    ///
    /// # Errors
    /// When containerd can't be reached.
    pub async fn version(&self) -> Result<String, ContainerdError> {
        let mut client = api::version_client::VersionClient::new(self.channel());
        let reply = client.version(self.request(())).await;
        let reply = reply.map_err(|status| self.error("asking version", "", status))?;
        let text = reply.into_inner().version;
        let text = text.split(['~', ' ']).next().unwrap_or_default();
        Ok(text.trim_start_matches('v').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_absent_daemon_is_an_error_that_says_where_and_may_pass() {
        let containerd = Containerd::connect(Path::new("/nonexistent/containerd.sock"), NAMESPACE);
        let error = containerd.version().await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/containerd.sock"));
        assert!(error.retryable(), "{error:?}");
    }

    #[tokio::test]
    async fn requests_carry_their_headers() {
        let containerd = Containerd::connect(Path::new("/nonexistent/containerd.sock"), NAMESPACE);
        let request = containerd.leased("l1", ());
        assert_eq!(request.metadata().get("containerd-namespace").unwrap(), "berth");
        assert_eq!(request.metadata().get("containerd-lease").unwrap(), "l1");
        assert!(
            containerd
                .request(())
                .metadata()
                .get("containerd-lease")
                .is_none()
        );
    }
}
