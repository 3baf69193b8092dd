//! What a service asks of places beyond room and labels, and how a node that does not satisfy it says so (R9).

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::Name;
use berth_common::model::{Architecture, DEFAULT_POOL, Reservation, Spread, Toleration};
use berth_common::units::{Bytes, Millicores};

use super::affinity::{self, Companion, Replicas};
use super::filter::Obstacle;
use super::score::Standing;
use super::volumes::Volumes;
use super::{Request, Seat, taints};
use crate::policies::Verdict;

/// What a service asks of places, as far as it can be told from its spec and the state.
#[derive(Debug, Clone, Default)]
pub struct Constraints<'a> {
    /// The pool that its nodes must be in; none: the default one.
    pub pool: Option<&'a Name>,
    /// The architecture that its image is for; none: it is not known, or for several.
    pub arch: Option<&'a Architecture>,
    /// Taints that it puts up with.
    pub tolerations: &'a [Toleration],
    /// How its replicas are spread.
    pub spread: &'a [Spread],
    /// Most of them on one node.
    pub max_per_node: Option<u32>,
    /// Where they are, as far as the two above ask for it.
    pub replicas: Replicas,
    /// What it uses of what reservations leave idle; nothing where it reserves what it needs.
    pub idle: Reservation,
    /// Services that it is to be near.
    pub companions: Vec<Companion<'a>>,
    /// Its volumes.
    pub volumes: Volumes,
    /// What its policy says of nodes, if it has one and that was heard.
    pub verdict: Option<Arc<Verdict>>,
}

/// What a node does not satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// It is not in this pool.
    Pool(String),
    /// Its processors are of another kind than its image is for.
    Architecture {
        /// The image's.
        image: String,
        /// The node's.
        node: String,
    },
    /// It has a taint, this one.
    Taint(String),
    /// It lacks the label by which replicas are spread.
    Unlabelled(String),
    /// It is not near a service that this one must be near.
    Apart {
        /// The other service.
        with: String,
        /// The label that makes near; none: the node.
        by: Option<String>,
        /// No container of the other is anywhere.
        nowhere: bool,
    },
    /// One more replica there would be more uneven than allowed.
    Uneven {
        /// The label.
        by: String,
        /// Its value there.
        here: String,
        /// Replicas that would have it.
        with: u32,
        /// The value that fewest have.
        emptiest: String,
        /// How many these are.
        has: u32,
        /// By how many they may differ.
        max_skew: u32,
    },
    /// Too little memory is idle.
    IdleMemory {
        /// What is needed.
        need: Bytes,
        /// What is idle.
        idle: Bytes,
    },
    /// Too little CPU is idle.
    IdleCpu {
        /// What is needed.
        need: Millicores,
        /// What is idle.
        idle: Millicores,
    },
    /// The service's policy refuses it.
    Policy {
        /// Which policy.
        policy: String,
        /// Why, in its words.
        why: Arc<str>,
    },
    /// It does not have a volume that is somewhere else.
    VolumeElsewhere {
        /// The volume.
        volume: String,
        /// The node that has it.
        node: String,
    },
    /// Its agent has nothing to put volumes in.
    NoVolumes,
    /// Too little is left for volumes.
    VolumesFull {
        /// What is needed.
        need: Bytes,
        /// What is left.
        free: Bytes,
    },
    /// As many replicas as allowed are there.
    Crowded {
        /// How many.
        here: u32,
        /// And may be.
        most: u32,
    },
}

impl Broken {
    /// Obstacles of one kind are told together; the order is that of the telling.
    const fn kind(&self) -> u8 {
        match self {
            Self::Pool(_) => 0,
            Self::Architecture { .. } => 1,
            Self::Taint(_) => 2,
            Self::Unlabelled(_) => 3,
            Self::Apart { .. } => 4,
            Self::Uneven { .. } => 5,
            Self::Crowded { .. } => 6,
            Self::IdleMemory { .. } => 7,
            Self::IdleCpu { .. } => 8,
            Self::Policy { .. } => 9,
            Self::NoVolumes => 10,
            Self::VolumesFull { .. } => 11,
            Self::VolumeElsewhere { .. } => 12,
        }
    }

    /// The kind's name, for counting.
    const fn name(&self) -> &'static str {
        match self {
            Self::Pool(_) => "pool",
            Self::Architecture { .. } => "architecture",
            Self::Taint(_) => "taint",
            Self::Unlabelled(_) | Self::Uneven { .. } => "spread",
            Self::Apart { .. } => "together",
            Self::Crowded { .. } => "max_per_node",
            Self::IdleMemory { .. } => "idle_memory",
            Self::IdleCpu { .. } => "idle_cpu",
            Self::Policy { .. } => "policy",
            Self::NoVolumes | Self::VolumesFull { .. } | Self::VolumeElsewhere { .. } => "volumes",
        }
    }

    /// Whether it is the better one to tell of two of a kind: that with more of what is lacking.
    fn tells_more(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::IdleMemory { idle, .. }, Self::IdleMemory { idle: less, .. }) => idle > less,
            (Self::IdleCpu { idle, .. }, Self::IdleCpu { idle: less, .. }) => idle > less,
            (Self::VolumesFull { free, .. }, Self::VolumesFull { free: less, .. }) => free > less,
            _ => false,
        }
    }

    /// What is wrong with one node, in words that follow its name.
    pub fn of_one(&self, name: &str) -> String {
        self.sentence("", true, false, name).trim_start().to_owned()
    }

    /// What is wrong with `nodes`, of which this is the first; `mixed` if others of them have another reason of this kind.
    fn sentence(&self, nodes: &str, one: bool, mixed: bool, on: &str) -> String {
        let verb = |single: &'static str, plural: &'static str| if one { single } else { plural };
        match self {
            Self::Pool(pool) => format!("{nodes} {} not in pool {pool}", verb("is", "are")),
            Self::Architecture { image, node } => {
                let node = if mixed { "of other architectures" } else { node };
                format!("{nodes} {} {node}, its image is for {image}", verb("is", "are"))
            }
            Self::Taint(taint) => {
                let (has, such) = (verb("has", "have"), if mixed { "such as " } else { "" });
                let what = if mixed { "taints" } else { "the taint" };
                format!("{nodes} {has} {what} {such}{taint}, which it does not tolerate")
            }
            Self::Unlabelled(label) => {
                let (lacks, such) = (
                    verb("lacks", "lack"),
                    if mixed { "labels such as" } else { "the label" },
                );
                format!("{nodes} {lacks} {such} {label}, by which it is spread")
            }
            Self::Apart {
                with, nowhere: true, ..
            } => format!("{nodes} can't be near service {with}, of which no container has a node"),
            Self::Apart { with, by: None, .. } => {
                format!("{nodes} {} no container of service {with}", verb("has", "have"))
            }
            Self::Apart {
                with, by: Some(by), ..
            } => {
                format!("{nodes} {} not in a {by} with service {with}", verb("is", "are"))
            }
            Self::Uneven {
                by,
                here,
                with,
                emptiest,
                has,
                max_skew,
            } => {
                let (is, such) = (verb("is", "are"), if mixed { "places such as " } else { "" });
                let in_it = format!("{such}{by}={here}, which would have {with} of its replicas");
                format!("{nodes} {is} in {in_it} where {by}={emptiest} has {has} (max_skew {max_skew})")
            }
            Self::IdleMemory { need, idle } => format!(
                "{nodes} {} idle memory (need {need}, most is {idle} on {on})",
                verb("lacks", "lack")
            ),
            Self::IdleCpu { need, idle } => format!(
                "{nodes} {} idle CPU (need {need} cores, most is {idle} on {on})",
                verb("lacks", "lack")
            ),
            Self::Policy { policy, why } => {
                let such = if mixed { "such as " } else { "" };
                format!(
                    "{nodes} {} refused by policy {policy} ({such}{why})",
                    verb("is", "are")
                )
            }
            Self::NoVolumes => format!(
                "{nodes} {} no place for volumes (`berth-agent check` there says why)",
                verb("has", "have")
            ),
            Self::VolumesFull { need, free } => format!(
                "{nodes} {} room for volumes (need {need}, most free is {free} on {on})",
                verb("lacks", "lack")
            ),
            Self::VolumeElsewhere { volume, node } => format!(
                "{nodes} {} not have its volume {volume}, which is on {node}",
                verb("does", "do")
            ),
            Self::Crowded { here, most } => {
                let has = verb("has", "have");
                format!("{nodes} {has} {here} of its replicas (max_per_node {most})")
            }
        }
    }
}

/// Obstacles of this kind met so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told(BTreeMap<u8, Group>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    nodes: u32,
    first: Broken,
    /// Where that is.
    on: String,
    mixed: bool,
}

impl Told {
    /// Adds what the node `name` does not satisfy.
    pub fn add(&mut self, broken: Broken, name: &str) {
        let kind = broken.kind();
        match self.0.get_mut(&kind) {
            Some(group) => {
                group.nodes += 1;
                group.mixed |= group.first != broken;
                if broken.tells_more(&group.first) {
                    group.first = broken;
                    name.clone_into(&mut group.on);
                }
            }
            None => {
                let group = Group {
                    nodes: 1,
                    first: broken,
                    on: name.to_owned(),
                    mixed: false,
                };
                self.0.insert(kind, group);
            }
        }
    }

    /// The names of these kinds.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        let mut names: Vec<_> = self.0.values().map(|group| group.first.name()).collect();
        names.dedup();
        names.into_iter()
    }

    /// One part of a sentence for each kind; `count` says how many nodes.
    pub fn parts(&self, count: impl Fn(u32) -> String) -> impl Iterator<Item = String> {
        self.0.values().map(move |group| {
            let nodes = count(group.nodes);
            group
                .first
                .sentence(&nodes, group.nodes == 1, group.mixed, &group.on)
        })
    }
}

/// Checks of a node that what is placed in the same plan does not change.
pub fn standing(seat: &Seat<'_>, request: &Request<'_>) -> Option<Obstacle> {
    let asked = &request.constraints;
    let pool = asked.pool.map_or(DEFAULT_POOL, Name::as_str);
    if seat.node.pool.as_str() != pool {
        return Some(Obstacle::Broken(Broken::Pool(pool.to_owned())));
    }
    if let Some(image) = asked.arch.filter(|arch| **arch != seat.node.facts.arch) {
        return Some(Obstacle::Broken(Broken::Architecture {
            image: image.0.clone(),
            node: seat.node.facts.arch.0.clone(),
        }));
    }
    let taint = taints::keeps_off(seat.node, asked.tolerations);
    if let Some(taint) = taint {
        return Some(Obstacle::Broken(Broken::Taint(taint.to_string())));
    }
    let apart = affinity::standing(seat.node, asked.spread, &asked.companions);
    apart
        .or_else(|| asked.volumes.obstacle(seat))
        .or_else(|| refused(seat, asked))
        .map(Obstacle::Broken)
}

/// What the service's policy has against the node.
fn refused(seat: &Seat<'_>, asked: &Constraints<'_>) -> Option<Broken> {
    let verdict = asked.verdict.as_ref()?;
    Some(Broken::Policy {
        policy: verdict.policy.to_string(),
        why: verdict.refusal(seat.node.id)?.into(),
    })
}

/// The parts of a node's score that placements don't change.
pub fn standing_parts(seat: &Seat<'_>, request: &Request<'_>) -> Standing {
    let asked = &request.constraints;
    let verdict = asked.verdict.as_ref();
    Standing {
        taints: -taints::reluctance(seat.node, asked.tolerations),
        together: -affinity::reluctance(seat.node, &asked.companions),
        policy: verdict.map_or(0, |verdict| verdict.points(seat.node.id)),
    }
}
