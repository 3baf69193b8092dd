//! DNS messages: what a container asks, read with suspicion, and what it is told. Pure.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::zone::{Answer, DOMAIN, Kind};

/// The largest question, bytes: one name of 255, and options.
pub const MAX_QUESTION: usize = 1_232;
/// What a UDP answer may have without having to be told, bytes (RFC 1035).
const PLAIN_UDP: usize = 512;
/// What it may have at most, bytes: this passes every network unbroken (DNS flag day 2020).
const MAX_UDP: usize = 1_232;
/// The least that an address takes in an answer, bytes: a reference to the name, kind, class, time, length, four bytes.
const LEAST_RECORD: usize = 16;
/// How long an answer may be kept, seconds: replicas come and go.
const TTL: u32 = 5;
/// How long it may be kept that there is no such name, seconds: what is just starting should be found.
const NEGATIVE_TTL: u32 = 2;

/// A question that was understood.
#[derive(Debug, Clone)]
pub struct Question {
    message: Message,
    /// The labels of the name, from its left, in lower case.
    pub labels: Vec<String>,
    /// What is asked of it.
    pub kind: Kind,
    /// The largest answer over UDP, bytes.
    most: usize,
}

/// What came of reading a message.
#[derive(Debug)]
pub enum Read {
    /// A question.
    Question(Box<Question>),
    /// Something to be refused by this answer.
    Refused(Vec<u8>),
    /// Nothing that can be answered: an answer, or no DNS at all.
    Nothing,
}

/// Reads what somebody sent.
pub fn read(bytes: &[u8]) -> Read {
    let Ok(message) = Message::from_vec(bytes) else {
        return match bytes {
            // Its identifier can be read, and it is no answer (the highest bit of the third byte).
            [a, b, flags, ..] if bytes.len() >= 12 && flags & 0x80 == 0 => {
                refuse(u16::from_be_bytes([*a, *b]), OpCode::Query, ResponseCode::FormErr)
            }
            _ => Read::Nothing,
        };
    };
    let about = message.metadata;
    if about.message_type != MessageType::Query {
        return Read::Nothing;
    }
    if about.op_code != OpCode::Query {
        return refuse(about.id, about.op_code, ResponseCode::NotImp);
    }
    let [query] = &message.queries[..] else {
        return refuse(about.id, about.op_code, ResponseCode::FormErr);
    };
    if query.query_class() != DNSClass::IN {
        return refuse(about.id, about.op_code, ResponseCode::Refused);
    }
    let labels = query.name().iter();
    let labels = labels.map(|label| String::from_utf8_lossy(label).to_ascii_lowercase());
    let kind = match query.query_type() {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        _ => Kind::Other,
    };
    let told = message
        .edns
        .as_ref()
        .map_or(PLAIN_UDP, |edns| usize::from(edns.max_payload()));
    Read::Question(Box::new(Question {
        labels: labels.collect(),
        kind,
        most: told.clamp(PLAIN_UDP, MAX_UDP),
        message,
    }))
}

fn refuse(id: u16, op_code: OpCode, why: ResponseCode) -> Read {
    let refused = Message::error_msg(id, op_code, why).to_vec();
    refused.map_or(Read::Nothing, Read::Refused)
}

impl Question {
    /// The answer as it is sent; `udp`: cut where it is too long, so that it is asked again over TCP. None of an answer that is
    /// somebody else's to give.
    pub fn answer(&self, answer: &Answer, udp: bool) -> Option<Vec<u8>> {
        let code = match answer {
            Answer::Addresses(_) | Answer::NoData => ResponseCode::NoError,
            Answer::NoName => ResponseCode::NXDomain,
            Answer::Elsewhere => return None,
        };
        let mut reply = self.reply(code);
        reply.metadata.authoritative = true;
        if let Answer::Addresses(addresses) = answer
            && udp
            && addresses.len() * LEAST_RECORD > self.most
        {
            // It won't fit, so nothing is written that is thrown away.
            return reply.truncate().to_vec().ok();
        }
        match answer {
            Answer::Addresses(addresses) => {
                let name = self.message.queries.first()?.name().clone();
                let records = addresses.iter().map(|address| {
                    let data = match address {
                        IpAddr::V4(four) => RData::A((*four).into()),
                        IpAddr::V6(six) => RData::AAAA((*six).into()),
                    };
                    Record::from_rdata(name.clone(), TTL, data)
                });
                reply.add_answers(records);
            }
            // How long that may be kept says the authority (RFC 2308).
            _ => drop(reply.add_authority(authority()?)),
        }
        self.bytes(&reply, udp)
    }

    /// That it can't be answered now.
    pub fn fail(&self) -> Option<Vec<u8>> {
        self.bytes(&self.reply(ResponseCode::ServFail), true)
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let asked = self.message.metadata;
        let mut reply = Message::response(asked.id, asked.op_code);
        reply.metadata.response_code = code;
        reply.metadata.recursion_desired = asked.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_queries(self.message.queries.iter().cloned());
        if self.message.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP as u16);
            reply.set_edns(edns);
        }
        reply
    }

    fn bytes(&self, reply: &Message, udp: bool) -> Option<Vec<u8>> {
        let whole = reply.to_vec().ok()?;
        if udp && whole.len() > self.most {
            return reply.truncate().to_vec().ok();
        }
        Some(whole)
    }
}

fn authority() -> Option<Record> {
    let zone = Name::from_ascii(format!("{DOMAIN}.")).ok()?;
    let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, NEGATIVE_TTL);
    Some(Record::from_rdata(zone, NEGATIVE_TTL, RData::SOA(soa)))
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use proptest::prelude::*;

    use super::*;

    fn ask(name: &str, kind: RecordType, edns: bool) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 77;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if edns {
            let mut edns = Edns::new();
            edns.set_max_payload(1_232);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn question(bytes: &[u8]) -> Question {
        match read(bytes) {
            Read::Question(question) => *question,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_are_told_and_what_is_too_long_is_cut_for_tcp() {
        let asked = question(&ask("WEB.Default.berth.internal.", RecordType::A, false));
        assert_eq!(asked.labels, ["web", "default", "berth", "internal"]);
        let few = Answer::Addresses(vec!["10.64.0.2".parse().unwrap(), "10.64.0.3".parse().unwrap()]);
        let told = Message::from_vec(&asked.answer(&few, true).unwrap()).unwrap();
        assert_eq!(
            (told.metadata.id, told.answers.len(), told.metadata.truncation),
            (77, 2, false)
        );
        assert!(told.metadata.authoritative && told.metadata.recursion_available);
        assert_eq!(told.answers[0].ttl, TTL);
        let many = Answer::Addresses((0..200).map(|n| IpAddr::from([10, 64, 1, n])).collect());
        let cut = asked.answer(&many, true).unwrap();
        assert!(cut.len() <= PLAIN_UDP && Message::from_vec(&cut).unwrap().metadata.truncation);
        let whole = Message::from_vec(&asked.answer(&many, false).unwrap()).unwrap();
        assert_eq!((whole.answers.len(), whole.metadata.truncation), (200, false));
        let roomy = question(&ask("web.", RecordType::A, true));
        let some = Answer::Addresses((0..40).map(|n| IpAddr::from([10, 64, 1, n])).collect());
        let told = Message::from_vec(&roomy.answer(&some, true).unwrap()).unwrap();
        assert!(!told.metadata.truncation && told.edns.is_some());
    }

    #[test]
    fn that_there_is_nothing_is_said_with_its_time() {
        let asked = question(&ask("nobody.", RecordType::AAAA, false));
        for (answer, code) in [
            (Answer::NoName, ResponseCode::NXDomain),
            (Answer::NoData, ResponseCode::NoError),
        ] {
            let told = Message::from_vec(&asked.answer(&answer, true).unwrap()).unwrap();
            assert_eq!((told.metadata.response_code, told.answers.len()), (code, 0));
            assert!(
                matches!(told.authorities[0].data, RData::SOA(_)) && told.authorities[0].ttl == NEGATIVE_TTL
            );
        }
        assert!(asked.answer(&Answer::Elsewhere, true).is_none());
        let failed = Message::from_vec(&asked.fail().unwrap()).unwrap();
        assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    }

    #[test]
    fn what_is_no_question_is_refused_or_ignored() {
        let answer = question(&ask("web.", RecordType::A, false)).fail().unwrap();
        assert!(matches!(read(&answer), Read::Nothing), "no loops of answers");
        assert!(matches!(read(&[]), Read::Nothing));
        let mut two = Message::query();
        two.add_query(Query::query(Name::root(), RecordType::A));
        two.add_query(Query::query(Name::root(), RecordType::A));
        assert!(matches!(read(&two.to_vec().unwrap()), Read::Refused(_)));
        let mut broken = ask("web.", RecordType::A, false);
        broken.truncate(14);
        let Read::Refused(said) = read(&broken) else {
            panic!()
        };
        assert_eq!(Message::from_vec(&said).unwrap().metadata.id, 77);
    }

    proptest! {
        #[test]
        fn hostile_messages_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), flip in 0..60_usize, with: u8) {
            let answer = Answer::Addresses(vec!["10.0.0.1".parse().unwrap()]);
            let mut near = ask("a.web.", RecordType::A, true);
            let at = flip % near.len();
            near[at] ^= with;
            for bytes in [bytes, near] {
                if let Read::Question(question) = read(&bytes) {
                    for answer in [&answer, &Answer::NoName] {
                        let said = question.answer(answer, true).unwrap_or_default();
                        prop_assert!(said.len() <= MAX_UDP);
                    }
                }
            }
        }
    }
}
