//! What nodes say to each other about a transfer, as frames of JSON like those of the link: unknown fields and words change nothing.
//!
//! One bidirectional stream for each attempt. The sender opens it with an [`Opening`], hears an [`Answer`], and sends the body
//! ([`super::frame`]) while further answers come.

use berth_common::id::{Epoch, SnapshotId, VolumeId, clip};
use berth_common::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::volume::{Announced, Snapshot, Uuid};

/// Largest opening, bytes.
pub(super) const MAX_OPENING: usize = 32 << 10;
/// Largest answer, bytes.
pub(super) const MAX_ANSWER: usize = 8 << 10;
/// Most parents offered.
pub(super) const MAX_PARENTS: usize = 64;
/// Longest reason, characters.
const MAX_REASON: usize = 600;

/// One attempt to bring one snapshot over: 128 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransferId(Uuid);

impl TransferId {
    /// A fresh one.
    pub fn random() -> Self {
        Self(Uuid::from_u128(rand::random()))
    }
}

/// A snapshot that the sender has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its id.
    pub snapshot: SnapshotId,
    /// What a stream of it says of itself.
    pub announced: Announced,
}

impl Candidate {
    /// Of one on this node.
    pub fn of(snapshot: &Snapshot) -> Self {
        Self {
            snapshot: snapshot.id,
            announced: snapshot.announced(),
        }
    }

    /// Whether a snapshot of this node is the same one, as it was received. Transactions of different nodes can't be compared.
    pub fn is(&self, here: &Snapshot) -> bool {
        here.id == self.snapshot && here.announced().uuid == self.announced.uuid && here.read_only
    }
}

/// What the sender would bring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// For resuming.
    pub transfer: TransferId,
    /// Which volume.
    pub volume: VolumeId,
    /// The hand-over the sender knows of.
    pub epoch: Epoch,
    /// What comes.
    #[serde(flatten)]
    pub content: Candidate,
    /// What an increment may start from, the best first; at most [`MAX_PARENTS`].
    #[serde(default)]
    pub parents: Vec<Candidate>,
    /// About so many bytes, if the whole is sent.
    #[serde(default)]
    pub expected: Bytes,
}

/// First on a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Opening {
    /// A snapshot.
    Offer(Offer),
    /// To go on with one whose link broke.
    Resume {
        /// Which.
        transfer: TransferId,
    },
    /// From the future.
    #[serde(other)]
    Unknown,
}

/// What the receiver says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Answer {
    /// It is here already.
    Here,
    /// Send it.
    Send {
        /// What differs from this one; none: the whole.
        parent: Option<SnapshotId>,
    },
    /// Go on.
    Resume {
        /// Bytes that are here.
        offset: u64,
    },
    /// No such transfer is under way: offer it anew.
    Forgotten,
    /// During the body.
    Ack {
        /// Bytes that are here.
        offset: u64,
    },
    /// All of it is here and was verified.
    Received,
    /// It will not come in.
    Refused {
        /// Why, in words.
        reason: String,
        /// Whether the same may work later.
        #[serde(default)]
        retryable: bool,
    },
    /// It did not come in; nothing of it was kept.
    Failed {
        /// Why, in words.
        reason: String,
        /// Whether the same may work later.
        #[serde(default)]
        retryable: bool,
    },
    /// From the future.
    #[serde(other)]
    Unknown,
}

impl Answer {
    pub(super) fn refused(reason: impl AsRef<str>, retryable: bool) -> Self {
        Self::Refused {
            reason: clip(reason.as_ref(), MAX_REASON),
            retryable,
        }
    }

    pub(super) fn failed(reason: impl AsRef<str>, retryable: bool) -> Self {
        Self::Failed {
            reason: clip(reason.as_ref(), MAX_REASON),
            retryable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::protocol::{decode, encode};

    fn candidate(n: u128) -> Candidate {
        Candidate {
            snapshot: SnapshotId::random(),
            announced: Announced {
                uuid: Uuid::from_u128(n),
                changed: u64::MAX,
            },
        }
    }

    #[test]
    fn the_largest_offer_and_answer_fit_and_words_of_the_future_are_known_as_such() {
        let offer = Opening::Offer(Offer {
            transfer: TransferId::random(),
            volume: VolumeId::random(),
            epoch: Epoch(u64::MAX),
            content: candidate(u128::MAX),
            parents: (0..MAX_PARENTS as u128)
                .map(|n| candidate(u128::MAX - n))
                .collect(),
            expected: Bytes(u64::MAX),
        });
        let bytes = encode(&offer).unwrap();
        assert!(bytes.len() < MAX_OPENING, "{}", bytes.len());
        assert_eq!(decode::<Opening>(&bytes[4..]).unwrap(), offer);
        // Control characters take six bytes each.
        let answer = encode(&Answer::failed("\u{1}".repeat(10_000), true)).unwrap();
        assert!(answer.len() < MAX_ANSWER, "{}", answer.len());
        let future: Opening = decode(br#"{"type":"swim","x":1}"#).unwrap();
        assert_eq!(future, Opening::Unknown);
        let future: Answer = decode(br#"{"type":"refused","reason":"no","colour":"blue"}"#).unwrap();
        assert_eq!(future, Answer::refused("no", false));
    }
}
