//! Comparing: what stands against each node for one container, how good each of the others would be, and by what.
//!
//! The very checks and points by which [`Search`] chooses, told instead of decided: the first of those that fit is the node that
//! [`Search::place`] takes, but in clusters so large that it looks at some of the nodes only: there that is one of the first. Refuses to choose, and to word anything but what stands against a node.

use std::cmp::Reverse;

use berth_common::id::NodeId;
use berth_common::model::Reservation;

use super::constraints::Broken;
use super::filter::{self, Obstacle};
use super::forecast::{CPU, plus};
use super::load::{self, Known, Watermarks};
use super::score::{self, Parts};
use super::{Candidate, Search, View, candidates, idle};

/// One node, compared with the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Which.
    pub node: NodeId,
    /// What stands against it; nothing: it can take the container.
    pub against: Vec<Obstacle>,
    /// How good it would be; none where something stands against it.
    pub rating: Option<Parts>,
    /// What is free there.
    pub free: Reservation,
    /// Replicas of the service that it has.
    pub replicas: u32,
    /// What would be in use there with the container; none where nothing is known of its load.
    pub expected: Option<Expected>,
}

/// What would be in use on a node, as shares of what it has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// CPU, on average.
    pub cpu: f32,
    /// CPU, but for a chance of about one in a thousand.
    pub cpu_high: f32,
    /// Memory, likewise.
    pub memory_high: f32,
    /// Standard deviations to overload; as many as count at most, or fewer.
    pub room: f32,
}

impl Choice {
    /// Whether the node stays under the mark up to which moves may fill it; nothing known of its load is nothing against it.
    pub fn stays_cool(&self, marks: &Watermarks) -> bool {
        self.expected
            .is_none_or(|with| with.cpu_high <= marks.target && with.memory_high <= marks.memory)
    }
}

impl Search<'_> {
    /// How good a node would be that nothing stands against.
    #[inline]
    pub(super) fn parts(
        &self,
        view: &View<'_>,
        candidate: &Candidate,
        leaving: Option<usize>,
        only: Option<usize>,
    ) -> Parts {
        let seat = &view.seats[candidate.seat];
        let asked = &self.request;
        let idle = asked.constraints.idle;
        let spread = self.distribution.as_ref();
        let uneven = spread.map_or(0, |spread| {
            spread.reluctance(&view.seats, candidate.seat, leaving)
        });
        // What others of its kind use counts for a best-effort container alone.
        let lent = match idle == Reservation::default() {
            true => Reservation::default(),
            false => seat.lent,
        };
        let parts = score::parts(
            seat.allocatable,
            seat.taken.plus(lent),
            asked.reservation.plus(idle),
            candidate.replicas,
            only == Some(candidate.seat),
            candidate.image,
        );
        Parts {
            load: load::points(seat.known(), &asked.load, &seat.capacity, &view.marks),
            standing: candidate.standing,
            spread: -uneven,
            displaces: -idle::reluctance(seat, asked.reservation),
            ..parts
        }
    }

    /// Every node, those that fit first and of these the best first.
    pub fn compare(&self, view: &View<'_>) -> Vec<Choice> {
        let (only, request) = (self.only(None), &self.request);
        let choices = view.all().enumerate().map(|(at, seat)| {
            let standing = filter::STANDING.iter().filter_map(|check| check(seat, request));
            let mut against: Vec<Obstacle> = standing.collect();
            match against.is_empty() {
                true => against = self.obstacles(view, at),
                false => against.extend(self.short_of(view, at)),
            }
            let rating = against.is_empty().then(|| {
                let candidate = candidates::candidate(view, request, at);
                self.parts(view, &candidate, None, only)
            });
            Choice {
                node: seat.node.id,
                against,
                rating,
                free: seat.allocatable.minus(seat.held()),
                replicas: self.replicas.get(&at).copied().unwrap_or(0),
                expected: self.expected(view, at),
            }
        });
        let mut choices: Vec<Choice> = choices.collect();
        // Stable: of equals the smallest node id comes first, as where one is chosen.
        choices.sort_by_key(|choice| match &choice.rating {
            Some(parts) => (false, Reverse(parts.total())),
            None => (true, Reverse(0)),
        });
        choices
    }

    /// All that stands against a node in question as it is now.
    fn obstacles(&self, view: &View<'_>, seat: usize) -> Vec<Obstacle> {
        let Some(first) = self.obstacle(view, seat, None) else {
            return Vec::new();
        };
        let rest = self.uneven(view, seat, None).map(Obstacle::Broken);
        let mut all = vec![first];
        for more in rest.into_iter().chain(self.short_of(view, seat)) {
            if !all.contains(&more) {
                all.push(more);
            }
        }
        all
    }

    /// What a node lacks of what is asked, load included.
    fn short_of(&self, view: &View<'_>, seat: usize) -> impl Iterator<Item = Obstacle> {
        let seat = &view.seats[seat];
        let away = seat.lost || !seat.synced;
        let room = filter::room(seat.allocatable, seat.held(), self.request.reservation);
        let idle = self.lacks_idle(seat);
        // Of a node that is away it goes without saying.
        let busy = seat.busy(&self.request.load, &view.marks).filter(|_| !away);
        room.or(idle).into_iter().chain(busy)
    }

    fn expected(&self, view: &View<'_>, seat: usize) -> Option<Expected> {
        let seat = &view.seats[seat];
        let Known::Expected(load) = seat.known() else {
            return None;
        };
        let with = plus(*load, self.request.load);
        let (cpu_high, memory_high) = view.marks.shares(&with, &seat.capacity);
        Some(Expected {
            cpu: with[CPU].mean / seat.capacity[CPU].max(1.0),
            cpu_high,
            memory_high,
            room: load::room(load, &self.request.load, &seat.capacity),
        })
    }
}

impl Obstacle {
    /// What stands against one node, in words that follow its name; `asked`: what the container reserves.
    pub fn sentence(&self, asked: Reservation, node: &str) -> String {
        let marks = Watermarks::default();
        let busy = |resource: &str, percent: u32, mark: f32| {
            let mark = (mark * 100.0) as u32;
            format!(
                "is too busy ({resource} in use would reach {percent} percent, of {mark} that a placement may leave)"
            )
        };
        match self {
            Self::Private => "is private to another tenant".to_owned(),
            Self::Lost => "is lost".to_owned(),
            Self::Unreachable => "is not connected".to_owned(),
            Self::Cordoned => "is cordoned".to_owned(),
            Self::Draining => "is draining".to_owned(),
            Self::Silent => "has not told its load of late".to_owned(),
            Self::Label(label) => format!("lacks the label {label}"),
            Self::Broken(Broken::IdleMemory { need, idle }) => {
                format!("lacks idle memory (need {need}, idle is {idle})")
            }
            Self::Broken(Broken::IdleCpu { need, idle }) => {
                format!("lacks idle CPU (need {need} cores, idle is {idle})")
            }
            Self::Broken(broken) => broken.of_one(node),
            Self::Cpu(free) => format!("lacks CPU (need {} cores, free is {free})", asked.cpu),
            Self::Memory(free) => format!("lacks memory (need {}, free is {free})", asked.memory),
            Self::Disk(free) => format!("lacks disk (need {}, free is {free})", asked.disk),
            Self::WarmCpu(percent) => busy("CPU", *percent, marks.schedule),
            Self::WarmMemory(percent) => busy("memory", *percent, marks.memory),
        }
    }
}
