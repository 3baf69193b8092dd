//! Traffic between two namespaces: streams, datagrams, requests. Counted where it arrives.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use berth_agent::network::Namespace;

/// From where to where: the address that a client dials, and the namespace that answers.
pub(super) struct Path {
    pub name: &'static str,
    pub client: Namespace,
    pub server: Namespace,
    /// The server as the client dials it.
    pub at: std::net::IpAddr,
}

const STREAMS: u16 = 5201;
const DATAGRAMS: u16 = 5202;
const REQUESTS: u16 = 5203;
/// Time before counting begins.
const WARM: Duration = Duration::from_millis(300);

/// Lets the server of a path answer as long as this process lives.
pub(super) fn serve(path: &Path) -> anyhow::Result<Arc<AtomicU64>> {
    let bind = |port| path.server.within(move || TcpListener::bind(("0.0.0.0", port)));
    let (streams, requests) = (bind(STREAMS)??, bind(REQUESTS)??);
    let datagrams = path.server.within(|| UdpSocket::bind(("0.0.0.0", DATAGRAMS)))??;
    let arrived = Arc::new(AtomicU64::new(0));
    let bytes = arrived.clone();
    std::thread::spawn(move || {
        for stream in streams.incoming().flatten() {
            let bytes = bytes.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut buffer = vec![0; 256 << 10];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    bytes.fetch_add(count as u64, Ordering::Relaxed);
                }
            });
        }
    });
    std::thread::spawn(move || {
        for stream in requests.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.set_nodelay(true);
                let mut byte = [0; 1];
                while let Ok(1) = stream.read(&mut byte) {
                    if stream.write_all(&byte).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let packets = arrived.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while datagrams.recv(&mut buffer).is_ok() {
            packets.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(arrived)
}

fn dial(path: &Path, port: u16) -> anyhow::Result<TcpStream> {
    let at = SocketAddr::new(path.at, port);
    let stream = path
        .client
        .within(move || TcpStream::connect_timeout(&at, Duration::from_secs(3)))?;
    let stream = stream.with_context(|| format!("{}: {at}", path.name))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What arrives a second while senders work.
fn arriving(arrived: &AtomicU64, span: Duration, senders: Vec<Box<dyn FnMut() -> bool + Send>>) -> f64 {
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = senders
        .into_iter()
        .map(|mut send| {
            let stop = stop.clone();
            std::thread::spawn(move || while !stop.load(Ordering::Relaxed) && send() {})
        })
        .collect();
    std::thread::sleep(WARM);
    let (begun, before) = (Instant::now(), arrived.load(Ordering::Relaxed));
    std::thread::sleep(span);
    let count = arrived.load(Ordering::Relaxed) - before;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        let _ = thread.join();
    }
    rate
}

/// Bytes a second over so many connections.
pub(super) fn streams(path: &Path, arrived: &AtomicU64, count: usize, span: Duration) -> anyhow::Result<f64> {
    let mut senders: Vec<Box<dyn FnMut() -> bool + Send>> = Vec::new();
    for _ in 0..count {
        let mut stream = dial(path, STREAMS)?;
        let buffer = vec![7; 256 << 10];
        senders.push(Box::new(move || stream.write_all(&buffer).is_ok()));
    }
    Ok(arriving(arrived, span, senders))
}

/// Small datagrams a second that arrive from one sender.
pub(super) fn datagrams(path: &Path, arrived: &AtomicU64, span: Duration) -> anyhow::Result<f64> {
    let at = SocketAddr::new(path.at, DATAGRAMS);
    let socket = path.client.within(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(at)?;
        std::io::Result::Ok(socket)
    })??;
    // A refusal of before the server listened is no reason to stop.
    let send = move || {
        let _ = socket.send(&[7; 64]);
        true
    };
    Ok(arriving(arrived, span, vec![Box::new(send)]))
}

/// Microseconds of each request and its answer, one at a time on an open connection.
pub(super) fn requests(path: &Path, span: Duration) -> anyhow::Result<Vec<f64>> {
    let mut stream = dial(path, REQUESTS)?;
    let (begun, mut took) = (Instant::now(), Vec::new());
    let mut byte = [7; 1];
    while begun.elapsed() < WARM + span {
        let asked = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        if begun.elapsed() > WARM {
            took.push(asked.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(took)
}
