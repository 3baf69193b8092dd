//! Framing: sans-IO decoder, encoder, and the two thin async functions over them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest frame accepted, bytes. A desired set of 4,000 containers with 2 KiB of environment each fits.
pub const MAX_FRAME: usize = 16 << 20;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Longer than the reader allows.
    #[error("frame of {length} bytes exceeds the limit of {limit}")]
    TooLong {
        /// Announced or encoded length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Not the JSON that was expected.
    #[error("frame is not a valid {what}")]
    Malformed {
        /// The Rust type that was expected.
        what: &'static str,
        /// The decoder's complaint.
        #[source]
        source: serde_json::Error,
    },
    /// The peer closed the stream between frames.
    #[error("stream closed")]
    Closed,
    /// The stream broke.
    #[error("stream broke")]
    Io(#[from] std::io::Error),
}

/// Splits a byte stream into frames; feed it bytes, poll it for payloads.
#[derive(Debug)]
pub struct FrameDecoder {
    buffer: BytesMut,
    limit: usize,
}

impl FrameDecoder {
    /// A decoder that accepts payloads of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// Adds received bytes.
    pub fn handle_bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete payload, if there is one.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] as soon as the length is known; the stream is useless afterwards.
    pub fn poll_frame(&mut self) -> Result<Option<Bytes>, CodecError> {
        if self.buffer.len() < 4 {
            return Ok(None);
        }
        let length =
            u32::from_be_bytes([self.buffer[0], self.buffer[1], self.buffer[2], self.buffer[3]]) as usize;
        if length > self.limit {
            return Err(CodecError::TooLong {
                length,
                limit: self.limit,
            });
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

/// One message as a frame.
///
/// # Errors
/// [`CodecError::TooLong`] above [`MAX_FRAME`].
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, CodecError> {
    let mut out = BytesMut::with_capacity(256);
    out.put_u32(0);
    let mut writer = out.writer();
    serde_json::to_writer(&mut writer, message).map_err(|source| CodecError::Malformed {
        what: std::any::type_name::<T>(),
        source,
    })?;
    let mut out = writer.into_inner();
    let length = out.len() - 4;
    if length > MAX_FRAME {
        return Err(CodecError::TooLong {
            length,
            limit: MAX_FRAME,
        });
    }
    out[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(out.freeze())
}

/// The message in a frame's payload.
///
/// # Errors
/// [`CodecError::Malformed`], without the payload: it may hold secrets.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, CodecError> {
    serde_json::from_slice(payload).map_err(|source| CodecError::Malformed {
        what: std::any::type_name::<T>(),
        source,
    })
}

/// Reads one message of at most `limit` bytes. Not cancel-safe: give each stream one reader.
///
/// # Errors
/// [`CodecError::Closed`] at a clean end between frames, else as it says.
pub async fn read_frame<T: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> Result<T, CodecError> {
    let mut head = [0; 4];
    if reader.read(&mut head[..1]).await? == 0 {
        return Err(CodecError::Closed);
    }
    reader.read_exact(&mut head[1..]).await?;
    let length = u32::from_be_bytes(head) as usize;
    if length > limit {
        return Err(CodecError::TooLong { length, limit });
    }
    // Grows with what really arrives: an announced length alone must not cost memory.
    let mut payload = Vec::with_capacity(length.min(64 << 10));
    let read = reader.take(length as u64).read_to_end(&mut payload).await?;
    if read < length {
        return Err(CodecError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    decode(&payload)
}

/// Writes one message.
///
/// # Errors
/// As [`encode`], or the stream's.
pub async fn write_frame<T: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), CodecError> {
    writer.write_all(&encode(message)?).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{AgentMessage, BrainMessage};
    use proptest::prelude::*;

    #[test]
    fn unknown_messages_and_fields_are_ignored() {
        let unknown: AgentMessage = decode(br#"{"type":"from_the_future","x":[1,2,3]}"#).unwrap();
        assert_eq!(unknown, AgentMessage::Unknown);
        let extra: BrainMessage = decode(br#"{"type":"ping","colour":"blue"}"#).unwrap();
        assert_eq!(extra, BrainMessage::Ping);
    }

    #[test]
    fn a_long_frame_is_refused_by_its_header() {
        let mut decoder = FrameDecoder::new(10);
        decoder.handle_bytes(&[0xff; 4]);
        assert!(matches!(decoder.poll_frame(), Err(CodecError::TooLong { .. })));
    }

    #[tokio::test]
    async fn truncated_frames_are_errors() {
        let frame = encode(&BrainMessage::Ping).unwrap();
        for cut in 1..frame.len() {
            let mut part = &frame[..cut];
            let result = read_frame::<BrainMessage>(&mut part, MAX_FRAME).await;
            assert!(matches!(result, Err(CodecError::Io(_))), "{cut}");
        }
        let mut none = &frame[..0];
        assert!(matches!(
            read_frame::<BrainMessage>(&mut none, MAX_FRAME).await,
            Err(CodecError::Closed)
        ));
    }

    proptest! {
        #[test]
        fn any_split_yields_the_same_frames(sizes in proptest::collection::vec(1usize..7, 1..50), count in 1usize..6) {
            let mut bytes = Vec::new();
            for _ in 0..count {
                bytes.extend_from_slice(&encode(&BrainMessage::Ping).unwrap());
            }
            let mut decoder = FrameDecoder::new(MAX_FRAME);
            let (mut at, mut got) = (0, 0);
            for size in sizes.iter().cycle() {
                if at == bytes.len() { break; }
                let end = (at + size).min(bytes.len());
                decoder.handle_bytes(&bytes[at..end]);
                at = end;
                while let Some(payload) = decoder.poll_frame().unwrap() {
                    prop_assert_eq!(decode::<BrainMessage>(&payload).unwrap(), BrainMessage::Ping);
                    got += 1;
                }
            }
            prop_assert_eq!(got, count);
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = FrameDecoder::new(1 << 16);
            decoder.handle_bytes(&bytes);
            while let Ok(Some(payload)) = decoder.poll_frame() {
                let _ = decode::<AgentMessage>(&payload);
                let _ = decode::<BrainMessage>(&payload);
            }
        }
    }
}
