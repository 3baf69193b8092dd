//! Cuts a byte stream into lines, for NDJSON answers and server-sent events.
//!
//! Pure: bytes in, lines out. Refuses lines over a bound, so that a peer that never sends a newline can't fill memory.

use berth_common::error::Problem;
use futures::stream::{BoxStream, Stream, StreamExt, try_unfold};
use reqwest::Response;
use serde::de::DeserializeOwned;

use super::{Client, ClientError};

/// Longest line taken. A log line has at most 16 KiB; an event of a large service some hundreds of KiB.
pub const MAX_LINE: usize = 4 << 20;

/// A line longer than [`MAX_LINE`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a line has more than {MAX_LINE} bytes")]
pub struct LineTooLong;

/// Collects bytes until there are whole lines.
#[derive(Debug, Default)]
pub struct LineBuffer {
    held: Vec<u8>,
    /// Up to here `held` is known to have no newline.
    seen: usize,
}

impl LineBuffer {
    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole line without `\n` or `\r\n`.
    ///
    /// # Errors
    /// [`LineTooLong`].
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let Some(offset) = self.held[self.seen..].iter().position(|byte| *byte == b'\n') else {
            self.seen = self.held.len();
            return if self.seen > MAX_LINE {
                Err(LineTooLong)
            } else {
                Ok(None)
            };
        };
        let end = self.seen + offset;
        let mut line: Vec<u8> = self.held.drain(..=end).collect();
        self.seen = 0;
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.len() > MAX_LINE {
            Err(LineTooLong)
        } else {
            Ok(Some(line))
        }
    }
}

/// Decodes each line of an answer; a line that is a problem ends the stream with it.
pub fn ndjson<T: DeserializeOwned + Send + 'static>(
    client: Client,
    response: Response,
) -> BoxStream<'static, Result<T, ClientError>> {
    let what = response.url().path().to_owned();
    lines(client, response)
        .filter(|line| std::future::ready(!matches!(line, Ok(text) if text.is_empty())))
        .map(move |line| decode(&what, &line?))
        .boxed()
}

fn decode<T: DeserializeOwned>(what: &str, line: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(line).map_err(|error| match serde_json::from_slice::<Problem>(line) {
        Ok(problem) => ClientError::Refused(Box::new(problem)),
        Err(_) => ClientError::Nonsense {
            what: what.to_owned(),
            why: error.to_string(),
        },
    })
}

/// The lines of an answer as they arrive.
pub fn lines(client: Client, response: Response) -> impl Stream<Item = Result<Vec<u8>, ClientError>> + Send {
    let what = response.url().path().to_owned();
    try_unfold(
        (client, response, LineBuffer::default(), what),
        |(client, mut response, mut buffer, what)| async move {
            loop {
                let line = buffer.next_line().map_err(|error| ClientError::Nonsense {
                    what: what.clone(),
                    why: error.to_string(),
                })?;
                if let Some(line) = line {
                    return Ok(Some((line, (client, response, buffer, what))));
                }
                match response.chunk().await.map_err(|error| client.broken(&error))? {
                    Some(bytes) => buffer.push(&bytes),
                    None if buffer.held.is_empty() => return Ok(None),
                    // A last line without its newline is still a line.
                    None => buffer.push(b"\n"),
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_without_end_is_refused() {
        let mut buffer = LineBuffer::default();
        buffer.push(&vec![b'x'; MAX_LINE + 1]);
        assert_eq!(buffer.next_line(), Err(LineTooLong));
    }

    #[test]
    fn a_problem_in_the_stream_is_an_error() {
        let line = serde_json::to_vec(&Problem::not_found("gone")).unwrap();
        let error = decode::<berth_common::protocol::LogLine>("/x", &line).unwrap_err();
        assert!(matches!(error, ClientError::Refused(p) if p.detail == "gone"));
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_lines_are_the_same(text in "[a-z\n]{0,200}", cut in 1usize..20) {
            let mut buffer = LineBuffer::default();
            let mut lines = Vec::new();
            for piece in text.as_bytes().chunks(cut) {
                buffer.push(piece);
                while let Some(line) = buffer.next_line().unwrap() {
                    lines.push(String::from_utf8(line).unwrap());
                }
            }
            let mut want: Vec<String> = text.split('\n').map(str::to_owned).collect();
            want.pop();
            prop_assert_eq!(lines, want);
        }
    }
}
