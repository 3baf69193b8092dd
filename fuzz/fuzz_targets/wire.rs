//! Whatever bytes arrive on a link, decoding them ends in a message or an error, within bounds.
#![no_main]

use berth_common::protocol::{
    AgentMessage, BrainMessage, BrainReply, BrainRequest, DesiredSet, ExecDown, ExecUp, FrameDecoder, JoinRequest,
    JoinToken, NodeReply, NodeRequest, UsageReport, decode, encode,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut decoder = FrameDecoder::new(1 << 20);
    decoder.handle_bytes(data);
    while let Ok(Some(payload)) = decoder.poll_frame() {
        each(&payload);
    }
    each(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<JoinToken>();
    }
});

fn each(payload: &[u8]) {
    if let Ok(message) = decode::<AgentMessage>(payload) {
        // What was understood can be said again and means the same.
        let frame = encode(&message).expect("what was decoded fits");
        assert_eq!(decode::<AgentMessage>(&frame[4..]).expect("own encoding"), message);
    }
    if let Ok(message) = decode::<BrainMessage>(payload) {
        if let BrainMessage::Desired(update) = &message {
            let node = berth_common::id::NodeId::from_bytes([0; 10]);
            let _ = DesiredSet::empty(node).apply(update);
        }
        let frame = encode(&message).expect("what was decoded fits");
        assert_eq!(decode::<BrainMessage>(&frame[4..]).expect("own encoding"), message);
    }
    let _ = decode::<UsageReport>(payload);
    let _ = decode::<NodeRequest>(payload);
    let _ = decode::<NodeReply>(payload);
    let _ = decode::<BrainRequest>(payload);
    let _ = decode::<BrainReply>(payload);
    let _ = decode::<ExecUp>(payload);
    let _ = decode::<ExecDown>(payload);
    let _ = decode::<JoinRequest>(payload);
}
