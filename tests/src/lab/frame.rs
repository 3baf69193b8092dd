//! What goes over the control channel between a test and a virtual machine: frames on a serial line.
//!
//! A line may lose its other end in the middle of a frame (power cuts are what the lab is for), so each frame begins with a
//! mark, and a reader that lost step looks for the next one.

use std::io::{self, Read, Write};

/// Begins every frame.
const MARK: [u8; 4] = *b"\x02lab";
/// Largest payload, bytes.
pub const MAX: usize = 256 << 10;

/// What a frame means. Numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the guest: run the program in the payload, a JSON list of its arguments.
    Run = 1,
    /// To the guest: input for a program.
    Stdin = 2,
    /// To the guest: no more input.
    StdinEnd = 3,
    /// To the guest: kill a program.
    Kill = 4,
    /// To the guest: answer with [`Kind::Pong`] and the same id.
    Ping = 5,
    /// To the test: the guest's side just started; whatever ran before is gone.
    Hello = 10,
    /// To the test: answers a ping.
    Pong = 11,
    /// To the test: a program's output.
    Stdout = 12,
    /// To the test: a program's messages.
    Stderr = 13,
    /// To the test: a program ended; the payload is its wait status, four bytes, big-endian.
    Exit = 14,
    /// To the test: a program could not be started; the payload says why.
    Failed = 15,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        const ALL: [Kind; 11] = [
            Kind::Run,
            Kind::Stdin,
            Kind::StdinEnd,
            Kind::Kill,
            Kind::Ping,
            Kind::Hello,
            Kind::Pong,
            Kind::Stdout,
            Kind::Stderr,
            Kind::Exit,
            Kind::Failed,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it means.
    pub kind: Kind,
    /// Which program it concerns.
    pub id: u32,
    /// Its content, at most [`MAX`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame.
    pub fn new(kind: Kind, id: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            id,
            payload: payload.into(),
        }
    }

    /// Writes it in one call.
    ///
    /// # Errors
    /// When the line fails.
    pub fn write(&self, line: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(13 + self.payload.len());
        bytes.extend(MARK);
        bytes.extend((self.payload.len() as u32).to_be_bytes());
        bytes.push(self.kind as u8);
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(&self.payload);
        line.write_all(&bytes)
    }

    /// Reads the next one, past anything that is none.
    ///
    /// # Errors
    /// When the line fails or ends.
    pub fn read(line: &mut impl Read) -> io::Result<Self> {
        loop {
            let mut seen = [0; 4];
            line.read_exact(&mut seen)?;
            while seen != MARK {
                seen.rotate_left(1);
                line.read_exact(&mut seen[3..])?;
            }
            let mut head = [0; 9];
            line.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let (Some(kind), true) = (Kind::from_byte(head[4]), length <= MAX) else {
                continue;
            };
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length];
            line.read_exact(&mut payload)?;
            return Ok(Self { kind, id, payload });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_finds_its_step_again() {
        let frames = [
            Frame::new(Kind::Hello, 0, ""),
            Frame::new(Kind::Stdout, 7, vec![2; 1000]),
            Frame::new(Kind::Exit, u32::MAX, [0, 0, 1, 0]),
        ];
        // The end of a frame whose beginning was lost, a mark without a frame, and one cut short before the next.
        let mut line = b"garbage \x02la \x02lab\xff\xff\xff\xff\x01\0\0\0\0".to_vec();
        for frame in &frames {
            frame.write(&mut line).unwrap();
        }
        let mut rest = line.as_slice();
        for frame in &frames {
            assert_eq!(&Frame::read(&mut rest).unwrap(), frame);
        }
        assert!(Frame::read(&mut rest).is_err(), "the line ended");
    }
}
