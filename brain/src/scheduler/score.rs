//! Scores: which of the nodes that can take a container should. Integers only, so that equal inputs give equal answers
//! on every machine.

use berth_common::model::Reservation;

/// Taken for each replica of the same service that a node has already: as much as three standard deviations less of room (`load`), so that
/// replicas keep apart unless that makes a node hot.
const REPLICA_HERE: i64 = 24_000;
/// Taken from the only node that has replicas of a service: more than any load, so that two are never lost with one node where there
/// is another. Less than what somebody asked for (`affinity`).
const ALL_HERE: i64 = 10_000_000;
/// Added for a node that is known to hold the image already. Small: a pull costs seconds, a bad fit stays.
const IMAGE_HERE: i64 = 50;

/// Per mille of `whole` that `part` is; a resource that a node does not have at all counts as full.
#[inline]
fn permille(part: u64, whole: u64) -> i64 {
    if whole == 0 {
        return 1000;
    }
    // Dividing first where multiplying would overflow loses nothing that matters at such sizes.
    let share = match part.checked_mul(1000) {
        Some(scaled) => scaled / whole,
        None => part / (whole / 1000).max(1),
    };
    share.min(1000) as i64
}

/// The parts of a node's score that placements don't change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its softer taints.
    pub taints: i64,
    /// Companions that are asked for and not near.
    pub together: i64,
    /// What the service's policy says of it; more than nothing where it is liked.
    pub policy: i64,
}

impl Standing {
    /// Their sum.
    #[inline]
    pub const fn total(&self) -> i64 {
        self.taints + self.together + self.policy
    }
}

/// How good a node would be, by what makes it so; more is better, and what speaks against it is negative. The node is chosen by the sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    /// How little and how evenly it would be reserved, −250 to 1,000.
    pub reservation: i64,
    /// Replicas of the same service that it has.
    pub replicas: i64,
    /// It alone has replicas of the service.
    pub alone: i64,
    /// It is known to have the image.
    pub image: i64,
    /// How far from overload it would stay.
    pub load: i64,
    /// What placements don't change.
    pub standing: Standing,
    /// Its domain has more replicas than the emptiest one.
    pub spread: i64,
    /// Best-effort containers would have to go.
    pub displaces: i64,
}

impl Parts {
    /// The score.
    #[inline]
    pub const fn total(&self) -> i64 {
        self.reservation
            + self.replicas
            + self.alone
            + self.image
            + self.load
            + self.standing.total()
            + self.spread
            + self.displaces
    }
}

/// The parts that reservations, replicas and the image make: replicas of the same service keep apart first of all, then the node
/// that would be least and most evenly reserved wins. `all_here`: no other node has any of its replicas.
#[inline]
pub fn parts(
    allocatable: Reservation,
    taken: Reservation,
    asked: Reservation,
    replicas_here: u32,
    all_here: bool,
    image_here: bool,
) -> Parts {
    let after = taken.plus(asked);
    let cpu = permille(u64::from(after.cpu.0), u64::from(allocatable.cpu.0));
    let memory = permille(after.memory.0, allocatable.memory.0);
    let disk = permille(after.disk.0, allocatable.disk.0);
    let least = 1000 - (cpu + memory + disk) / 3;
    let uneven = cpu.max(memory).max(disk) - cpu.min(memory).min(disk);
    Parts {
        reservation: least - uneven / 4,
        replicas: -i64::from(replicas_here) * REPLICA_HERE,
        alone: if all_here { -ALL_HERE } else { 0 },
        image: if image_here { IMAGE_HERE } else { 0 },
        ..Parts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::units::{Bytes, Millicores};

    fn score(
        whole: Reservation,
        taken: Reservation,
        asked: Reservation,
        replicas: u32,
        all: bool,
        image: bool,
    ) -> i64 {
        parts(whole, taken, asked, replicas, all, image).total()
    }

    fn r(cpu: u32, memory: u64, disk: u64) -> Reservation {
        Reservation {
            cpu: Millicores(cpu),
            memory: Bytes::gib(memory),
            disk: Bytes::gib(disk),
        }
    }

    #[test]
    fn order_of_preferences() {
        let whole = r(4000, 8, 100);
        let asked = r(500, 1, 1);
        let empty = score(whole, r(0, 0, 0), asked, 0, false, false);
        let half = score(whole, r(2000, 4, 50), asked, 0, false, false);
        let lopsided = score(whole, r(3500, 4, 5), asked, 0, false, false);
        assert!(empty > half, "least allocated wins");
        assert!(half > lopsided, "even beats lopsided");
        assert!(
            half > score(whole, r(0, 0, 0), asked, 1, false, true),
            "spread comes first"
        );
        assert!(
            score(whole, r(0, 0, 0), asked, 0, false, true) > empty,
            "image here breaks ties"
        );
    }

    #[test]
    fn absurd_sizes_do_not_overflow() {
        let most = Reservation {
            cpu: Millicores(u32::MAX),
            memory: Bytes(u64::MAX),
            disk: Bytes(u64::MAX),
        };
        assert!(
            score(most, most, most, u32::MAX, true, true)
                < score(most, Reservation::default(), r(1, 1, 1), 0, false, false)
        );
        assert!(score(Reservation::default(), most, most, 0, false, false) <= 0);
    }
}
