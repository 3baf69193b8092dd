//! The host's resolvers: what is not berth's is asked of them as it was asked, and their answer passed on as it came.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one resolver may take.
const EACH: Duration = Duration::from_secs(2);
/// How many are asked.
const MOST: usize = 3;
/// The largest answer over UDP, bytes.
const MAX_UDP: usize = 4_096;

/// The host's resolvers.
#[derive(Debug)]
pub struct Upstream {
    fixed: Vec<IpAddr>,
    file: PathBuf,
    read: Mutex<Option<(SystemTime, Vec<IpAddr>)>>,
}

impl Upstream {
    /// These; of none, those in a file such as `/etc/resolv.conf`, as it is when somebody asks.
    pub fn new(fixed: Vec<IpAddr>, file: PathBuf) -> Self {
        Self {
            fixed,
            file,
            read: Mutex::default(),
        }
    }

    /// The answer to a message; none where nobody gave any. `udp`: how it was asked, and so how it is passed on.
    pub async fn ask(&self, message: &[u8], udp: bool) -> Option<Vec<u8>> {
        for server in self.servers().into_iter().take(MOST) {
            let at = SocketAddr::new(server, 53);
            let asked = async {
                match udp {
                    true => ask_udp(at, message).await,
                    false => ask_tcp(at, message).await,
                }
            };
            match timeout(EACH, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%at, %error, "a resolver of this host failed"),
                Err(_) => tracing::debug!(%at, "a resolver of this host is silent"),
            }
        }
        None
    }

    fn servers(&self) -> Vec<IpAddr> {
        if !self.fixed.is_empty() {
            return self.fixed.clone();
        }
        let changed = std::fs::metadata(&self.file).and_then(|about| about.modified());
        let changed = changed.unwrap_or(SystemTime::UNIX_EPOCH);
        let mut read = self.read.lock();
        match &*read {
            Some((then, servers)) if *then == changed => servers.clone(),
            _ => {
                let servers = parse(&std::fs::read_to_string(&self.file).unwrap_or_default());
                *read = Some((changed, servers.clone()));
                servers
            }
        }
    }
}

/// The resolvers that a resolv.conf names.
fn parse(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(str::split_whitespace);
    let servers = lines.filter_map(|mut words| match words.next() {
        Some("nameserver") => words.next()?.parse().ok(),
        _ => None,
    });
    servers.collect()
}

async fn ask_udp(at: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    // A port and an identifier of its own for each question: whoever wants to answer in the resolver's place has to guess both.
    let socket = UdpSocket::bind(crate::link::dial::unspecified(at)).await?;
    socket.connect(at).await?;
    let (own, sent) = (identifier(message), rand::random::<[u8; 2]>());
    let mut question = message.to_vec();
    question[..2].copy_from_slice(&sent);
    socket.send(&question).await?;
    let mut answer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut answer).await?;
        if length >= 12 && answer[..2] == sent && answer[2] & 0x80 != 0 {
            answer.truncate(length);
            answer[..2].copy_from_slice(&own);
            return Ok(answer);
        }
    }
}

async fn ask_tcp(at: SocketAddr, message: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(at).await?;
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), message].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

/// A message that was read has at least its header.
fn identifier(message: &[u8]) -> [u8; 2] {
    match message {
        [a, b, ..] => [*a, *b],
        _ => [0; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_table() {
        let text =
            "# comment\nnameserver 127.0.0.53\nnameserver ::1 # x\nsearch a.b\nnameserver\nnameserver nine\n";
        assert_eq!(
            parse(text),
            ["127.0.0.53".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]
        );
        assert!(parse("").is_empty());
    }
}
