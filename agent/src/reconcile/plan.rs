//! What happens next. Pure: no clock, no I/O, no randomness; `now` is an input and every step carries its parameters.
//!
//! One transition at a time for each container, so that a crash at any point leaves a state from which the next plan
//! goes on. Removal comes before addition. A container whose step is under way gets none, and nothing is planned before
//! the runtime was listed once: so nothing is ever started twice (R3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{
    ContainerSpec, Health, ImageRef, RegistryCredential, Restart, RunState, UnixMillis,
};
use berth_common::protocol::{DesiredContainer, DesiredSet};

use super::state::{Observed, Rest, Seen, StopReason};
use crate::container::runtime::{ContainerMeta, TaskState};
use crate::image::ImageInfo;

/// How long after a SIGKILL another is sent, milliseconds: a process in the kernel can't die at once.
pub const KILL_AGAIN_MS: u64 = 5_000;

/// How long a container on a network goes on after it is known that it is to stop, milliseconds: in that time everybody who sends
/// it requests hears that others are to have them. A change of names takes a commit of the brain, one message and a table of every
/// container on the network: 0.1 to 0.2 s on four hosts (`scripts/bench network`).
pub const LEAVE_MS: u64 = 1_000;

/// One transition.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Make a tenant's cgroup with its share.
    EnsureTenant {
        /// Whose.
        tenant: TenantId,
        /// Its CPU weight.
        cpu_weight: u16,
    },
    /// Remove a tenant's cgroup.
    RemoveTenant {
        /// Whose.
        tenant: TenantId,
    },
    /// Look the image up and fetch it if it isn't here.
    Pull {
        /// For which container.
        id: ContainerId,
        /// For which tenant.
        tenant: TenantId,
        /// What.
        reference: ImageRef,
        /// With which credential.
        credential: Option<RegistryCredential>,
    },
    /// Make the container.
    Create {
        /// Who it is.
        meta: ContainerMeta,
        /// What it is made from.
        spec: Box<ContainerSpec>,
        /// Its image.
        image: Arc<ImageInfo>,
    },
    /// Start its process.
    Start {
        /// Which.
        id: ContainerId,
        /// It ended before and is started again by policy.
        again: bool,
        /// Restarts asked for that this start fulfils.
        restarts_done: u32,
    },
    /// Let it leave those that send it requests, then send the stop signal.
    Stop {
        /// Which.
        id: ContainerId,
        /// Why.
        reason: StopReason,
        /// Time between the two, milliseconds.
        leave_ms: u64,
        /// When SIGKILL is due.
        deadline: UnixMillis,
    },
    /// Send SIGKILL to all its processes.
    Kill {
        /// Which.
        id: ContainerId,
    },
    /// Learn how it ended and forget the task.
    Collect {
        /// Which.
        id: ContainerId,
    },
    /// Change limits of a container, and the rest of its spec that needs no restart.
    Update {
        /// Which.
        id: ContainerId,
        /// The spec from now on.
        spec: Box<ContainerSpec>,
    },
    /// Read the limits in force.
    ReadLimits {
        /// Which.
        id: ContainerId,
    },
    /// Delete what is left of it.
    Delete {
        /// Which.
        id: ContainerId,
        /// Whose.
        tenant: TenantId,
    },
    /// Nothing is left of it and it is not desired: drop what was remembered.
    Forget {
        /// Which.
        id: ContainerId,
    },
}

impl Step {
    /// The container it is for; none for tenants' steps.
    pub const fn container(&self) -> Option<ContainerId> {
        match self {
            Self::EnsureTenant { .. } | Self::RemoveTenant { .. } => None,
            Self::Create { meta, .. } => Some(meta.id),
            Self::Pull { id, .. }
            | Self::Start { id, .. }
            | Self::Stop { id, .. }
            | Self::Kill { id }
            | Self::Collect { id }
            | Self::Update { id, .. }
            | Self::ReadLimits { id }
            | Self::Delete { id, .. }
            | Self::Forget { id } => Some(*id),
        }
    }

    /// Its name, for the log: the step itself may carry secrets.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::EnsureTenant { .. } => "ensure-tenant",
            Self::RemoveTenant { .. } => "remove-tenant",
            Self::Pull { .. } => "pull",
            Self::Create { .. } => "create",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Kill { .. } => "kill",
            Self::Collect { .. } => "collect",
            Self::Update { .. } => "update",
            Self::ReadLimits { .. } => "read-limits",
            Self::Delete { .. } => "delete",
            Self::Forget { .. } => "forget",
        }
    }

    /// The order among steps planned together: removal first.
    const fn rank(&self) -> u8 {
        match self {
            Self::Stop { .. } | Self::Kill { .. } | Self::Collect { .. } => 0,
            Self::Delete { .. } | Self::Forget { .. } => 1,
            Self::RemoveTenant { .. } => 2,
            Self::EnsureTenant { .. } => 3,
            Self::Update { .. } => 4,
            Self::Pull { .. } | Self::Create { .. } | Self::Start { .. } => 5,
            Self::ReadLimits { .. } => 6,
        }
    }
}

/// What to do with one container.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// This now.
    Do(Step),
    /// Nothing before that time.
    Wait(UnixMillis),
    /// Nothing until something changes.
    Rest,
}

/// Every step that can be taken now. Empty for a converged host.
pub fn plan(desired: &DesiredSet, observed: &Observed, now: UnixMillis) -> Vec<Step> {
    let wanted = desired.containers.iter().map(|c| c.id);
    let mut ids: Vec<_> = wanted.chain(observed.containers.keys().copied()).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut steps = plan_tenants(desired, observed);
    steps.extend(plan_containers(desired, observed, ids, now).0);
    steps.sort_by_key(Step::rank);
    steps
}

/// Steps for some containers, and when to look again at those that wait.
pub fn plan_containers(
    desired: &DesiredSet,
    observed: &Observed,
    ids: impl IntoIterator<Item = ContainerId>,
    now: UnixMillis,
) -> (Vec<Step>, Vec<(UnixMillis, ContainerId)>) {
    let (mut steps, mut waits) = (Vec::new(), Vec::new());
    for id in ids {
        match decide(desired, observed, id, now) {
            Decision::Do(step) => steps.push(step),
            Decision::Wait(at) => waits.push((at, id)),
            Decision::Rest => {}
        }
    }
    steps.sort_by_key(Step::rank);
    (steps, waits)
}

/// Tenants' cgroups to make, change or remove.
pub fn plan_tenants(desired: &DesiredSet, observed: &Observed) -> Vec<Step> {
    if !observed.listed {
        return Vec::new();
    }
    // A container whose tenant the brain forgot to list still gets a parent.
    let mut wanted: BTreeMap<TenantId, u16> = desired.containers.iter().map(|c| (c.tenant, 100)).collect();
    wanted.extend(desired.tenants.iter().map(|t| (t.tenant, t.cpu_weight)));
    let used: BTreeSet<TenantId> = observed
        .containers
        .values()
        .filter_map(|seen| seen.runtime.as_ref())
        .map(|runtime| runtime.meta.tenant)
        .collect();
    let idle = |tenant: &TenantId| !observed.busy_tenants.contains(tenant);
    let gone = observed
        .tenants
        .keys()
        .filter(|t| !wanted.contains_key(t) && !used.contains(t) && idle(t))
        .map(|tenant| Step::RemoveTenant { tenant: *tenant });
    let made = wanted
        .iter()
        .filter(|(t, weight)| observed.tenants.get(t) != Some(&Some(**weight)) && idle(t))
        .map(|(tenant, cpu_weight)| Step::EnsureTenant {
            tenant: *tenant,
            cpu_weight: *cpu_weight,
        });
    gone.chain(made).collect()
}

/// What to do with one container; the hot path asks for just the one that changed.
pub fn decide(desired: &DesiredSet, observed: &Observed, id: ContainerId, now: UnixMillis) -> Decision {
    if !observed.listed || observed.busy.contains(&id) {
        return Decision::Rest;
    }
    let unseen = Seen::default();
    let seen = observed.containers.get(&id).unwrap_or(&unseen);
    if seen.doubtful {
        return Decision::Rest;
    }
    // Whatever failed is not hammered. A changed wish or a noticed end clears this, see `outcome`.
    if seen.memory.failure.is_some()
        && let Some(at) = too_early(seen, now)
    {
        return Decision::Wait(at);
    }
    if let Some(runtime) = &seen.runtime
        && !runtime.complete
    {
        return Decision::Do(Step::Delete {
            id,
            tenant: runtime.meta.tenant,
        });
    }
    let Some(want) = desired.container(id) else {
        return decide_unwanted(seen, id, now);
    };
    let Some(runtime) = &seen.runtime else {
        return decide_absent(desired, observed, want, seen, now);
    };
    let recreate = runtime.meta.tenant != want.tenant || !runtime.spec.differs_only_in_limits(&want.spec);
    if want.run == RunState::Unknown {
        return match &runtime.task {
            TaskState::Stopped(_) => Decision::Do(Step::Collect { id }),
            _ if seen.ended => Decision::Do(Step::Collect { id }),
            TaskState::Running { .. } if !recreate => {
                decide_running(observed, want, seen, &runtime.spec, now)
            }
            // Whether it should run is not known, so it is not stopped to be made anew.
            _ => Decision::Rest,
        };
    }
    if recreate {
        return decide_gone(seen, id, StopReason::Recreate, now);
    }
    match &runtime.task {
        _ if seen.ended => Decision::Do(Step::Collect { id }),
        TaskState::Stopped(_) => Decision::Do(Step::Collect { id }),
        TaskState::Running { .. } => decide_running(observed, want, seen, &runtime.spec, now),
        TaskState::Created if want.run == RunState::Stopped => Decision::Do(Step::Kill { id }),
        TaskState::None if want.run == RunState::Stopped => Decision::Rest,
        TaskState::Created | TaskState::None => {
            if runtime.spec != *want.spec {
                return Decision::Do(Step::Update {
                    id,
                    spec: Box::new((*want.spec).clone()),
                });
            }
            decide_start(observed, want, seen, now)
        }
    }
}

fn decide_unwanted(seen: &Seen, id: ContainerId, now: UnixMillis) -> Decision {
    if seen.runtime.is_none() {
        return Decision::Do(Step::Forget { id });
    }
    decide_gone(seen, id, StopReason::Removed, now)
}

/// Stop it gracefully, then delete it.
fn decide_gone(seen: &Seen, id: ContainerId, reason: StopReason, now: UnixMillis) -> Decision {
    let Some(runtime) = &seen.runtime else {
        return Decision::Rest;
    };
    if matches!(runtime.task, TaskState::Running { .. }) && !seen.ended {
        return decide_stop(seen, id, &runtime.spec, runtime.spec.stop_grace_secs, reason, now);
    }
    if matches!(runtime.task, TaskState::Stopped(_)) || seen.ended {
        return Decision::Do(Step::Collect { id });
    }
    Decision::Do(Step::Delete {
        id,
        tenant: runtime.meta.tenant,
    })
}

fn decide_stop(
    seen: &Seen,
    id: ContainerId,
    has: &ContainerSpec,
    grace_secs: u32,
    reason: StopReason,
    now: UnixMillis,
) -> Decision {
    let grace_ms = u64::from(grace_secs) * 1000;
    let Some(stopping) = seen.memory.stopping else {
        // One that fills a disk is not let go on, and one that is unhealthy gets no requests any more.
        let urgent = matches!(reason, StopReason::DiskLimit { .. } | StopReason::Unhealthy);
        let leaves = !has.networks.is_empty() && !urgent;
        let leave_ms = if leaves { LEAVE_MS } else { 0 };
        return Decision::Do(Step::Stop {
            id,
            reason,
            leave_ms,
            deadline: UnixMillis(now.0.saturating_add(leave_ms).saturating_add(grace_ms)),
        });
    };
    // A clock that went back must not stretch the grace.
    let far = stopping.deadline.since(now) > grace_ms.max(3_600_000);
    if now < stopping.deadline && !far {
        return Decision::Wait(stopping.deadline);
    }
    match stopping.killed_at {
        Some(at) if now >= at && now.since(at) < KILL_AGAIN_MS => {
            Decision::Wait(UnixMillis(at.0 + KILL_AGAIN_MS))
        }
        _ => Decision::Do(Step::Kill { id }),
    }
}

fn decide_running(
    observed: &Observed,
    want: &DesiredContainer,
    seen: &Seen,
    has: &ContainerSpec,
    now: UnixMillis,
) -> Decision {
    let id = want.id;
    let stop = |reason| decide_stop(seen, id, has, want.spec.stop_grace_secs, reason, now);
    if let Some(stopping) = seen.memory.stopping {
        // The signal is out: whatever is wanted now, the process is going to end.
        return stop(stopping.reason);
    }
    if want.run == RunState::Stopped {
        return stop(StopReason::Asked);
    }
    if want.run == RunState::Running && want.restarts_asked > seen.memory.restarts_done {
        return stop(StopReason::Restart);
    }
    if *has != *want.spec {
        return Decision::Do(Step::Update {
            id,
            spec: Box::new((*want.spec).clone()),
        });
    }
    if is_ill(want, seen) {
        return stop(StopReason::Unhealthy);
    }
    let limit = want.spec.limits.disk;
    if !observed.disk_limit_hard && seen.disk.is_some_and(|used| used > limit.0) {
        return stop(StopReason::DiskLimit { limit });
    }
    if !seen.limits_tried {
        return Decision::Do(Step::ReadLimits { id });
    }
    Decision::Rest
}

/// Whether it is to be started again, since its checks say that it does not do its work. One that its policy would not start again is
/// left as it is: stopping it alone helps nobody.
fn is_ill(want: &DesiredContainer, seen: &Seen) -> bool {
    let again = matches!(want.spec.restart.on, Restart::Always | Restart::OnFailure);
    let wanted =
        want.spec.health.as_ref().is_some_and(|check| check.restart) && want.run == RunState::Running;
    again && wanted && seen.memory.health.as_ref().is_some_and(Health::is_unhealthy)
}

fn decide_absent(
    desired: &DesiredSet,
    observed: &Observed,
    want: &DesiredContainer,
    seen: &Seen,
    now: UnixMillis,
) -> Decision {
    if want.run != RunState::Running || rests(want, seen) {
        return Decision::Rest;
    }
    if let Some(at) = too_early(seen, now) {
        return Decision::Wait(at);
    }
    let Some(image) = &seen.image else {
        let share = desired.tenants.iter().find(|t| t.tenant == want.tenant);
        let registry = want.spec.image.registry();
        let credential = share
            .and_then(|share| share.credentials.iter().find(|c| c.registry == registry))
            .cloned();
        return Decision::Do(Step::Pull {
            id: want.id,
            tenant: want.tenant,
            reference: want.spec.image.clone(),
            credential,
        });
    };
    // Parents before children: a container never runs outside its tenant's share.
    if !observed.tenants.contains_key(&want.tenant) {
        return Decision::Rest;
    }
    Decision::Do(Step::Create {
        meta: meta(want),
        spec: Box::new((*want.spec).clone()),
        image: image.clone(),
    })
}

fn decide_start(observed: &Observed, want: &DesiredContainer, seen: &Seen, now: UnixMillis) -> Decision {
    if rests(want, seen) || !observed.tenants.contains_key(&want.tenant) {
        return Decision::Rest;
    }
    let asked = want.restarts_asked > seen.memory.restarts_done;
    if !asked && let Some(at) = too_early(seen, now) {
        return Decision::Wait(at);
    }
    Decision::Do(Step::Start {
        id: want.id,
        again: !asked && seen.memory.ends_in_a_row > 0 && seen.memory.failures_in_a_row == 0,
        restarts_done: want.restarts_asked.max(seen.memory.restarts_done),
    })
}

/// Whether it ended for good as things stand.
pub fn rests(want: &DesiredContainer, seen: &Seen) -> bool {
    if want.restarts_asked > seen.memory.restarts_done {
        return false;
    }
    match seen.memory.rest {
        None => false,
        Some(Rest::Policy) => true,
        Some(Rest::Stopped) => want.run == RunState::Stopped,
        Some(Rest::DiskLimit { limit }) => want.spec.limits.disk <= limit,
    }
}

/// The time before which nothing is tried; none if it is due. A time absurdly far away means the clock went back.
fn too_early(seen: &Seen, now: UnixMillis) -> Option<UnixMillis> {
    seen.memory
        .not_before
        .filter(|at| *at > now && at.since(now) <= 86_400_000)
}

/// Who a desired container is.
pub fn meta(want: &DesiredContainer) -> ContainerMeta {
    ContainerMeta {
        id: want.id,
        tenant: want.tenant,
        tenant_name: want.tenant_name.clone(),
        service_name: want.service_name.clone(),
        replica: want.replica,
    }
}
