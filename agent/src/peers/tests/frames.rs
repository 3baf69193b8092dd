use bytes::Bytes;
use proptest::prelude::*;

use crate::peers::frame::{self, CHUNK, Decoder, Frame, FrameError, HEADER, Position};
use crate::peers::pack::Packer;

fn all(decoder: &mut Decoder) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.poll_frame()? {
        frames.push(frame);
    }
    Ok(frames)
}

fn decode(bytes: &[u8]) -> Result<Vec<Frame>, FrameError> {
    let mut decoder = Decoder::new().unwrap();
    decoder.handle_bytes(bytes);
    all(&mut decoder)
}

fn packed(content: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(content, 1).unwrap()
}

#[test]
fn lengths_are_judged_by_the_header_alone() {
    for kind in [1, 2] {
        let whole = frame::chunk(0, frame::filled(b"12345678"), (kind == 2).then_some(b"1234"));
        let lengths: &[(u32, u32)] = &[
            (0, 0),
            (0, 4),
            (8, 0),
            (CHUNK as u32 + 1, CHUNK as u32 + 1),
            (u32::MAX, 8),
            (8, u32::MAX),
            (8, CHUNK as u32 + 1),
        ];
        for (length, wire) in lengths {
            let mut header = whole[..HEADER].to_vec();
            header[9..13].copy_from_slice(&length.to_be_bytes());
            header[13..17].copy_from_slice(&wire.to_be_bytes());
            let error = decode(&header).unwrap_err();
            assert!(
                matches!(error, FrameError::Length { .. }),
                "{kind} {length} {wire}: {error}"
            );
        }
    }
    // As it is, and shorter than it says.
    let mut raw = frame::chunk(0, frame::filled(b"12345678"), None).to_vec();
    raw[16] = 7;
    assert!(matches!(decode(&raw), Err(FrameError::Length { .. })));
    assert!(matches!(decode(b"\0"), Err(FrameError::Kind(0))));
    assert!(matches!(decode(b"GET / HTTP/1.1"), Err(FrameError::Kind(b'G'))));
}

#[test]
fn what_unpacks_to_another_length_is_refused_and_bounded() {
    let bomb = packed(&vec![0; 64 << 20]);
    assert!(bomb.len() < CHUNK);
    for announced in [1, CHUNK] {
        let frame = frame::chunk(5, frame::filled(&vec![0; announced]), Some(&bomb));
        assert!(matches!(decode(&frame), Err(FrameError::Compressed(5))));
    }
    let frame = frame::chunk(5, frame::filled(b"longer than it is"), Some(&packed(b"short")));
    assert!(matches!(decode(&frame), Err(FrameError::Compressed(5))));
    let frame = frame::chunk(5, frame::filled(b"12345"), Some(b"garbage"));
    assert!(matches!(decode(&frame), Err(FrameError::Compressed(5))));
}

#[test]
fn positions_count_and_end_only_where_all_is_there() {
    let chunk = |offset, content: &'static [u8]| frame::Chunk {
        offset,
        content: Bytes::from_static(content),
    };
    let at = Position::default().then(&chunk(0, b"123")).unwrap();
    assert!(matches!(
        at.then(&chunk(0, b"123")),
        Err(FrameError::Gap { wanted: 3, found: 0 })
    ));
    assert!(matches!(
        at.then(&chunk(4, b"5")),
        Err(FrameError::Gap { wanted: 3, found: 4 })
    ));
    let at = at.then(&chunk(3, b"45")).unwrap();
    assert_eq!((at.offset, at.chunks, at.sum), (5, 2, crc32c::crc32c(b"12345")));
    at.ends(at).unwrap();
    for other in [
        Position { offset: 4, ..at },
        Position { chunks: 1, ..at },
        Position { sum: 0, ..at },
        Position::default(),
    ] {
        assert!(matches!(at.ends(other), Err(FrameError::End { .. })));
    }
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..2_000),
        (any::<u8>(), 1..=CHUNK).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

proptest! {
    #[test]
    fn any_split_yields_the_same_frames(
        contents in proptest::collection::vec(content(), 0..6),
        sizes in proptest::collection::vec(1usize..40_000, 1..10),
    ) {
        let (mut packer, mut at, mut bytes) = (Packer::new().unwrap(), Position::default(), Vec::new());
        for content in &contents {
            bytes.extend_from_slice(&packer.chunk(at.offset, frame::filled(content)));
            at = at.after(content);
        }
        bytes.extend_from_slice(&frame::end(at));
        let (mut decoder, mut rest, mut frames) = (Decoder::new().unwrap(), &bytes[..], Vec::new());
        for size in sizes.iter().cycle() {
            let (now, later) = rest.split_at((*size).min(rest.len()));
            decoder.handle_bytes(now);
            frames.extend(all(&mut decoder).unwrap());
            rest = later;
            if rest.is_empty() { break; }
        }
        prop_assert_eq!(frames.len(), contents.len() + 1);
        let mut reached = Position::default();
        for (frame, content) in frames.iter().zip(&contents) {
            let Frame::Chunk(chunk) = frame else { panic!("{frame:?}") };
            prop_assert_eq!(&chunk.content[..], &content[..]);
            reached = reached.then(chunk).unwrap();
        }
        prop_assert_eq!(frames.last(), Some(&Frame::End(reached)));
    }

    #[test]
    fn garbage_never_panics(kind in 0u8..5, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut all = vec![kind];
        all.extend(bytes);
        let _ = decode(&all);
    }

    /// Whatever is changed: there is an error, or another place, or it is not whole.
    #[test]
    fn a_changed_byte_is_noticed(content in content(), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let whole = {
            let mut whole = Packer::new().unwrap().chunk(0, frame::filled(&content)).to_vec();
            whole.extend_from_slice(&frame::end(Position::default().after(&content)));
            whole
        };
        let mut changed = whole.clone();
        let at = at.index(whole.len());
        changed[at] ^= flip;
        let judged = |frames: Vec<Frame>| {
            let mut position = Position::default();
            for frame in frames {
                match frame {
                    Frame::Chunk(chunk) => position = position.then(&chunk)?,
                    Frame::End(end) => return position.ends(end).map(|()| Some(position)),
                }
            }
            Ok(None)
        };
        let honest = decode(&whole).and_then(judged).unwrap();
        prop_assert_eq!(honest, Some(Position::default().after(&content)));
        // Another compressed form of the same bytes would be fine; only their sum counts.
        match decode(&changed).and_then(judged) {
            Err(_) | Ok(None) => {}
            Ok(Some(position)) => prop_assert_eq!(Some(position), honest),
        }
    }
}
