//! Whatever a container sends to its gateway's resolver ends in an answer, a refusal or nothing, within bounds.
#![no_main]

use berth_agent::dns::message::{Read, read};
use berth_agent::dns::zone::{Answer, Zone};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    match read(data) {
        Read::Question(question) => {
            let labels: Vec<&str> = question.labels.iter().map(String::as_str).collect();
            let _ = Zone::default().answer(&labels, question.kind);
            let some = Answer::Addresses((0..100_u8).map(|n| [10, 0, 0, n].into()).collect());
            for answer in [some, Answer::NoName, Answer::NoData] {
                assert!(question.answer(&answer, true).is_none_or(|bytes| bytes.len() <= 1_232));
                let _ = question.answer(&answer, false);
            }
            let _ = question.fail();
        }
        Read::Refused(answer) => assert!(matches!(read(&answer), Read::Nothing), "an answer is not answered"),
        Read::Nothing => {}
    }
});
