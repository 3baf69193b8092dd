//! Rollouts: the one step that a slot may take (update, leave a draining node, replace what a lost node holds), and when a
//! replacement has proven itself.

use berth_common::id::{Name, NodeId};
use berth_common::model::{ContainerRecord, Moves, Reservation, RunState};

use super::context::{complete, label};
use super::decisions::{Decision, Reason};
use super::seating::New;
use super::services::{Live, Pass};
use crate::cluster::Change;
use crate::scheduler::rebalance::Budget;

/// Replacements of one service that are under way.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// How many have not proven themselves.
    pub unsettled: u32,
    /// One of them fails, so no further one is begun.
    pub failing: bool,
}

/// Longest wait between looks at a replacement whose node is silent, milliseconds.
const LOOK_AGAIN_MS: u64 = 1_000;

/// Delay before a rollout that found no room looks again, milliseconds.
const STALLED_MS: u64 = 5_000;

/// The room that is kept for a container where it is to move to.
fn kept_for(one: &Live) -> Reservation {
    one.original
        .as_ref()
        .map_or(&one.record, |old| old)
        .spec
        .reservation
}

impl Pass<'_, '_, '_> {
    /// Replaces a container of a lost node, if there is an elsewhere; if not, it may still come back with its node.
    pub fn rescue(&mut self, current: Live) {
        match self.place(None) {
            Ok(node) => {
                let text = format!(
                    "its node {} is lost; replaced on {}",
                    self.node_name(&current),
                    self.cx.node_name(node)
                );
                self.cx.container_event("moved", &current.record, text);
                self.cx.plan.decisions.add(Decision::Moved(Reason::NodeLost));
                let (replica, run) = (current.record.replica, current.record.run);
                let endpoints = self.remove_for_successor(current);
                self.add(New {
                    replica,
                    node: Some(node),
                    run,
                    endpoints,
                    ..New::default()
                });
            }
            Err(refusal) => {
                if let Some(eviction) = self.find_room() {
                    let text = format!(
                        "its node {} is lost; room is made for it on {}",
                        self.node_name(&current),
                        self.cx.node_name(eviction.node)
                    );
                    self.cx.container_event("moved", &current.record, text);
                    self.cx.plan.decisions.add(Decision::Moved(Reason::NodeLost));
                    let (replica, run) = (current.record.replica, current.record.run);
                    let endpoints = self.remove_for_successor(current);
                    return self.add(New {
                        replica,
                        run,
                        endpoints,
                        eviction: Some(eviction),
                        ..New::default()
                    });
                }
                let turned = |node| self.cx.turned.contains_key(&node);
                if current.record.node.is_some_and(turned) && !refusal.is_asking() {
                    let text = format!(
                        "its node {} is lost and there is no elsewhere: {refusal}",
                        self.node_name(&current)
                    );
                    self.cx.container_event("no-elsewhere", &current.record, text);
                }
                self.keep(current);
            }
        }
    }

    /// One step of a rolling update.
    pub fn update(&mut self, current: Live, flight: &mut Flight) {
        let replica = current.record.replica;
        let old = current.record.id;
        let policy = self.service.spec.update;
        let stop_first = !self.service.spec.starts_first();
        if self.idle(&current) {
            // Nothing serves here, so nothing is lost by going ahead at once.
            self.remove(current);
            self.create(replica, Some(old), !stop_first);
            flight.unsettled += 1;
            return;
        }
        if flight.failing || flight.unsettled >= policy.parallel {
            return self.keep(current);
        }
        if self.heard().is_err() {
            return self.keep(current);
        }
        if !stop_first && let Ok(node) = self.place(current.record.node) {
            let text = format!(
                "{old} gets a successor of generation {} on {}",
                self.service.generation,
                self.cx.node_name(node)
            );
            self.cx.container_event("rollout", &current.record, text);
            self.keep(current);
            self.add(New {
                replica,
                replaces: Some(old),
                node: Some(node),
                run: self.service.run,
                ..New::default()
            });
            flight.unsettled += 1;
            return;
        }
        if !self.room_after(&current) {
            let again = self.cx.input.now.mono_ms + STALLED_MS;
            self.cx.recheck(self.service.id, again);
            return self.keep(current);
        }
        let text = format!(
            "{old} stops, then its successor of generation {} starts",
            self.service.generation
        );
        self.cx.container_event("rollout", &current.record, text);
        let waiting = format!(
            "waits until {} on {} has stopped, which it replaces",
            label(&current.record),
            self.node_name(&current)
        );
        let endpoints = self.remove_for_successor(current);
        self.add(New {
            replica,
            replaces: Some(old),
            waiting: Some(waiting),
            run: self.service.run,
            endpoints,
            ..New::default()
        });
        flight.unsettled += 1;
    }

    /// Moves a container off a node that it must leave: one at a time, the new one first.
    pub fn evacuate(&mut self, mut current: Live, flight: &mut Flight) {
        let idle = self.idle(&current);
        let busy = !idle && (flight.failing || flight.unsettled > 0);
        let chosen = current.record.moves.as_ref().map(|moves| moves.to);
        let emptying = current.record.moves.as_ref().is_some_and(|moves| moves.emptying);
        if emptying && (busy || self.cx.leaving_from(current.record.node) >= Budget::default().a_node) {
            // Its turn comes, and its room is kept.
            return self.keep(current);
        }
        if !busy && self.heard().is_err() {
            return self.keep(current);
        }
        if let Some(to) = chosen {
            self.cx.view().unclaim(to, kept_for(&current));
        }
        let node = match chosen {
            _ if busy => None,
            Some(to) => self.take(to).then_some(to),
            None => self.place(current.record.node).ok(),
        };
        let node = match node {
            None if emptying => {
                self.give_up(
                    &mut current,
                    "it no longer fits there; another place is looked for",
                );
                self.place(current.record.node).ok()
            }
            node => node,
        };
        let Some(node) = node else {
            // What was decided for the load of a moment is not kept for another.
            if chosen.is_some() && !emptying {
                self.give_up(
                    &mut current,
                    "it no longer fits there, or others of its service are being replaced",
                );
            }
            return self.keep(current);
        };
        let text = format!(
            "moves from {} to {}: {}",
            self.node_name(&current),
            self.cx.node_name(node),
            self.why_leave(&current)
        );
        self.cx.container_event("moved", &current.record, text);
        self.cx.plan.decisions.add(Decision::Moved(self.reason(&current)));
        let (replica, old, run) = (current.record.replica, current.record.id, current.record.run);
        self.cx.departs(current.record.node);
        let endpoints = if idle {
            self.remove_for_successor(current)
        } else {
            self.keep(current);
            Vec::new()
        };
        self.add(New {
            replica,
            replaces: Some(old),
            node: Some(node),
            run,
            endpoints,
            ..New::default()
        });
        flight.unsettled += 1;
    }

    /// Stops a container, one of whose volumes moves, or has moved, to another node; its successor waits for it.
    pub fn follow(&mut self, current: Live, volume: &Name, to: NodeId) {
        let waiting = format!("its volume {volume} moves to {}", self.cx.node_name(to));
        let text = format!("stops on {}: {waiting}", self.node_name(&current));
        self.cx.container_event("moved", &current.record, text);
        self.cx.plan.decisions.add(Decision::Moved(Reason::Volume));
        let (replica, old, run) = (current.record.replica, current.record.id, current.record.run);
        self.cx.departs(current.record.node);
        let endpoints = self.remove_for_successor(current);
        self.add(New {
            replica,
            replaces: Some(old),
            waiting: Some(waiting),
            run,
            endpoints,
            ..New::default()
        });
    }

    /// Forgets a move that was not begun, and the room that was kept for it.
    pub fn forget_move(&mut self, current: &mut Live) -> Option<Moves> {
        let moves = current.record.moves.take()?;
        self.cx.view().unclaim(moves.to, kept_for(current));
        Some(moves)
    }

    /// Gives up a move that was decided for the sake of load.
    pub fn give_up(&mut self, current: &mut Live, why: &str) {
        if let Some(moves) = current.record.moves.take() {
            let text = format!("does not move to {}: {why}", self.cx.node_name(moves.to));
            self.cx.container_event("stays", &current.record, text);
        }
    }

    /// Whether a replacement has run long enough to count: `settle_ms`, or, if it has fallen over before, as long as
    /// its restart policy calls a good run. Notes the start of a run that is seen for the first time.
    pub fn settled(&mut self, container: &ContainerRecord) -> bool {
        let seen = self.seen(container);
        if container.run == RunState::Stopped || complete(container, seen) {
            return true;
        }
        let (Some(node), Some(seen)) = (container.node, seen) else {
            return false;
        };
        // With a health check it counts from when it is healthy.
        if !seen.serves() {
            return false;
        }
        let now = self.cx.input.now.mono_ms;
        let mut need = u64::from(self.service.spec.update.settle_ms);
        if seen.restarts > 0 {
            need = need.max(u64::from(container.spec.restart.reset_after_ms));
        }
        if !self.cx.current(node) {
            self.cx.recheck(self.service.id, now + LOOK_AGAIN_MS);
            return false;
        }
        let since = match self.cx.state.running_since.get(&container.id) {
            Some(since) => *since,
            None => {
                if need > 0 {
                    self.cx.plan.changes.push(Change::RunningSince(container.id, now));
                }
                now
            }
        };
        let due = since.saturating_add(need);
        if now < due {
            self.cx.recheck(self.service.id, due);
        }
        now >= due
    }
}
