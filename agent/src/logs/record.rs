//! The log file's format. Pure.
//!
//! One record a line: `<unix ms> <stream><flag> <bytes>`, stream `o` (stdout), `e` (stderr) or `b` (berth itself), flag
//! `F` (the line ends here) or `P` (it goes on in the next record of its stream). Bytes are as the container wrote them,
//! without the newline; nothing needs escaping, since a newline can't be inside. What doesn't parse, such as a line torn by
//! a full disk, is passed over by readers.

use berth_common::model::UnixMillis;
use berth_common::protocol::{LogLine, LogStream};

/// Longest piece of a line in one record, bytes.
pub const MAX_LINE: usize = 16 << 10;

/// Who wrote a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
    /// The logger, about lines it lost.
    Berth,
}

/// Appends a record to `out`.
pub fn write(out: &mut Vec<u8>, at: u64, source: Source, partial: bool, bytes: &[u8]) {
    let stream = match source {
        Source::Out => b'o',
        Source::Err => b'e',
        Source::Berth => b'b',
    };
    out.extend_from_slice(at.to_string().as_bytes());
    out.extend_from_slice(&[b' ', stream, if partial { b'P' } else { b'F' }, b' ']);
    out.extend_from_slice(bytes);
    out.push(b'\n');
}

/// Reads a record, given without its newline.
pub fn read(line: &[u8]) -> Option<LogLine> {
    let space = line.iter().position(|b| *b == b' ').filter(|at| *at <= 20)?;
    let at: u64 = std::str::from_utf8(&line[..space]).ok()?.parse().ok()?;
    let [stream, flag, b' ', bytes @ ..] = line.get(space + 1..)? else {
        return None;
    };
    let stream = match stream {
        b'o' => LogStream::Stdout,
        b'e' | b'b' => LogStream::Stderr,
        _ => return None,
    };
    let partial = match flag {
        b'P' => true,
        b'F' => false,
        _ => return None,
    };
    Some(LogLine {
        at: UnixMillis(at),
        stream,
        text: String::from_utf8_lossy(bytes).into_owned(),
        partial,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_reads_back(at in any::<u64>(), partial in any::<bool>(), err in any::<bool>(), text in "[^\n]{0,100}") {
            let mut out = Vec::new();
            write(&mut out, at, if err { Source::Err } else { Source::Out }, partial, text.as_bytes());
            prop_assert_eq!(out.pop(), Some(b'\n'));
            let line = read(&out).unwrap();
            prop_assert_eq!((line.at.0, line.partial, line.text), (at, partial, text));
            prop_assert_eq!(line.stream == LogStream::Stderr, err);
        }

        #[test]
        fn torn_lines_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&bytes);
        }
    }
}
