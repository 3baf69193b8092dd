//! The sockets of one network's resolver, on its gateway. Bounded: a network that asks too much gets no answers, others do.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::message::{MAX_QUESTION, Question, Read, read};
use super::upstream::Upstream;
use super::zone::{Answer, Kind};
use crate::network::Namespace;

/// Questions of one network under way to the host's resolvers.
const ELSEWHERE: usize = 64;
/// Connections of one network.
const CONNECTIONS: usize = 32;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// What the one with an address is told of a name, by its labels.
pub type Knows = Arc<dyn Fn(IpAddr, &[&str], Kind) -> Answer + Send + Sync>;

/// A network's resolver: it answers as long as this lives.
pub struct DnsServer {
    space: Namespace,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl std::fmt::Debug for DnsServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsServer")
            .field("space", &self.space)
            .finish_non_exhaustive()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

struct Shared {
    knows: Knows,
    upstream: Arc<Upstream>,
    elsewhere: Arc<Semaphore>,
}

impl DnsServer {
    /// Listens at an address of a network's namespace.
    ///
    /// # Errors
    /// When the address is not there, or somebody else listens.
    pub fn start(
        space: Namespace,
        at: SocketAddr,
        knows: Knows,
        upstream: Arc<Upstream>,
    ) -> io::Result<Self> {
        let (udp, tcp) = space.within(move || {
            let (udp, tcp) = (std::net::UdpSocket::bind(at)?, std::net::TcpListener::bind(at)?);
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            io::Result::Ok((udp, tcp))
        })??;
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        let shared = Arc::new(Shared {
            knows,
            upstream,
            elsewhere: Arc::new(Semaphore::new(ELSEWHERE)),
        });
        let tasks = [
            tokio::spawn(datagrams(Arc::new(udp), shared.clone())),
            tokio::spawn(connections(tcp, shared)),
        ];
        Ok(Self { space, tasks })
    }

    /// Whether it listens in this namespace and goes on doing so.
    pub fn is_in(&self, space: &Namespace) -> bool {
        let runs = !self.tasks.iter().any(tokio::task::JoinHandle::is_finished);
        runs && self.space.is_same(space).unwrap_or(false)
    }
}

/// What is to be said at once, or that others have to be asked.
enum Said {
    Now(Vec<u8>),
    Ask(Box<Question>),
    Nothing,
}

impl Shared {
    fn say(&self, message: &[u8], who: IpAddr, udp: bool) -> Said {
        let question = match read(message) {
            Read::Question(question) => question,
            Read::Refused(answer) => return Said::Now(answer),
            Read::Nothing => return Said::Nothing,
        };
        let labels: Vec<&str> = question.labels.iter().map(String::as_str).collect();
        let mut answer = (self.knows)(who, &labels, question.kind);
        if let Answer::Addresses(addresses) = &mut answer {
            // Whoever takes the first one takes each as often as any other.
            addresses.shuffle(&mut rand::rng());
        }
        match question.answer(&answer, udp) {
            Some(bytes) => Said::Now(bytes),
            None if answer == Answer::Elsewhere => Said::Ask(question),
            None => Said::Nothing,
        }
    }
}

async fn datagrams(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = [0; MAX_QUESTION + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "a network's resolver could not receive");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if length > MAX_QUESTION {
            continue;
        }
        let message = &buffer[..length];
        match shared.say(message, from.ip(), true) {
            Said::Now(answer) => drop(socket.try_send_to(&answer, from)),
            Said::Nothing => {}
            Said::Ask(question) => {
                let Ok(permit) = shared.elsewhere.clone().try_acquire_owned() else {
                    question.fail().map(|answer| socket.try_send_to(&answer, from));
                    continue;
                };
                let (socket, shared, message) = (socket.clone(), shared.clone(), message.to_vec());
                tokio::spawn(async move {
                    let _permit = permit;
                    let answer = shared.upstream.ask(&message, true).await;
                    if let Some(answer) = answer.or_else(|| question.fail()) {
                        let _ = socket.send_to(&answer, from).await;
                    }
                });
            }
        }
    }
}

async fn connections(listener: TcpListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, from)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    let _ = converse(stream, from.ip(), &shared).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a network's resolver could not accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, who: IpAddr, shared: &Shared) -> io::Result<()> {
    loop {
        let length = usize::from(timeout(SILENCE, stream.read_u16()).await??);
        if length > MAX_QUESTION {
            return Ok(());
        }
        let mut message = vec![0; length];
        timeout(SILENCE, stream.read_exact(&mut message)).await??;
        let answer = match shared.say(&message, who, false) {
            Said::Now(answer) => Some(answer),
            Said::Nothing => None,
            Said::Ask(question) => {
                let answer = match shared.elsewhere.try_acquire() {
                    Ok(_permit) => shared.upstream.ask(&message, false).await,
                    Err(_) => None,
                };
                answer.or_else(|| question.fail())
            }
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let whole = [&length.to_be_bytes(), &answer[..]].concat();
        timeout(SILENCE, stream.write_all(&whole)).await??;
    }
}
