//! Wishes of a brain that is newer than this agent: words it does not know start nothing and stop nothing.

use berth_common::error::ErrorKind;
use berth_common::id::Generation;
use berth_common::model::{Phase, Restart, RunState};
use berth_common::protocol::{Apply, DesiredUpdate};
use berth_common::units::Bytes;

use super::converge::{World, container, id, set};
use super::observe::view;
use super::orders::refusal;
use super::plan::plan;
use super::state::Rest;
use crate::container::runtime::TaskState;

fn runs(world: &World) -> bool {
    let runtime = world
        .observed
        .containers
        .get(&id(1))
        .and_then(|s| s.runtime.as_ref());
    runtime.is_some_and(|r| matches!(r.task, TaskState::Running { .. }))
}

fn shown(world: &World) -> (Phase, String) {
    let unseen = Default::default();
    let seen = world.observed.containers.get(&id(1)).unwrap_or(&unseen);
    let view = view(id(1), world.desired.container(id(1)), seen, None, None, false);
    (view.phase, view.reason.unwrap_or_default())
}

#[test]
fn an_unknown_run_state_starts_nothing() {
    let mut want = container(1);
    want.run = RunState::Unknown;
    let mut world = World::new(set(1, vec![want]));
    world.settle_down();
    assert!(world.started.is_empty());
    let (phase, reason) = shown(&world);
    assert_eq!(phase, Phase::Exited);
    assert!(reason.contains("upgrade the agent"), "{reason}");
    world.desired.containers[0].run = RunState::Running;
    world.settle_down();
    assert!(runs(&world));
}

#[test]
fn an_unknown_run_state_stops_nothing_that_runs() {
    let mut world = World::new(set(1, vec![container(1)]));
    world.settle_down();
    let want = &mut world.desired.containers[0];
    want.run = RunState::Unknown;
    // It could not be started again afterwards.
    want.restarts_asked += 1;
    std::sync::Arc::make_mut(&mut want.spec).command = Some(vec!["other".into()]);
    world.settle_down();
    assert!(runs(&world));
    let (phase, reason) = shown(&world);
    assert_eq!(phase, Phase::Running);
    assert!(reason.contains("upgrade the agent"), "{reason}");
    world.end(id(1), 0);
    world.settle_down();
    assert_eq!(world.started[&id(1)], 1, "started for a state that is not known");
    assert!(plan(&world.desired, &world.observed, world.now).is_empty());
}

#[test]
fn r1_limits_stay_in_force_in_an_unknown_run_state() {
    let mut world = World::new(set(1, vec![container(1)]));
    world.settle_down();
    let want = &mut world.desired.containers[0];
    want.run = RunState::Unknown;
    std::sync::Arc::make_mut(&mut want.spec).limits.memory = Bytes::mib(64);
    world.settle_down();
    assert_eq!(
        world.observed.containers[&id(1)].limits.unwrap().memory,
        Bytes::mib(64)
    );
    world.observed.containers.get_mut(&id(1)).unwrap().disk = Some((1 << 30) + 1);
    world.settle_down();
    assert!(!runs(&world), "its layer is over the limit");
}

#[test]
fn an_unknown_run_state_still_lets_it_be_removed() {
    let mut world = World::new(set(1, vec![container(1)]));
    world.settle_down();
    world.desired.containers[0].run = RunState::Unknown;
    world.settle_down();
    world.desired.containers.clear();
    world.settle_down();
    assert!(world.observed.containers.is_empty());
}

#[test]
fn an_unknown_restart_policy_starts_nothing_again_and_says_so() {
    let mut want = container(1);
    std::sync::Arc::make_mut(&mut want.spec).restart.on = Restart::Unknown;
    let mut world = World::new(set(1, vec![want]));
    world.settle_down();
    assert_eq!(world.started[&id(1)], 1);
    world.end(id(1), 3);
    world.settle_down();
    assert_eq!(world.started[&id(1)], 1);
    assert_eq!(world.observed.containers[&id(1)].memory.rest, Some(Rest::Policy));
    let (phase, reason) = shown(&world);
    assert_eq!(phase, Phase::Exited);
    assert!(
        reason.contains("exited with code 3") && reason.contains("upgrade the agent"),
        "{reason}"
    );
}

#[test]
fn an_unknown_update_is_refused_and_a_full_set_asked_for() {
    let held = set(7, vec![container(1)]);
    let update = DesiredUpdate::Unknown;
    let apply = held.apply(&update);
    assert_eq!(apply, Apply::Unknown);
    let refusal = refusal(&apply, held.generation, &update).unwrap();
    assert_eq!((refusal.held, refusal.refused), (Generation(7), Generation(0)));
    assert_eq!(refusal.problem.kind, ErrorKind::Precondition);
    assert!(refusal.problem.cure.unwrap().contains("full set"));
}

#[test]
fn r3_what_only_says_where_it_is_to_be_makes_nothing_anew() {
    let mut world = World::new(set(1, vec![container(1)]));
    world.settle_down();
    // As after an upgrade: what was kept of the container was written when its pool was not known.
    std::sync::Arc::make_mut(&mut world.desired.containers[0].spec).pool = Some("batch".parse().unwrap());
    world.settle_down();
    assert!(runs(&world) && world.started[&id(1)] == 1, "started again");
}
