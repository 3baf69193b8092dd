//! Tests of the whole state machine: the pure plan against a simulated runtime, in virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::{ContainerId, Generation, NodeId, ServiceId, TenantId};
use berth_common::model::{Health, HealthCheck, HealthState, Restart, RunState, ServiceSpec, UnixMillis};
use berth_common::protocol::{DesiredContainer, DesiredSet, TenantShare};
use berth_common::units::Bytes;
use proptest::prelude::*;

use super::outcome::{Outcome, backoff_ms, on_end_noticed, on_health, settle};
use super::plan::{LEAVE_MS, Step, plan};
use super::state::{Observed, Rest, StopReason};
use crate::container::runtime::{Started, TaskExit, TaskState};

pub(super) const NODE: NodeId = NodeId::from_bytes([7; 10]);

pub(super) fn id(n: u8) -> ContainerId {
    ContainerId::from_bytes([n; 10])
}

pub(super) fn container(n: u8) -> DesiredContainer {
    let spec = ServiceSpec::new("s".parse().unwrap(), "x".parse().unwrap());
    DesiredContainer {
        id: id(n),
        tenant: TenantId::from_bytes([n % 2; 10]),
        tenant_name: "t".parse().unwrap(),
        service: ServiceId::from_bytes([1; 10]),
        service_name: "s".parse().unwrap(),
        replica: 1,
        spec: spec.container_spec().unwrap().into(),
        run: RunState::Running,
        restarts_asked: 0,
        endpoints: vec![],
        volumes: vec![],
    }
}

pub(super) fn set(generation: u64, containers: Vec<DesiredContainer>) -> DesiredSet {
    let tenants: BTreeMap<_, _> = containers
        .iter()
        .map(|c| (c.tenant, c.tenant_name.clone()))
        .collect();
    DesiredSet {
        node: NODE,
        generation: Generation(generation),
        tenants: tenants
            .into_iter()
            .map(|(tenant, name)| TenantShare {
                tenant,
                name,
                cpu_weight: 100,
                credentials: vec![],
            })
            .collect(),
        containers,
        volumes: vec![],
    }
}

/// Plays plan and outcomes against perfect or failing effects, in virtual time.
pub(super) struct World {
    pub(super) desired: DesiredSet,
    pub(super) observed: Observed,
    pub(super) now: UnixMillis,
    pub(super) started: BTreeMap<ContainerId, u32>,
}

impl World {
    pub(super) fn new(desired: DesiredSet) -> Self {
        let observed = Observed {
            listed: true,
            ..Observed::default()
        };
        Self {
            desired,
            observed,
            now: UnixMillis(1_000_000),
            started: BTreeMap::new(),
        }
    }

    /// One round; `fails` decides for each step. Returns whether there was anything to do.
    pub(super) fn round(&mut self, fails: &mut dyn FnMut(&Step) -> bool) -> bool {
        let steps = plan(&self.desired, &self.observed, self.now);
        let any = !steps.is_empty();
        for step in steps {
            self.carry_out(&step, fails(&step));
        }
        any
    }

    fn carry_out(&mut self, step: &Step, fail: bool) {
        let now = self.now;
        match step {
            Step::EnsureTenant { tenant, cpu_weight } => {
                self.observed.tenants.insert(*tenant, Some(*cpu_weight));
                return;
            }
            Step::RemoveTenant { tenant } => {
                assert!(
                    !self
                        .observed
                        .containers
                        .values()
                        .any(|s| s.runtime.as_ref().is_some_and(|r| r.meta.tenant == *tenant)),
                    "a tenant goes after its last container"
                );
                self.observed.tenants.remove(tenant);
                return;
            }
            Step::Forget { id } => {
                self.observed.containers.remove(id);
                return;
            }
            _ => {}
        }
        let id = step.container().unwrap();
        let seen = self.observed.containers.entry(id).or_default();
        let outcome = if fail {
            Outcome::Failed {
                message: "injected".into(),
                retryable: true,
                relist: false,
            }
        } else {
            match step {
                Step::Pull { reference, .. } => Outcome::Image(Arc::new(crate::image::ImageInfo {
                    reference: reference.clone(),
                    manifest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
                    chain_id: "c".into(),
                    chain_ids: vec!["c".into()],
                    config: oci_spec::image::ImageConfiguration::default(),
                })),
                Step::Start { .. } => {
                    let task = &seen.runtime.as_ref().expect("made before started").task;
                    assert!(!matches!(task, TaskState::Running { .. }), "never two starts");
                    assert!(
                        self.observed
                            .tenants
                            .contains_key(&seen.runtime.as_ref().unwrap().meta.tenant)
                    );
                    *self.started.entry(id).or_default() += 1;
                    Outcome::Started(Started { pid: 42, at: now })
                }
                Step::Collect { .. } => match seen.runtime.as_ref().map(|r| &r.task) {
                    Some(TaskState::Stopped(exit)) => Outcome::Exit(Some(*exit)),
                    _ => Outcome::Exit(None),
                },
                Step::ReadLimits { .. } => Outcome::Limits(seen.runtime.as_ref().unwrap().spec.limits),
                _ => Outcome::Done,
            }
        };
        let succeeded = !fail;
        settle(seen, step, outcome, self.desired.container(id), now);
        if fail {
            // What is seen here is all there is: the list that a doubt asks for would say the same.
            seen.doubtful = false;
        }
        if succeeded && matches!(step, Step::Stop { .. } | Step::Kill { .. }) {
            self.end(id, 143);
        }
    }

    pub(super) fn end(&mut self, id: ContainerId, code: i32) {
        let Some(seen) = self.observed.containers.get_mut(&id) else {
            return;
        };
        let Some(runtime) = &mut seen.runtime else { return };
        if matches!(runtime.task, TaskState::Running { .. } | TaskState::Created) {
            runtime.task = TaskState::Stopped(TaskExit {
                code,
                at: self.now,
                oom_kills: Some(0),
                begun: matches!(runtime.task, TaskState::Running { .. }),
            });
            on_end_noticed(seen);
        }
    }

    /// Until nothing is left to do, letting time pass over back-offs.
    pub(super) fn settle_down(&mut self) {
        for _ in 0..400 {
            if !self.round(&mut |_| false) {
                self.now.0 += 120_000;
                if !self.round(&mut |_| false) {
                    return;
                }
            }
        }
        panic!(
            "does not converge: {:?}",
            plan(&self.desired, &self.observed, self.now)
        );
    }

    pub(super) fn assert_converged(&self) {
        assert!(
            plan(&self.desired, &self.observed, self.now).is_empty(),
            "a converged plan is empty"
        );
        for want in &self.desired.containers {
            let seen = self.observed.containers.get(&want.id);
            let running = seen.and_then(|s| s.runtime.as_ref()).is_some_and(|r| {
                let running = matches!(r.task, TaskState::Running { .. });
                // One that rests is changed when it is started next.
                assert!(!running || r.spec == *want.spec);
                running
            });
            let rests = seen.is_some_and(|s| s.memory.rest == Some(Rest::Policy));
            assert_eq!(
                running,
                want.run == RunState::Running && !rests,
                "{want:?} {seen:?}"
            );
        }
        for (id, seen) in &self.observed.containers {
            assert!(self.desired.container(*id).is_some() || seen.runtime.is_none());
        }
    }
}

#[test]
fn nothing_happens_before_the_first_list() {
    let world = World::new(set(1, vec![container(1)]));
    let observed = Observed::default();
    assert!(plan(&world.desired, &observed, world.now).is_empty());
}

#[test]
fn r1_parents_come_before_containers_and_limits_are_read_back() {
    let mut world = World::new(set(1, vec![container(1)]));
    world.settle_down();
    world.assert_converged();
    let seen = &world.observed.containers[&id(1)];
    assert_eq!(seen.limits, Some(world.desired.containers[0].spec.limits));
    assert_eq!(world.started[&id(1)], 1);
}

#[test]
fn back_off_doubles_and_resets_after_a_good_run() {
    let mut world = World::new(set(1, vec![container(1)]));
    let delays: Vec<u64> = [100, 100, 100, 20_000, 100]
        .into_iter()
        .map(|ran_ms| {
            while world.round(&mut |_| false) {}
            while !matches!(
                world.observed.containers[&id(1)].runtime.as_ref().unwrap().task,
                TaskState::Running { .. }
            ) {
                world.now.0 += 500;
                world.round(&mut |_| false);
            }
            world.now.0 += ran_ms;
            world.end(id(1), 1);
            world.round(&mut |_| false);
            let memory = &world.observed.containers[&id(1)].memory;
            memory.not_before.unwrap().since(world.now)
        })
        .collect();
    assert_eq!(delays, [1_000, 2_000, 4_000, 1_000, 2_000]);
    assert_eq!(backoff_ms(64, 1_000, 60_000), 60_000);
}

#[test]
fn restart_policies_are_kept() {
    for (on, code, max, again) in [
        (Restart::Always, 0, None, true),
        (Restart::OnFailure, 0, None, false),
        (Restart::OnFailure, 3, None, true),
        (Restart::Never, 3, None, false),
        (Restart::Always, 3, Some(0), false),
    ] {
        let mut want = container(1);
        std::sync::Arc::make_mut(&mut want.spec).restart.on = on;
        std::sync::Arc::make_mut(&mut want.spec).restart.max_restarts = max;
        let mut world = World::new(set(1, vec![want]));
        world.settle_down();
        world.end(id(1), code);
        world.settle_down();
        world.assert_converged();
        assert_eq!(world.started[&id(1)], 1 + u32::from(again), "{on:?} {code}");
        let memory = &world.observed.containers[&id(1)].memory;
        assert_eq!(memory.restarts, u32::from(again));
        assert_eq!(
            memory.last_exit.as_ref().unwrap().reason,
            format!("exited with code {code}")
        );
    }
}

#[test]
fn a_restart_is_done_once_and_is_no_crash() {
    let mut world = World::new(set(1, vec![container(1)]));
    world.settle_down();
    world.desired.containers[0].restarts_asked = 5;
    world.settle_down();
    world.assert_converged();
    assert_eq!(world.started[&id(1)], 2);
    let memory = &world.observed.containers[&id(1)].memory;
    assert_eq!((memory.restarts_done, memory.restarts), (5, 0));
}

#[test]
fn limits_change_live_and_other_changes_recreate() {
    let mut world = World::new(set(1, vec![container(1)]));
    world.settle_down();
    std::sync::Arc::make_mut(&mut world.desired.containers[0].spec)
        .limits
        .memory = Bytes::mib(64);
    world.settle_down();
    world.assert_converged();
    assert_eq!(world.started[&id(1)], 1, "no restart");
    std::sync::Arc::make_mut(&mut world.desired.containers[0].spec).command = Some(vec!["other".into()]);
    world.settle_down();
    world.assert_converged();
    assert_eq!(world.started[&id(1)], 2);
}

#[test]
fn a_deaf_process_is_killed_after_its_grace() {
    let mut world = World::new(set(1, vec![container(1)]));
    world.settle_down();
    world.desired.containers[0].run = RunState::Stopped;
    let steps = plan(&world.desired, &world.observed, world.now);
    let Step::Stop {
        reason: StopReason::Asked,
        deadline,
        ..
    } = steps[0]
    else {
        panic!("{steps:?}")
    };
    assert_eq!(deadline.since(world.now), LEAVE_MS + 10_000);
    let seen = world.observed.containers.get_mut(&id(1)).unwrap();
    settle(seen, &steps[0], Outcome::Done, None, world.now);
    assert!(plan(&world.desired, &world.observed, UnixMillis(deadline.0 - 1)).is_empty());
    assert_eq!(
        plan(&world.desired, &world.observed, deadline),
        [Step::Kill { id: id(1) }]
    );
    world.now = deadline;
    world.settle_down();
    let reason = &world.observed.containers[&id(1)]
        .memory
        .last_exit
        .as_ref()
        .unwrap()
        .reason;
    assert_eq!(reason, "killed by SIGKILL after 10s of grace");
}

#[test]
fn what_is_unhealthy_is_stopped_only_where_that_starts_it_again() {
    for (on, restart, again) in [
        (Restart::Always, true, true),
        (Restart::OnFailure, true, true),
        (Restart::Never, true, false),
        (Restart::Always, false, false),
    ] {
        let mut want = container(1);
        std::sync::Arc::make_mut(&mut want.spec).restart.on = on;
        std::sync::Arc::make_mut(&mut want.spec).health = Some(HealthCheck {
            tcp: Some(80),
            restart,
            ..HealthCheck::default()
        });
        let mut world = World::new(set(1, vec![want]));
        world.settle_down();
        let seen = world.observed.containers.get_mut(&id(1)).unwrap();
        let ill = Health {
            state: HealthState::Unhealthy,
            output: Some("it hangs".into()),
            ..Health::starting(world.now)
        };
        on_health(seen, id(1), ill);
        world.settle_down();
        let memory = &world.observed.containers[&id(1)].memory;
        assert_eq!(world.started[&id(1)], 1 + u32::from(again), "{on:?} {restart}");
        let end = memory.last_exit.as_ref().map(|exit| exit.reason.as_str());
        assert_eq!(end, again.then_some("unhealthy: it hangs"), "{on:?} {restart}");
        let health = memory.health.as_ref().unwrap().state;
        assert_eq!(health == HealthState::Starting, again, "{on:?} {restart}");
    }
}

#[test]
fn a_full_layer_stops_the_container_until_its_limit_is_raised() {
    let mut world = World::new(set(1, vec![container(1)]));
    world.settle_down();
    world.observed.containers.get_mut(&id(1)).unwrap().disk = Some((1 << 30) + 1);
    world.settle_down();
    let memory = &world.observed.containers[&id(1)].memory;
    assert_eq!(
        memory.last_exit.as_ref().unwrap().reason,
        "disk limit 1GiB exceeded"
    );
    assert_eq!(world.started[&id(1)], 1);
    std::sync::Arc::make_mut(&mut world.desired.containers[0].spec)
        .limits
        .disk = Bytes::gib(2);
    world.settle_down();
    assert_eq!(world.started[&id(1)], 2);
}

#[test]
fn r3_after_a_reboot_everything_starts_again_without_a_brain() {
    let mut world = World::new(set(1, vec![container(1), container(2)]));
    world.settle_down();
    for seen in world.observed.containers.values_mut() {
        seen.runtime.as_mut().unwrap().task = TaskState::None;
    }
    world.settle_down();
    world.assert_converged();
    assert_eq!(world.started, BTreeMap::from([(id(1), 2), (id(2), 2)]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any sequence of changed wishes, crashes and failing steps: never two starts (asserted inside), and once the
    /// faults end, everything is as desired and the plan is empty.
    #[test]
    fn converges_under_faults(
        changes in proptest::collection::vec((0u8..7, 1u8..5, any::<u64>()), 1..30),
    ) {
        let mut world = World::new(set(1, vec![container(1), container(2)]));
        for (change, n, seed) in changes {
            let at = world.desired.containers.iter().position(|c| c.id == id(n));
            match (change, at) {
                (0, None) => world.desired.containers.push(container(n)),
                (0 | 1, Some(at)) => drop(world.desired.containers.remove(at)),
                (2, Some(at)) => world.desired.containers[at].run = RunState::Stopped,
                (3, Some(at)) => world.desired.containers[at].run = RunState::Running,
                (4, Some(at)) => world.desired.containers[at].restarts_asked += 1,
                (5, Some(at)) => std::sync::Arc::make_mut(&mut world.desired.containers[at].spec).limits.pids = 100 + u32::from(n),
                (6, _) => world.end(id(n), (seed % 3) as i32),
                _ => {}
            }
            let generation = world.desired.generation.0 + 1;
            let mut containers = world.desired.containers.clone();
            containers.sort_by_key(|c| c.id);
            world.desired = set(generation, containers);
            let mut bits = seed;
            for _ in 0..seed % 5 {
                world.round(&mut |_| { bits = bits.rotate_right(1); bits & 1 == 1 });
                world.now.0 += seed % 3_000;
            }
        }
        world.settle_down();
        world.assert_converged();
    }
}
