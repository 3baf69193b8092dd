//! Starts that the runtime's own death cut off: what never ran is no run, whatever the restart policy says.

use berth_common::model::{Restart, UnixMillis};

use super::converge::{World, container, id, set};
use super::observe::merge;
use super::plan::Step;
use super::state::Rest;
use crate::container::runtime::{RuntimeContainer, TaskExit, TaskState};

/// A world whose first start failed with the runtime; the list afterwards shows how its process ended.
fn cut_off(on: Restart, max_restarts: Option<u32>, exit: impl FnOnce(UnixMillis) -> TaskExit) -> World {
    let mut want = container(1);
    std::sync::Arc::make_mut(&mut want.spec).restart.on = on;
    std::sync::Arc::make_mut(&mut want.spec).restart.max_restarts = max_restarts;
    let mut world = World::new(set(1, vec![want]));
    while world.round(&mut |step| matches!(step, Step::Start { .. })) {}
    assert!(world.started.is_empty());
    list_stopped(&mut world, exit);
    world
}

fn list_stopped(world: &mut World, exit: impl FnOnce(UnixMillis) -> TaskExit) {
    let runtime = world.observed.containers[&id(1)].runtime.clone().unwrap();
    let task = TaskState::Stopped(exit(world.now));
    merge(
        &mut world.observed,
        vec![RuntimeContainer { task, ..runtime }],
        |_| false,
    );
}

fn starts(world: &World) -> u32 {
    world.started.get(&id(1)).copied().unwrap_or(0)
}

const fn killed(at: UnixMillis) -> TaskExit {
    TaskExit {
        code: 137,
        at,
        oom_kills: Some(0),
        begun: false,
    }
}

#[test]
fn a_start_that_was_cut_off_is_made_again_by_every_policy() {
    for (on, max) in [
        (Restart::Never, None),
        (Restart::OnFailure, Some(0)),
        (Restart::Always, Some(0)),
        (Restart::Unknown, None),
    ] {
        let mut world = cut_off(on, max, killed);
        world.settle_down();
        world.assert_converged();
        assert_eq!(starts(&world), 1, "{on:?}");
        let memory = &world.observed.containers[&id(1)].memory;
        assert_eq!(
            (memory.restarts, memory.ends_in_a_row, memory.rest),
            (0, 0, None),
            "{on:?}"
        );
        assert_eq!(memory.last_exit, None, "it never ran: {on:?}");
        // The run that follows counts as ever.
        world.end(id(1), 3);
        world.settle_down();
        let memory = &world.observed.containers[&id(1)].memory;
        assert_eq!((starts(&world), memory.rest), (1, Some(Rest::Policy)), "{on:?}");
        assert_eq!(memory.last_exit.as_ref().unwrap().code, 3);
    }
}

#[test]
fn cut_off_starts_are_told_and_not_hammered() {
    let mut world = cut_off(Restart::Never, None, killed);
    let mut notices = 0;
    for _ in 0..3 {
        while world.round(&mut |step| matches!(step, Step::Start { .. })) {}
        let memory = &world.observed.containers[&id(1)].memory;
        assert!(memory.failure.as_ref().unwrap().contains("cut off"), "{memory:?}");
        assert!(memory.not_before.unwrap() > world.now, "at once again");
        notices += 1;
        world.now.0 += 60_000;
        list_stopped(&mut world, killed);
    }
    assert_eq!((notices, starts(&world)), (3, 0));
}

#[test]
fn an_end_that_only_a_running_program_can_have_counts_as_a_run() {
    let exits: [fn(UnixMillis) -> TaskExit; 4] = [
        // It ended by itself before anybody saw it run.
        |at| TaskExit {
            code: 0,
            ..killed(at)
        },
        |at| TaskExit {
            code: 3,
            ..killed(at)
        },
        |at| TaskExit {
            oom_kills: Some(1),
            ..killed(at)
        },
        |at| TaskExit {
            begun: true,
            ..killed(at)
        },
    ];
    for exit in exits {
        let mut world = cut_off(Restart::Never, None, exit);
        world.settle_down();
        let memory = &world.observed.containers[&id(1)].memory;
        assert_eq!(
            (starts(&world), memory.rest),
            (0, Some(Rest::Policy)),
            "{memory:?}"
        );
        assert!(memory.last_exit.is_some());
    }
}

#[test]
fn a_run_that_was_seen_counts_although_its_note_was_lost() {
    // Seen by the start's own answer, and by a list after the answer was lost.
    for by_list in [false, true] {
        let mut want = container(1);
        std::sync::Arc::make_mut(&mut want.spec).restart.on = Restart::Never;
        let mut world = World::new(set(1, vec![want]));
        if by_list {
            while world.round(&mut |step| matches!(step, Step::Start { .. })) {}
            let runtime = world.observed.containers[&id(1)].runtime.clone().unwrap();
            let task = TaskState::Running {
                pid: 9,
                started_at: None,
            };
            merge(
                &mut world.observed,
                vec![RuntimeContainer { task, ..runtime }],
                |_| false,
            );
        }
        world.settle_down();
        let before = starts(&world);
        // A crash of the agent loses all but what it remembers on disk.
        let memory = world.observed.containers[&id(1)].memory.clone();
        let text = serde_json::to_string(&memory).unwrap();
        world.observed.containers.get_mut(&id(1)).unwrap().memory = serde_json::from_str(&text).unwrap();
        list_stopped(&mut world, killed);
        world.settle_down();
        let memory = &world.observed.containers[&id(1)].memory;
        assert_eq!(
            (starts(&world), memory.rest),
            (before, Some(Rest::Policy)),
            "by list: {by_list}"
        );
        assert_eq!(memory.last_exit.as_ref().unwrap().reason, "killed by SIGKILL");
    }
}

#[test]
fn stopping_what_never_ran_tells_of_no_end() {
    let mut world = cut_off(Restart::Never, None, killed);
    world.desired.containers[0].run = berth_common::model::RunState::Stopped;
    world.settle_down();
    let memory = &world.observed.containers[&id(1)].memory;
    assert_eq!((&memory.last_exit, memory.rest, starts(&world)), (&None, None, 0));
    world.desired.containers[0].run = berth_common::model::RunState::Running;
    world.settle_down();
    assert_eq!(starts(&world), 1);
}
