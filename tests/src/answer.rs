//! Programs that answer with a name, run by the test itself in containers' and hosts' networks, and clients of theirs.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use berth_agent::network::Namespace;

use crate::overlay::dial_at;

/// Answers each connection with a name and who it came from; ends with the test's process.
pub fn serve(at: &Namespace, port: u16, name: &str) {
    let listener = at.within(move || TcpListener::bind(("::", port)));
    let listener = listener.expect("namespace").expect("listens");
    let name = name.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let from = stream
                .peer_addr()
                .map(|at| at.ip().to_canonical().to_string())
                .unwrap_or_default();
            let _ = stream.write_all(format!("{name} {from}").as_bytes());
        }
    });
}

/// The same for datagrams.
pub fn serve_udp(at: &Namespace, port: u16, name: &str) {
    let socket = at.within(move || UdpSocket::bind(("::", port)));
    let socket = socket.expect("namespace").expect("binds");
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut word = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut word) {
            let _ = socket.send_to(format!("{name} {}", from.ip().to_canonical()).as_bytes(), from);
        }
    });
}

/// What answers at an address: its name, and whom it sees.
pub fn asked(from: &Namespace, at: SocketAddr) -> Option<(String, String)> {
    let mut stream = dial_at(from, at).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (name, who) = text.split_once(' ')?;
    Some((name.to_owned(), who.to_owned()))
}

/// The same over UDP.
pub fn asked_udp(from: &Namespace, at: SocketAddr) -> Option<String> {
    let said = from.within(move || {
        let any = if at.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.send_to(b"x", at)?;
        let mut word = [0; 64];
        let (length, _) = socket.recv_from(&mut word)?;
        std::io::Result::Ok(String::from_utf8_lossy(&word[..length]).into_owned())
    });
    said.expect("namespace").ok()
}

/// Everybody who answers at an address, with whom they see.
pub fn answers(from: &Namespace, at: SocketAddr) -> BTreeMap<String, String> {
    (0..24).filter_map(|_| asked(from, at)).collect()
}
