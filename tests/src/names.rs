//! A client of DNS in a container's place, and a resolver in the world's.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use berth_agent::network::Namespace;
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// What a resolver said.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// Addresses.
    Addresses(BTreeSet<IpAddr>),
    /// The name has none of that kind.
    NoData,
    /// There is no such name.
    NoName,
    /// Something else.
    Failed(ResponseCode),
    /// Nothing in time.
    Silence,
}

fn question(name: &str, six: bool) -> Vec<u8> {
    let kind = if six { RecordType::AAAA } else { RecordType::A };
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
    message.to_vec().expect("message")
}

fn told(answer: &[u8]) -> Told {
    let message = Message::from_vec(answer).expect("an answer");
    let addresses = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(four) => Some(IpAddr::from(four.0)),
        RData::AAAA(six) => Some(IpAddr::from(six.0)),
        _ => None,
    });
    let addresses: BTreeSet<_> = addresses.collect();
    match message.metadata.response_code {
        ResponseCode::NoError if addresses.is_empty() => Told::NoData,
        ResponseCode::NoError => Told::Addresses(addresses),
        ResponseCode::NXDomain => Told::NoName,
        other => Told::Failed(other),
    }
}

/// Asks over UDP from a namespace, once.
pub fn ask(from: &Namespace, server: IpAddr, name: &str, six: bool) -> Told {
    let question = question(name, six);
    let answer = from.within(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(&question, SocketAddr::new(server, 53))?;
        let mut answer = [0; 4096];
        let (length, _) = socket.recv_from(&mut answer)?;
        std::io::Result::Ok(answer[..length].to_vec())
    });
    answer
        .expect("namespace")
        .map_or(Told::Silence, |answer| told(&answer))
}

/// Asks over TCP from a namespace.
pub fn ask_tcp(from: &Namespace, server: IpAddr, name: &str) -> Told {
    let question = question(name, false);
    let answer = from.within(move || {
        let at = SocketAddr::new(server, 53);
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let length = u16::try_from(question.len()).expect("short").to_be_bytes();
        stream.write_all(&[&length, &question[..]].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        std::io::Result::Ok(answer)
    });
    answer
        .expect("namespace")
        .map_or(Told::Silence, |answer| told(&answer))
}

/// A resolver at an address of a namespace that knows one name; it ends with the test's process. Whom it hears from comes out.
pub fn resolver(
    at: &Namespace,
    address: IpAddr,
    name: &str,
    is: [u8; 4],
) -> std::sync::mpsc::Receiver<IpAddr> {
    let socket = at.within(move || UdpSocket::bind(SocketAddr::new(address, 53)));
    let socket = socket.expect("namespace").expect("binds");
    let (heard, who) = std::sync::mpsc::channel();
    let known = Name::from_ascii(name).expect("name");
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let Ok(mut message) = Message::from_vec(&bytes[..length]) else {
                continue;
            };
            message.metadata.message_type = MessageType::Response;
            let asked = message.queries[0].clone();
            if *asked.name() == known && asked.query_type() == RecordType::A {
                message.add_answer(Record::from_rdata(
                    known.clone(),
                    60,
                    RData::A(std::net::Ipv4Addr::from(is).into()),
                ));
            } else {
                message.metadata.response_code = ResponseCode::NXDomain;
            }
            let _ = socket.send_to(&message.to_vec().expect("message"), from);
            let _ = heard.send(from.ip());
        }
    });
    who
}
