//! Whether this host reaches others' networks: an endpoint on a network of its own, as a container would have it, that answers others
//! and measures the way to each.
//!
//! What is measured goes through the same links, entries, filters and encryption as containers' packets. [`ping`] sends and receives,
//! [`measure`] says what is asked of a way, this answers what others ask. Everything read is bounded: only nodes of the probe send
//! there, and even they may send anything.

pub mod measure;
mod ping;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use berth_common::model::{HostNumber, Subnets};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;

use super::Namespace;

/// Where it is answered: the port that echoes are asked at (RFC 862). In a namespace of its own nobody else has it.
pub(super) const PORT: u16 = 7;
/// Connections answered at a time.
const CONNECTIONS: usize = 64;
/// The most that is sent back on one connection, bytes.
const MOST: u64 = 1 << 20;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// Answers others for as long as it lives.
#[derive(Debug)]
pub struct Answering {
    heard: Arc<Mutex<BTreeSet<IpAddr>>>,
    subnets: Subnets,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Answering {
    /// Answers at an address of a namespace.
    ///
    /// # Errors
    /// When the address is not there.
    pub fn start(space: &Namespace, subnets: Subnets, own: HostNumber) -> io::Result<Self> {
        let at = SocketAddr::new(subnets.address(own).into(), PORT);
        let (udp, tcp) = space.within(move || {
            // Whoever may open sockets for pings: the agent alone is in here.
            ping::allow()?;
            let (udp, tcp) = (std::net::UdpSocket::bind(at)?, std::net::TcpListener::bind(at)?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            io::Result::Ok((udp, tcp))
        })??;
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        let heard = Arc::new(Mutex::new(BTreeSet::new()));
        let tasks = [
            tokio::spawn(datagrams(udp, heard.clone())),
            tokio::spawn(connections(tcp, heard.clone())),
        ];
        Ok(Self {
            heard,
            subnets,
            tasks,
        })
    }

    /// Whom it has heard.
    pub fn heard(&self) -> BTreeSet<HostNumber> {
        let heard = self.heard.lock();
        heard.iter().filter_map(|who| self.subnets.number(*who)).collect()
    }
}

/// Bounded, like the network that they come from.
fn note(heard: &Mutex<BTreeSet<IpAddr>>, who: IpAddr) {
    let mut heard = heard.lock();
    if heard.len() < 65_536 {
        heard.insert(who);
    }
}

async fn datagrams(socket: UdpSocket, heard: Arc<Mutex<BTreeSet<IpAddr>>>) {
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, who)) => {
                note(&heard, who.ip());
                let _ = socket.send_to(&buffer[..length], who).await;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connections(listener: TcpListener, heard: Arc<Mutex<BTreeSet<IpAddr>>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, who)) => {
                note(&heard, who.ip());
                tokio::spawn(async move {
                    let _place = place;
                    let (read, mut write) = stream.into_split();
                    let mut read = read.take(MOST);
                    let mut buffer = vec![0; 16 << 10];
                    while let Ok(Ok(length @ 1..)) =
                        tokio::time::timeout(SILENCE, read.read(&mut buffer)).await
                    {
                        let sent = tokio::time::timeout(SILENCE, write.write_all(&buffer[..length]));
                        if !matches!(sent.await, Ok(Ok(()))) {
                            return;
                        }
                    }
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
