//! What to send down a control stream next: the whole desired set first, changes afterwards. Pure.

use berth_common::id::Generation;
use berth_common::protocol::{DesiredSet, DesiredUpdate};

/// Refused by an agent that did not know the form of the update, and so not its generation either.
const NOT_TOLD: Generation = Generation(0);

/// What one connection was sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    sent: Option<DesiredSet>,
    /// Generation that the last update built on; none: it was a whole set.
    base: Option<Generation>,
}

/// What a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The agent lacks what the update built on: the whole set is due.
    Resend,
    /// Nothing that could be sent now would be taken.
    Stuck,
    /// The agent can't take anything for a while; the whole set is due then.
    Later,
    /// It concerns an update that a later one has replaced already.
    Old,
}

impl Outbox {
    /// The update that brings the agent to `set`; none if it was sent before.
    pub(super) fn next(&mut self, set: DesiredSet) -> Option<DesiredUpdate> {
        let update = match &self.sent {
            Some(sent) if sent.generation == set.generation => return None,
            // Generations only grow; a store that was put back to an older state needs a whole set to say so.
            Some(sent) if sent.generation < set.generation => sent.delta_to(&set),
            _ => DesiredUpdate::Full { set: set.clone() },
        };
        self.base = match &update {
            DesiredUpdate::Full { .. } | DesiredUpdate::Unknown => None,
            DesiredUpdate::Delta { base, .. } => Some(*base),
        };
        self.sent = Some(set);
        Some(update)
    }

    /// The agent holds `held` and refused `refused`; `passing`: for a reason that can go away by itself.
    pub(super) fn refused(&mut self, held: Generation, refused: Generation, passing: bool) -> Verdict {
        let Some(sent) = &self.sent else {
            return Verdict::Old;
        };
        if refused == NOT_TOLD && self.base.is_some() {
            self.sent = None;
            return Verdict::Resend;
        }
        if refused != NOT_TOLD && sent.generation != refused {
            return Verdict::Old;
        }
        if passing {
            self.sent = None;
            return Verdict::Later;
        }
        match self.base {
            Some(base) if held != base && held < refused => {
                self.sent = None;
                Verdict::Resend
            }
            _ => Verdict::Stuck,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::id::NodeId;
    use berth_common::protocol::Apply;

    fn set(generation: u64) -> DesiredSet {
        DesiredSet {
            generation: Generation(generation),
            ..DesiredSet::empty(NodeId::from_bytes([1; 10]))
        }
    }

    #[test]
    fn first_everything_then_changes_then_nothing() {
        let mut outbox = Outbox::default();
        let mut held = set(0);
        for generation in [3, 4, 9] {
            let update = outbox.next(set(generation)).unwrap();
            assert_eq!(matches!(update, DesiredUpdate::Full { .. }), generation == 3);
            match held.apply(&update) {
                Apply::New(new) => held = *new,
                other => panic!("{other:?}"),
            }
            assert_eq!(outbox.next(set(generation)), None);
        }
        assert_eq!(held, set(9));
        assert!(matches!(outbox.next(set(2)), Some(DesiredUpdate::Full { .. })));
    }

    #[test]
    fn a_form_the_agent_does_not_know_brings_the_whole_set_once() {
        let mut outbox = Outbox::default();
        outbox.next(set(3));
        outbox.next(set(4));
        // It can't tell which generation the update would have led to.
        assert_eq!(
            outbox.refused(Generation(3), Generation(0), false),
            Verdict::Resend
        );
        assert!(matches!(outbox.next(set(4)), Some(DesiredUpdate::Full { .. })));
        assert_eq!(
            outbox.refused(Generation(3), Generation(0), false),
            Verdict::Stuck
        );
        assert_eq!(
            Outbox::default().refused(Generation(3), Generation(0), false),
            Verdict::Old
        );
    }

    #[test]
    fn a_missing_base_brings_the_whole_set_and_nothing_loops() {
        let mut outbox = Outbox::default();
        outbox.next(set(3));
        assert_eq!(
            outbox.refused(Generation(8), Generation(3), false),
            Verdict::Stuck,
            "the agent holds a newer one (R8)"
        );
        outbox.next(set(4));
        assert_eq!(
            outbox.refused(Generation(3), Generation(4), false),
            Verdict::Stuck,
            "it has the base"
        );
        assert_eq!(outbox.refused(Generation(2), Generation(3), false), Verdict::Old);
        assert_eq!(
            outbox.refused(Generation(2), Generation(4), false),
            Verdict::Resend
        );
        assert!(matches!(outbox.next(set(4)), Some(DesiredUpdate::Full { .. })));
        assert_eq!(
            outbox.refused(Generation(2), Generation(4), false),
            Verdict::Stuck,
            "not twice"
        );
    }

    #[test]
    fn what_can_pass_is_tried_again_with_the_whole_set() {
        let mut outbox = Outbox::default();
        outbox.next(set(3));
        for generation in [4, 5] {
            outbox.next(set(generation));
            // Its disk is full.
            let verdict = outbox.refused(Generation(3), Generation(generation), true);
            assert_eq!(verdict, Verdict::Later);
            assert!(matches!(
                outbox.next(set(generation)),
                Some(DesiredUpdate::Full { .. })
            ));
        }
        assert_eq!(outbox.refused(Generation(3), Generation(4), true), Verdict::Old);
    }
}
