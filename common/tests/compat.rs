//! Version 1 of the wire, as recorded bytes: no change of a type may break a peer that is one version older or newer.
//!
//! `fixtures/v1/NAME.json` is what version 1 sends; `fixtures/v1/required.json` lists the fields it always sends, all
//! others may be missing. Recordings are never changed. For a new message add its sample and run the tests once with
//! `BERTH_RECORD=1` and one at a time, which writes recordings that are missing and touches no others.

#[path = "compat/messages.rs"]
mod messages;
#[path = "compat/samples.rs"]
mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use berth_common::error::ErrorKind;
use berth_common::model::{Class, HealthState, MemorySwap, Phase, Restart, RunState};
use berth_common::protocol::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Decodes a payload; whether it is the expected value, and what it looks like encoded anew.
type Decode = Box<dyn Fn(&[u8]) -> Result<(bool, Value), String>>;

struct Recording {
    name: &'static str,
    today: Value,
    decode: Decode,
}

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

/// The payload of a frame: what really goes over the wire.
fn payload<T: Serialize>(value: &T) -> Value {
    serde_json::from_slice(&encode(value).unwrap()[4..]).unwrap()
}

fn recording<T: Serialize + DeserializeOwned + 'static>(
    name: &'static str,
    value: T,
    same: fn(&T, &T) -> bool,
) -> Recording {
    Recording {
        name,
        today: payload(&value),
        decode: Box::new(move |bytes| {
            let got =
                decode::<T>(bytes).map_err(|e| format!("{e}: {}", std::error::Error::source(&e).unwrap()))?;
            Ok((same(&got, &value), payload(&got)))
        }),
    }
}

fn add<T>(all: &mut Vec<Recording>, list: Vec<(&'static str, T)>)
where
    T: Serialize + DeserializeOwned + PartialEq + 'static,
{
    all.extend(
        list.into_iter()
            .map(|(name, value)| recording(name, value, T::eq)),
    );
}

fn recordings() -> Vec<Recording> {
    let mut all = Vec::new();
    add(&mut all, messages::agent());
    add(&mut all, messages::brain());
    add(
        &mut all,
        vec![
            ("desired_full", samples::full()),
            ("desired_delta", samples::delta()),
            ("desired_on_networks", samples::on_networks()),
            ("desired_with_volumes", samples::with_volumes()),
            ("desired_with_snapshots", samples::with_snapshots()),
            ("desired_checked", samples::checked().0),
            ("desired_best_effort", samples::best_effort()),
        ],
    );
    add(&mut all, samples::neighbours());
    add(&mut all, vec![("usage_report", samples::usage())]);
    add(&mut all, messages::node_requests());
    add(&mut all, messages::node_replies());
    add(&mut all, messages::probe_steps());
    add(&mut all, messages::brain_requests());
    add(&mut all, messages::brain_replies());
    add(&mut all, messages::exec_up());
    add(&mut all, messages::exec_down());
    add(&mut all, messages::join_replies());
    add(&mut all, vec![("join_token", messages::join_token())]);
    // A request holds a secret and is never compared outside of tests, so it has no equality of its own.
    let same = |a: &JoinRequest, b: &JoinRequest| payload(a) == payload(b);
    all.push(recording("join_request", messages::join_request(), same));
    all
}

fn record() -> bool {
    std::env::var_os("BERTH_RECORD").is_some()
}

fn fixture(recording: &Recording) -> Value {
    let path = dir().join(format!("{}.json", recording.name));
    if record() && !path.exists() {
        let text = serde_json::to_string_pretty(&recording.today).unwrap() + "\n";
        std::fs::write(&path, text).unwrap();
    }
    let bytes =
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; see the head of this file", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// Everything in `part` is in `whole`, with the same value. Lists must match element by element.
fn contains(whole: &Value, part: &Value, at: &str) -> Result<(), String> {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part.iter().try_for_each(|(key, part)| {
            let at = format!("{at}/{key}");
            let found = whole.get(key).ok_or_else(|| format!("{at} is missing"))?;
            contains(found, part, &at)
        }),
        (Value::Array(whole), Value::Array(part)) if whole.len() == part.len() => (whole.iter().zip(part))
            .enumerate()
            .try_for_each(|(index, (whole, part))| contains(whole, part, &format!("{at}/{index}"))),
        _ if whole == part => Ok(()),
        _ => Err(format!("{at} is {whole}, recorded was {part}")),
    }
}

/// JSON pointers of every field of every object, innermost first.
fn fields(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let at = format!("{at}/{key}");
                fields(inner, &at, out);
                out.push(at);
            }
        }
        Value::Array(list) => {
            for (index, inner) in list.iter().enumerate() {
                fields(inner, &format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
}

fn without(value: &Value, pointer: &str) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let mut value = value.clone();
    // The parent may be gone with an optional field around it.
    if let Some(Value::Object(map)) = value.pointer_mut(parent) {
        map.remove(key);
    }
    value
}

fn required_today(recording: &Recording, recorded: &Value) -> BTreeSet<String> {
    let mut all = Vec::new();
    fields(recorded, "", &mut all);
    all.retain(|pointer| (recording.decode)(&bytes(&without(recorded, pointer))).is_err());
    all.into_iter().collect()
}

fn required_then() -> BTreeMap<String, BTreeSet<String>> {
    let path = dir().join("required.json");
    let read = std::fs::read(&path);
    let mut recorded: BTreeMap<String, BTreeSet<String>> = match read {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
        Err(_) if record() => BTreeMap::new(),
        Err(error) => panic!("{}: {error}", path.display()),
    };
    if record() {
        for recording in recordings() {
            let today = required_today(&recording, &fixture(&recording));
            recorded.entry(recording.name.to_owned()).or_insert(today);
        }
        std::fs::write(&path, serde_json::to_string_pretty(&recorded).unwrap() + "\n").unwrap();
    }
    recorded
}

#[test]
fn recordings_decode_to_what_they_meant() {
    for recording in recordings() {
        let (same, _) = (recording.decode)(&bytes(&fixture(&recording)))
            .unwrap_or_else(|e| panic!("{} can't be read any more: {e}", recording.name));
        assert!(same, "{} is read as something else", recording.name);
    }
}

#[test]
fn what_is_sent_today_holds_every_recorded_field() {
    for recording in recordings() {
        if let Err(why) = contains(&recording.today, &fixture(&recording), "") {
            panic!("{}: {why}", recording.name);
        }
    }
}

#[test]
fn every_recording_has_a_sample() {
    let known: BTreeSet<_> = recordings().iter().map(|r| format!("{}.json", r.name)).collect();
    for entry in std::fs::read_dir(dir()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let ours = known.contains(&name) || name == "required.json" || name == "words.json";
        assert!(
            ours,
            "{name} is tested by nothing: a message was dropped from the wire"
        );
    }
}

#[test]
fn an_older_sender_may_leave_out_what_is_optional() {
    let then = required_then();
    let mut stripped = 0;
    for recording in recordings() {
        let recorded = fixture(&recording);
        let required = &then[recording.name];
        let new: Vec<_> = required_today(&recording, &recorded)
            .difference(required)
            .cloned()
            .collect();
        assert!(new.is_empty(), "{}: {new:?} must stay optional", recording.name);
        let mut all = Vec::new();
        fields(&recorded, "", &mut all);
        let mut least = recorded.clone();
        for pointer in all.iter().filter(|pointer| !required.contains(*pointer)) {
            // A required field inside an optional one goes with it.
            least = without(&least, pointer);
            stripped += 1;
        }
        let (_, again) = (recording.decode)(&bytes(&least))
            .unwrap_or_else(|e| panic!("{} without optional fields: {e}\n{least}", recording.name));
        contains(&again, &least, "").unwrap_or_else(|why| panic!("{}: {why}", recording.name));
    }
    assert!(stripped > 150, "only {stripped} fields were taken for optional");
}

/// Maps whose keys and values are people's own: a field of the future has no place there.
const FREE: [&str; 2] = ["env", "node_labels"];

fn extend(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (_, inner) in map.iter_mut().filter(|(key, _)| !FREE.contains(&key.as_str())) {
                extend(inner);
            }
            map.insert(
                "of_the_future".to_owned(),
                json!({"list": [1, null, {"deep": "x"}]}),
            );
        }
        Value::Array(list) => list.iter_mut().for_each(extend),
        _ => {}
    }
}

#[test]
fn a_newer_sender_may_add_fields_anywhere() {
    for recording in recordings() {
        let mut value = fixture(&recording);
        extend(&mut value);
        let (same, _) = (recording.decode)(&bytes(&value))
            .unwrap_or_else(|e| panic!("{} with new fields: {e}", recording.name));
        assert!(
            same,
            "{} with new fields is read as something else",
            recording.name
        );
    }
}

#[test]
fn a_newer_sender_may_send_messages_of_new_types() {
    let future = bytes(&json!({"type": "of_the_future", "x": {"y": [1, 2]}, "text": "z"}));
    assert_eq!(decode::<AgentMessage>(&future).unwrap(), AgentMessage::Unknown);
    assert_eq!(decode::<BrainMessage>(&future).unwrap(), BrainMessage::Unknown);
    assert_eq!(decode::<NodeRequest>(&future).unwrap(), NodeRequest::Unknown);
    assert_eq!(decode::<NodeReply>(&future).unwrap(), NodeReply::Unknown);
    assert_eq!(decode::<BrainRequest>(&future).unwrap(), BrainRequest::Unknown);
    assert_eq!(decode::<BrainReply>(&future).unwrap(), BrainReply::Unknown);
    assert_eq!(decode::<ExecUp>(&future).unwrap(), ExecUp::Unknown);
    assert_eq!(decode::<ExecDown>(&future).unwrap(), ExecDown::Unknown);
    assert_eq!(decode::<JoinReply>(&future).unwrap(), JoinReply::Unknown);
    let form = bytes(&json!({"type": "desired", "form": "of_the_future", "set": [1], "generation": 9}));
    assert_eq!(decode::<DesiredUpdate>(&form).unwrap(), DesiredUpdate::Unknown);
    let message = decode::<BrainMessage>(&form).unwrap();
    assert_eq!(message, BrainMessage::Desired(DesiredUpdate::Unknown));
}

/// Fields that hold one word of a closed list.
const WORDS: [&str; 12] = [
    "type", "form", "phase", "run", "on", "swap", "stream", "kind", "state", "half", "verdict", "class",
];

fn new_words(value: &Value, at: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let at = format!("{at}/{key}");
                if inner.is_string() && WORDS.contains(&key.as_str()) {
                    out.push(at);
                } else {
                    new_words(inner, &at, out);
                }
            }
        }
        Value::Array(list) => {
            for (index, inner) in list.iter().enumerate() {
                new_words(inner, &format!("{at}/{index}"), out);
            }
        }
        _ => {}
    }
}

#[test]
fn a_newer_sender_may_use_new_words_anywhere() {
    let mut changed = BTreeSet::new();
    for recording in recordings() {
        let recorded = fixture(&recording);
        let mut places = Vec::new();
        new_words(&recorded, "", &mut places);
        for place in places {
            let mut value = recorded.clone();
            *value.pointer_mut(&place).unwrap() = json!("of_the_future");
            let (same, _) = (recording.decode)(&bytes(&value))
                .unwrap_or_else(|e| panic!("{} with a new word at {place}: {e}", recording.name));
            assert!(!same, "{}: the new word at {place} is not told", recording.name);
            changed.insert(place.rsplit('/').next().unwrap().to_owned());
        }
    }
    // `type` of a problem is free text, but is seen to change like the others.
    assert_eq!(changed.len(), WORDS.len(), "{changed:?}");
}

#[test]
fn new_words_mean_nothing_that_is_known() {
    fn word<T: DeserializeOwned>() -> T {
        decode(b"\"of_the_future\"").unwrap()
    }
    assert_eq!(word::<Phase>(), Phase::Unknown);
    assert_eq!(word::<RunState>(), RunState::Unknown);
    assert_eq!(word::<Restart>(), Restart::Unknown);
    assert_eq!(word::<HealthState>(), HealthState::Unknown);
    assert_eq!(word::<MemorySwap>(), MemorySwap::Unknown);
    assert_eq!(word::<Class>(), Class::Unknown);
    assert_eq!(word::<LogStream>(), LogStream::Unknown);
    assert_eq!(word::<Half>(), Half::Unknown);
    assert_eq!(word::<Verdict>(), Verdict::Unknown);
    assert_eq!(word::<ErrorKind>(), ErrorKind::Unknown);
    assert!(!ErrorKind::Unknown.retryable());
}

#[test]
fn words_of_the_wire_stay() {
    let phases = [
        Phase::Pending,
        Phase::Pulling,
        Phase::Creating,
        Phase::Running,
        Phase::Stopping,
        Phase::Backoff,
        Phase::Exited,
        Phase::Failed,
    ];
    let today = json!({
        "phase": phases,
        "run": [RunState::Running, RunState::Stopped],
        "health": [HealthState::Starting, HealthState::Healthy, HealthState::Unhealthy],
        "restart": [Restart::Always, Restart::OnFailure, Restart::Never],
        "swap": [MemorySwap::None],
        "log_stream": [LogStream::Stdout, LogStream::Stderr],
        "error": ErrorKind::ALL,
        "token": messages::join_token().to_string(),
        "alpn": [std::str::from_utf8(ALPN_LINK).unwrap(), std::str::from_utf8(ALPN_JOIN).unwrap()],
    });
    let path = dir().join("words.json");
    if record() && !path.exists() {
        std::fs::write(&path, serde_json::to_string_pretty(&today).unwrap() + "\n").unwrap();
    }
    let recorded: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (kind, words) in recorded.as_object().unwrap() {
        let (now, then) = (&today[kind], words);
        match (now.as_array(), then.as_array()) {
            // New words may follow; none may go.
            (Some(now), Some(then)) => then
                .iter()
                .for_each(|word| assert!(now.contains(word), "{kind}: {word}")),
            _ => assert_eq!(now, then, "{kind}"),
        }
    }
    let token: JoinToken = recorded["token"].as_str().unwrap().parse().unwrap();
    assert_eq!(token, messages::join_token());
}
