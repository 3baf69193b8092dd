//! Streams of snapshots as they come from another node. Pure: bytes in, bytes out.
//!
//! `btrfs receive` checks a sum over each command, and takes a stream that ends between two commands for a whole one. So the
//! frames are read here: a stream is one snapshot, the one that was announced, and ends with the command that says so. Its name
//! is replaced by one of the receiver's choice: who sends decides nothing about paths.

use super::Announced;
use super::Uuid;

const MAGIC: &[u8; 13] = b"btrfs-stream\0";
/// Magic and version.
const HEADER: usize = 17;
/// Length, command and sum.
const HEAD: usize = 10;
const SUBVOLUME: u16 = 1;
const SNAPSHOT: u16 = 2;
const END: u16 = 21;
const UUID: u16 = 1;
const TRANSACTION: u16 = 2;
const PATH: u16 = 15;
/// The first command has a path and four numbers.
const MOST_FIRST: usize = 8 << 10;
/// No command of the versions that are understood is longer, bytes.
const MOST: usize = 1 << 20;

/// What is wrong with a stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It does not begin or go on like one.
    #[error("the stream is damaged or no stream of btrfs: {0}")]
    Damaged(&'static str),
    /// It is of a newer kind.
    #[error("the stream is of version {0}, here 1 and 2 are understood")]
    Version(u32),
    /// It ended early.
    #[error("the stream was cut short after {0} bytes")]
    CutShort(u64),
    /// It is of another snapshot.
    #[error("the stream holds another snapshot than was announced: {found}, not {announced}")]
    Another {
        /// Id and transaction in the stream.
        found: String,
        /// Id and transaction announced.
        announced: String,
    },
    /// More than the volume may hold.
    #[error("the stream is longer than {0} bytes, more than a volume of this size can need")]
    TooLong(u64),
    /// `btrfs receive` refused it.
    #[error("btrfs receive refused it: {0}")]
    Refused(String),
    /// The connection, or the sender's end, failed.
    #[error("reading the stream")]
    Read(#[source] std::io::Error),
}

fn damaged<T>(what: &'static str) -> Result<T, StreamError> {
    Err(StreamError::Damaged(what))
}

/// The sum over a command: CRC-32C, from zero and not inverted, with zeros in its own place.
fn sum(parts: &[&[u8]]) -> u32 {
    !parts
        .iter()
        .fold(!0, |sum, part| crc32c::crc32c_append(sum, part))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Head { first: bool },
    First { command: u16, length: usize, sum: u32 },
    Body { left: usize },
    Ended,
}

/// Judges one stream while it passes.
#[derive(Debug)]
pub struct Checker {
    announced: Announced,
    name: String,
    most: u64,
    state: State,
    /// What is too little yet to be judged.
    held: Vec<u8>,
    passed: u64,
}

impl Checker {
    /// For a stream of `announced`, at most `most` bytes long, whose snapshot is to be called `name`.
    pub fn new(announced: Announced, name: &str, most: u64) -> Self {
        Self {
            announced,
            name: name.to_owned(),
            most,
            state: State::Header,
            held: Vec::new(),
            passed: 0,
        }
    }

    /// Takes what came and adds to `out` what may go on.
    ///
    /// # Errors
    /// As soon as it is clear that the stream is wrong; nothing more must be passed on then.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.passed += input.len() as u64;
        if self.passed > self.most {
            return Err(StreamError::TooLong(self.most));
        }
        while !input.is_empty() {
            match self.state {
                State::Ended => return damaged("something follows its end"),
                State::Body { left } => {
                    let (now, rest) = input.split_at(left.min(input.len()));
                    out.extend_from_slice(now);
                    input = rest;
                    self.state = match left - now.len() {
                        0 => State::Head { first: false },
                        left => State::Body { left },
                    };
                }
                State::Header => {
                    if let Some(header) = self.gather(&mut input, HEADER) {
                        if !header.starts_with(MAGIC) {
                            return damaged("it does not begin like one");
                        }
                        match u32_at(&header, 13).unwrap_or(0) {
                            1 | 2 => {}
                            other => return Err(StreamError::Version(other)),
                        }
                        out.extend_from_slice(&header);
                        self.state = State::Head { first: true };
                    }
                }
                State::Head { first } => {
                    if let Some(head) = self.gather(&mut input, HEAD) {
                        self.state = self.head(first, &head, out)?;
                    }
                }
                State::First { command, length, sum } => {
                    if let Some(body) = self.gather(&mut input, length) {
                        self.first(command, &body, sum, out)?;
                        self.state = State::Head { first: false };
                    }
                }
            }
        }
        Ok(())
    }

    /// `length` bytes of what is held and comes, once there are so many.
    fn gather(&mut self, input: &mut &[u8], length: usize) -> Option<Vec<u8>> {
        let (now, rest) = input.split_at((length - self.held.len()).min(input.len()));
        self.held.extend_from_slice(now);
        *input = rest;
        (self.held.len() == length).then(|| std::mem::take(&mut self.held))
    }

    fn head(&self, first: bool, head: &[u8], out: &mut Vec<u8>) -> Result<State, StreamError> {
        let (Some(length), Some(command), Some(sum)) = (u32_at(head, 0), u16_at(head, 4), u32_at(head, 6))
        else {
            return damaged("a command is too short");
        };
        let length = length as usize;
        match (first, command) {
            (true, SUBVOLUME | SNAPSHOT) if (1..=MOST_FIRST).contains(&length) => {
                return Ok(State::First { command, length, sum });
            }
            (true, _) => return damaged("it does not begin with a snapshot"),
            (false, SUBVOLUME | SNAPSHOT) => return damaged("it holds more than one snapshot"),
            (false, END) if length != 0 => return damaged("its end has a content"),
            (false, END) => {
                out.extend_from_slice(head);
                return Ok(State::Ended);
            }
            _ => {}
        }
        if length > MOST {
            return damaged("a command is too long");
        }
        out.extend_from_slice(head);
        Ok(match length {
            0 => State::Head { first: false },
            left => State::Body { left },
        })
    }

    /// The first command says what the stream is; it goes on under the name of our choice.
    fn first(&self, command: u16, body: &[u8], stated: u32, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let head = |length: usize, sum: u32| {
            let mut head = Vec::with_capacity(HEAD);
            head.extend_from_slice(&(length as u32).to_le_bytes());
            head.extend_from_slice(&command.to_le_bytes());
            head.extend_from_slice(&sum.to_le_bytes());
            head
        };
        if sum(&[&head(body.len(), 0), body]) != stated {
            return damaged("the sum of its first command is wrong");
        }
        let (mut uuid, mut transaction, mut renamed, mut at) = (None, None, Vec::new(), 0);
        while at < body.len() {
            let attribute = u16_at(body, at).zip(u16_at(body, at + 2));
            let Some((kind, length)) = attribute else {
                return damaged("an attribute is cut short");
            };
            let Some(value) = body.get(at + 4..at + 4 + usize::from(length)) else {
                return damaged("an attribute is cut short");
            };
            let value = match kind {
                PATH => self.name.as_bytes(),
                UUID => {
                    uuid = Uuid::from_slice(value).ok();
                    value
                }
                TRANSACTION => {
                    transaction = value.try_into().ok().map(u64::from_le_bytes);
                    value
                }
                _ => value,
            };
            renamed.extend_from_slice(&kind.to_le_bytes());
            renamed.extend_from_slice(&(value.len() as u16).to_le_bytes());
            renamed.extend_from_slice(value);
            at += 4 + usize::from(length);
        }
        let (Some(uuid), Some(changed)) = (uuid, transaction) else {
            return damaged("it does not say what it is");
        };
        let found = Announced { uuid, changed };
        if found != self.announced {
            let text = |one: Announced| format!("{} at {}", one.uuid, one.changed);
            return Err(StreamError::Another {
                found: text(found),
                announced: text(self.announced),
            });
        }
        out.extend_from_slice(&head(renamed.len(), sum(&[&head(renamed.len(), 0), &renamed])));
        out.extend_from_slice(&renamed);
        Ok(())
    }

    /// Whether the whole stream has passed.
    pub fn ended(&self) -> bool {
        self.state == State::Ended
    }

    /// The stream has no more.
    ///
    /// # Errors
    /// `CutShort` unless its end was seen.
    pub fn finish(&self) -> Result<(), StreamError> {
        match self.ended() {
            true => Ok(()),
            false => Err(StreamError::CutShort(self.passed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WHAT: Announced = Announced {
        uuid: Uuid::from_bytes([7; 16]),
        changed: 42,
    };

    fn command(command: u16, body: &[u8]) -> Vec<u8> {
        let mut head = (body.len() as u32).to_le_bytes().to_vec();
        head.extend(command.to_le_bytes());
        head.extend(0u32.to_le_bytes());
        let sum = sum(&[&head, body]);
        head[6..10].copy_from_slice(&sum.to_le_bytes());
        head.extend(body);
        head
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = kind.to_le_bytes().to_vec();
        out.extend((value.len() as u16).to_le_bytes());
        out.extend(value);
        out
    }

    fn start(name: &str) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(1u32.to_le_bytes());
        let body = [
            attribute(PATH, name.as_bytes()),
            attribute(UUID, WHAT.uuid.as_bytes()),
            attribute(TRANSACTION, &WHAT.changed.to_le_bytes()),
        ];
        out.extend(command(SUBVOLUME, &body.concat()));
        out
    }

    fn whole(name: &str) -> Vec<u8> {
        [
            start(name),
            command(3, &attribute(PATH, b"o257-7-0")),
            command(15, &[0; 5000]),
            command(END, &[]),
        ]
        .concat()
    }

    fn pass(stream: &[u8], piece: usize) -> Result<Vec<u8>, StreamError> {
        let mut checker = Checker::new(WHAT, ".in-1", 1 << 20);
        let mut out = Vec::new();
        for piece in stream.chunks(piece) {
            checker.push(piece, &mut out)?;
        }
        checker.finish().map(|()| out)
    }

    #[test]
    fn the_sum_is_that_of_btrfs() {
        // The end of a stream as `btrfs send` writes it: no content, command 21.
        assert_eq!(command(END, &[]), [0, 0, 0, 0, 21, 0, 0x50, 0x6c, 0xc9, 0x9d]);
        assert_eq!(sum(&[b"123", b"456789"]), sum(&[b"123456789"]));
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn another_snapshot_and_what_is_none_are_refused() {
        let other = Announced { changed: 43, ..WHAT };
        let mut checker = Checker::new(other, "x", 1 << 20);
        let error = checker.push(&whole("a"), &mut Vec::new()).unwrap_err();
        assert!(matches!(error, StreamError::Another { .. }), "{error}");
        let two = [start("a"), start("b")[HEADER..].to_vec()].concat();
        for (stream, what) in [
            (b"hello, this is no stream".to_vec(), "no stream"),
            (two, "more than one"),
            ([whole("a"), vec![0]].concat(), "follows"),
            ([start("a"), command(END, &[1])].concat(), "content"),
            (
                [start("a")[..HEADER].to_vec(), command(3, &[1])].concat(),
                "begin with",
            ),
        ] {
            let error = pass(&stream, 1 << 20).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let mut newer = whole("a");
        newer[13] = 3;
        assert!(matches!(pass(&newer, 99), Err(StreamError::Version(3))));
        let mut checker = Checker::new(WHAT, "x", 100);
        let error = checker.push(&whole("a"), &mut Vec::new()).unwrap_err();
        assert!(matches!(error, StreamError::TooLong(100)));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter_and_the_name_is_ours(piece in 1usize..9000, name in "[a-z/.]{0,60}") {
            prop_assert_eq!(pass(&whole(&name), piece).unwrap(), whole(".in-1"));
        }

        #[test]
        fn what_is_cut_short_is_never_whole(at in 0usize..5100) {
            let stream = whole("a");
            let at = at.min(stream.len() - 1);
            let cut = matches!(pass(&stream[..at], 777), Err(StreamError::CutShort(_)));
            prop_assert!(cut);
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300), piece in 1usize..50) {
            let _ = pass(&[start("a"), noise.clone()].concat(), piece);
            let _ = pass(&noise, piece);
        }
    }
}
