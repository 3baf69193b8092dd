//! The session's protocol as a state machine: `handle_*` takes what happened, `poll_*` gives what to do. No I/O, no clock.
//!
//! The link counts as up only after Welcome: QUIC's connect succeeds before the server has judged the certificate. Then
//! one full Observed, and changes from there on.

use std::collections::VecDeque;

use berth_common::error::Problem;
use berth_common::id::{Generation, Name, NodeId};
use berth_common::model::NodeFacts;
use berth_common::protocol::{
    AgentMessage, BrainMessage, DesiredUpdate, NeighboursUpdate, PROTOCOL, PROTOCOL_MIN, VOLUMES_A_MESSAGE,
};

use crate::reconcile::{Accepted, Changes, Refusal};
use crate::volume::keeper::Report;

/// Containers in one Observed message; more are sent in several, so that a frame stays far below its limit.
const MAX_CONTAINERS: usize = 2_000;

/// What the driver must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The link is up.
    Up(Welcome),
    /// Hand this to the reconciler and come back with its verdict.
    Order(Box<DesiredUpdate>),
    /// Tell the networks.
    Neighbours(NeighboursUpdate),
    /// Close the connection.
    Close(Problem),
}

/// What the brain said in Welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// Node's name.
    pub name: Name,
    /// The brain's version.
    pub brain_version: String,
    /// How long it waits without hearing, milliseconds.
    pub lease_ms: u32,
    /// Interval of usage reports, milliseconds.
    pub usage_interval_ms: u32,
    /// Addresses to dial from now on; empty: unchanged.
    pub addresses: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitWelcome,
    Up,
    Closed,
}

/// One connection's session.
#[derive(Debug)]
pub struct Session {
    node: NodeId,
    state: State,
    out: VecDeque<AgentMessage>,
    actions: VecDeque<Action>,
    full_sent: bool,
    usage_sequence: u64,
}

impl Session {
    /// Begins with Hello.
    pub fn new(node: NodeId, generation: Generation, facts: NodeFacts) -> Self {
        Self {
            node,
            state: State::AwaitWelcome,
            out: VecDeque::from([AgentMessage::Hello {
                protocol: PROTOCOL,
                protocol_min: PROTOCOL_MIN,
                generation,
                facts,
            }]),
            actions: VecDeque::new(),
            full_sent: false,
            usage_sequence: 0,
        }
    }

    /// Whether Welcome came and nothing ended the session since.
    pub fn is_up(&self) -> bool {
        self.state == State::Up
    }

    /// Whether a full Observed is due: up, and none was sent.
    pub fn wants_full(&self) -> bool {
        self.is_up() && !self.full_sent
    }

    /// A message from the brain.
    pub fn handle_message(&mut self, message: BrainMessage) {
        match (self.state, message) {
            (State::Closed, _) | (_, BrainMessage::Unknown | BrainMessage::Ping) => {}
            (_, BrainMessage::Reject { problem }) => self.close(problem),
            (
                State::AwaitWelcome,
                BrainMessage::Welcome {
                    protocol,
                    node,
                    name,
                    brain_version,
                    lease_ms,
                    usage_interval_ms,
                    addresses,
                },
            ) => {
                if !(PROTOCOL_MIN..=PROTOCOL).contains(&protocol) {
                    return self.close(
                        Problem::invalid(format!(
                            "the brain speaks protocol {protocol}, this agent {PROTOCOL_MIN} to {PROTOCOL}"
                        ))
                        .cure("upgrade the older of the two"),
                    );
                }
                if node != self.node {
                    return self.close(Problem::invalid(format!(
                        "the brain takes this node for {node}, but its certificate says {}",
                        self.node
                    )));
                }
                self.state = State::Up;
                self.actions.push_back(Action::Up(Welcome {
                    name,
                    brain_version,
                    lease_ms,
                    usage_interval_ms: usage_interval_ms.clamp(200, 3_600_000),
                    addresses,
                }));
            }
            (State::AwaitWelcome, BrainMessage::Desired(_)) => {
                self.close(Problem::invalid("the brain sent a desired set before Welcome"));
            }
            (State::Up, BrainMessage::Desired(update)) => {
                self.actions.push_back(Action::Order(Box::new(update)));
            }
            (State::AwaitWelcome, BrainMessage::Neighbours(_)) => {
                self.close(Problem::invalid("the brain spoke of networks before Welcome"));
            }
            (State::Up, BrainMessage::Neighbours(update)) => {
                self.actions.push_back(Action::Neighbours(update));
            }
            (State::Up, BrainMessage::Welcome { .. }) => {
                self.close(Problem::invalid("the brain sent Welcome twice"));
            }
        }
    }

    /// The reconciler's verdict on an order. An accepted one is told by the next Observed.
    pub fn handle_verdict(&mut self, verdict: Result<Accepted, Refusal>) {
        if let (State::Up, Err(refusal)) = (self.state, verdict) {
            self.out.push_back(AgentMessage::Refused {
                held: refusal.held,
                refused: refusal.refused,
                problem: refusal.problem,
            });
        }
    }

    /// Everything observed (`full`) or what changed since.
    pub fn handle_observed(&mut self, full: bool, changes: Changes) {
        if !self.is_up() {
            return;
        }
        self.full_sent |= full;
        let generation = changes.generation;
        let mut containers = changes.containers.into_iter().peekable();
        let (mut first, mut gone) = (true, changes.gone);
        while first || containers.peek().is_some() {
            let part = containers.by_ref().take(MAX_CONTAINERS).collect();
            self.out.push_back(AgentMessage::Observed {
                full: full && first,
                more: containers.peek().is_some(),
                generation,
                containers: part,
                gone: std::mem::take(&mut gone),
            });
            first = false;
        }
        for notice in changes.notices {
            self.out.push_back(AgentMessage::Event {
                container: Some(notice.container),
                kind: notice.kind.to_owned(),
                text: notice.text,
            });
        }
    }

    /// What is to be told of volumes: all of it each time.
    pub fn handle_volumes(&mut self, report: &Report) {
        if !self.is_up() {
            return;
        }
        let mut gone = report.gone.clone();
        let mut volumes = report.volumes.as_slice();
        loop {
            let (part, rest) = volumes.split_at(volumes.len().min(VOLUMES_A_MESSAGE));
            volumes = rest;
            self.out.push_back(AgentMessage::Volumes {
                more: !volumes.is_empty(),
                volumes: part.to_vec(),
                gone: std::mem::take(&mut gone),
            });
            if volumes.is_empty() {
                return;
            }
        }
    }

    /// The host changed.
    pub fn handle_facts(&mut self, facts: NodeFacts) {
        if self.is_up() {
            self.out.push_back(AgentMessage::Facts { facts });
        }
    }

    /// The agent stops on purpose.
    pub fn handle_goodbye(&mut self) {
        if self.is_up() {
            self.out.push_back(AgentMessage::Goodbye);
        }
        self.state = State::Closed;
    }

    /// The number of the next usage report; none unless up.
    pub fn next_usage_sequence(&mut self) -> Option<u64> {
        if !self.is_up() {
            return None;
        }
        self.usage_sequence += 1;
        Some(self.usage_sequence)
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<AgentMessage> {
        self.out.pop_front()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn close(&mut self, problem: Problem) {
        self.state = State::Closed;
        self.actions.push_back(Action::Close(problem));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::error::ErrorKind;
    use berth_common::id::{ContainerId, Epoch, VolumeId};
    use berth_common::model::{ObservedContainer, ObservedVolume};
    use berth_common::units::Bytes;

    fn welcome(node: NodeId, protocol: u32) -> BrainMessage {
        BrainMessage::Welcome {
            protocol,
            node,
            name: "n".parse().unwrap(),
            brain_version: "1".into(),
            lease_ms: 10_000,
            usage_interval_ms: 0,
            addresses: vec![],
        }
    }

    fn session() -> Session {
        let mut session = Session::new(NodeId::from_bytes([1; 10]), Generation(3), crate::fakes::facts());
        assert!(matches!(
            session.poll_transmit(),
            Some(AgentMessage::Hello {
                generation: Generation(3),
                ..
            })
        ));
        session
    }

    #[test]
    fn up_only_after_welcome_and_first_a_full_report() {
        let mut session = session();
        session.handle_observed(false, Changes::default());
        assert_eq!(session.next_usage_sequence(), None);
        assert_eq!(session.poll_transmit(), None);
        session.handle_message(welcome(NodeId::from_bytes([1; 10]), PROTOCOL));
        assert!(matches!(session.poll_action(), Some(Action::Up(w)) if w.usage_interval_ms == 200));
        assert!(session.wants_full());
        session.handle_observed(true, Changes::default());
        assert!(matches!(
            session.poll_transmit(),
            Some(AgentMessage::Observed { full: true, .. })
        ));
        assert!(!session.wants_full());
        assert_eq!(
            (session.next_usage_sequence(), session.next_usage_sequence()),
            (Some(1), Some(2))
        );
        let refusal = Refusal {
            held: Generation(5),
            refused: Generation(4),
            problem: Problem::new(ErrorKind::Conflict, "old"),
        };
        session.handle_verdict(Err(refusal));
        assert!(matches!(
            session.poll_transmit(),
            Some(AgentMessage::Refused {
                held: Generation(5),
                ..
            })
        ));
        session.handle_goodbye();
        assert_eq!(session.poll_transmit(), Some(AgentMessage::Goodbye));
        assert!(!session.is_up());
    }

    fn up() -> Session {
        let mut session = session();
        session.handle_message(welcome(NodeId::from_bytes([1; 10]), PROTOCOL));
        session.poll_action();
        session
    }

    fn observed(n: u64) -> ObservedContainer {
        let mut raw = [3; 10];
        raw[2..].copy_from_slice(&n.to_be_bytes());
        ObservedContainer::pending(ContainerId::from_bytes(raw))
    }

    #[test]
    fn r4_a_large_observation_says_where_it_ends() {
        for (count, parts) in [(0, 1), (1, 1), (2_000, 1), (2_001, 2), (5_000, 3)] {
            for full in [true, false] {
                let mut session = up();
                let changes = Changes {
                    generation: Generation(7),
                    containers: (0..count).map(observed).collect(),
                    gone: vec![ContainerId::from_bytes([9; 10])],
                    notices: vec![],
                };
                session.handle_observed(full, changes.clone());
                let mut got = Changes::default();
                for part in 1..=parts {
                    let message = session.poll_transmit().unwrap();
                    let AgentMessage::Observed {
                        full: said,
                        more,
                        generation,
                        containers,
                        gone,
                    } = message
                    else {
                        panic!("{message:?}")
                    };
                    assert_eq!(
                        (said, more),
                        (full && part == 1, part < parts),
                        "{part} of {parts}"
                    );
                    got.generation = generation;
                    got.containers.extend(containers);
                    got.gone.extend(gone);
                }
                assert_eq!((session.poll_transmit(), got), (None, changes));
            }
        }
    }

    #[test]
    fn volumes_are_told_in_parts_that_say_where_they_end() {
        for (count, parts) in [(0, 1), (1, 1), (50, 1), (51, 2), (150, 3)] {
            let volume = |n: u16| ObservedVolume {
                id: VolumeId::from_bytes([2; 10]).turned(n),
                epoch: Epoch(1),
                writable: true,
                size: Bytes::gib(1),
                used: Bytes::ZERO,
                mounted: false,
                snapshots: vec![],
                problem: None,
                sending: None,
                snapshots_gone: vec![],
            };
            let report = Report {
                volumes: (0..count).map(volume).collect(),
                gone: vec![VolumeId::from_bytes([9; 10])],
            };
            let mut session = session();
            session.handle_volumes(&report);
            assert_eq!(session.poll_transmit(), None, "nothing before Welcome");
            session.handle_message(welcome(NodeId::from_bytes([1; 10]), PROTOCOL));
            session.handle_volumes(&report);
            let mut got = Report::default();
            for part in 1..=parts {
                let message = session.poll_transmit().unwrap();
                let AgentMessage::Volumes { more, volumes, gone } = message else {
                    panic!("{message:?}")
                };
                assert!(volumes.len() <= VOLUMES_A_MESSAGE);
                assert_eq!(more, part < parts, "{part} of {parts}");
                got.volumes.extend(volumes);
                got.gone.extend(gone);
            }
            assert_eq!((session.poll_transmit(), got), (None, report));
        }
    }

    #[test]
    fn wrong_greetings_close() {
        let me = NodeId::from_bytes([1; 10]);
        let early = BrainMessage::Desired(DesiredUpdate::Full {
            set: berth_common::protocol::DesiredSet::empty(me),
        });
        let reject = BrainMessage::Reject {
            problem: Problem::invalid("no"),
        };
        for message in [
            welcome(me, 99),
            welcome(NodeId::from_bytes([2; 10]), PROTOCOL),
            early,
            reject,
        ] {
            let mut session = session();
            session.handle_message(message);
            assert!(matches!(session.poll_action(), Some(Action::Close(_))));
            assert!(!session.is_up());
        }
    }
}
