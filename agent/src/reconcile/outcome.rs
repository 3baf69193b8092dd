//! What a finished step changes. Pure: the other half of the state machine in [`super::plan`].
//!
//! Back-off is plain doubling without jitter: a container's delays depend on its own history alone, so they can be
//! tested and explained. Ends are told truthfully (R9): who sent the signal, whether memory was the cause.

use berth_common::id::ContainerId;
use berth_common::model::{
    ContainerSpec, Digest, Health, HealthState, Limits, Restart, RestartPolicy, UnixMillis,
};
use berth_common::protocol::DesiredContainer;

use super::plan::Step;
use super::state::{Memory, Rest, Seen, StopReason, Stopping};
use crate::container::exit::{Circumstances, SIGKILLED, explain};
use crate::container::runtime::{ContainerMeta, RuntimeContainer, Started, TaskExit, TaskState};
use crate::health::Target;
use crate::image::ImageInfo;

/// First delay after a failed pull, creation or start, milliseconds.
const FAILURE_DELAY_MS: u64 = 1_000;
/// Longest.
const FAILURE_MAX_MS: u64 = 60_000;

/// How a step went.
#[derive(Debug)]
pub enum Outcome {
    /// It worked and there is nothing to tell.
    Done,
    /// `Pull`: the image is here.
    Image(std::sync::Arc<ImageInfo>),
    /// `Start`.
    Started(Started),
    /// `Collect`.
    Exit(Option<TaskExit>),
    /// `ReadLimits`.
    Limits(Limits),
    /// It failed.
    Failed {
        /// In words, with the cause.
        message: String,
        /// Whether trying again can help.
        retryable: bool,
        /// The runtime does not have what was assumed: look again.
        relist: bool,
    },
}

/// Something the brain should show as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Which container.
    pub container: ContainerId,
    /// Short kind.
    pub kind: &'static str,
    /// One sentence.
    pub text: String,
}

/// The delay before the `n`th try in a row (from 1): `first`, doubled each time, at most `max` milliseconds.
pub fn backoff_ms(n: u32, first: u64, max: u64) -> u64 {
    let doublings = n.saturating_sub(1).min(40);
    first.saturating_mul(1 << doublings).min(max)
}

/// Applies `outcome` of `step` to what was seen. `want` is what is desired now.
pub fn settle(
    seen: &mut Seen,
    step: &Step,
    outcome: Outcome,
    want: Option<&DesiredContainer>,
    now: UnixMillis,
) -> Option<Notice> {
    if let Outcome::Failed {
        message, retryable, ..
    } = outcome
    {
        // What a broken start left behind (a task that never ran, half a container) only a list can tell.
        seen.doubtful |= matches!(
            step,
            Step::Create { .. } | Step::Start { .. } | Step::Collect { .. }
        );
        return failed(seen, step, message, retryable, now);
    }
    match (step, outcome) {
        (Step::Pull { .. }, Outcome::Image(image)) => seen.image = Some(image),
        (Step::Create { meta, spec, image }, _) => {
            seen.runtime = Some(created(meta, spec, image));
            seen.image = None;
            seen.ended = false;
            seen.disk = None;
        }
        (Step::Start { again, .. }, Outcome::Started(started)) => {
            on_started(seen, *again, started);
            note_check(seen, now);
        }
        (Step::Stop { reason, deadline, .. }, _) => {
            seen.memory.stopping = Some(Stopping {
                reason: *reason,
                deadline: *deadline,
                killed_at: None,
            });
        }
        (Step::Kill { .. }, _) => {
            let stopping = seen.memory.stopping.get_or_insert(Stopping {
                reason: StopReason::Asked,
                deadline: now,
                killed_at: None,
            });
            stopping.killed_at = Some(now);
        }
        (Step::Collect { id }, Outcome::Exit(exit)) => match (exit, seen.runtime.as_ref().map(|r| &r.task)) {
            // Collected before; how it ended is known from the list.
            (None, Some(TaskState::Stopped(known))) => return on_exit(seen, *id, Some(*known), want, now),
            // The event may have been an earlier process's, and this one alive: only a list can tell.
            (None, Some(TaskState::Running { .. } | TaskState::Created)) => {
                seen.ended = false;
                seen.doubtful = true;
            }
            _ => return on_exit(seen, *id, exit, want, now),
        },
        (Step::Update { spec, .. }, _) => {
            if let Some(runtime) = &mut seen.runtime {
                runtime.spec = (**spec).clone();
            }
            note_check(seen, now);
            seen.limits_tried = false;
            clear_failure(&mut seen.memory);
        }
        (Step::ReadLimits { .. }, Outcome::Limits(limits)) => {
            seen.limits = Some(limits);
            seen.limits_tried = true;
        }
        (Step::Delete { .. }, _) => {
            seen.runtime = None;
            seen.ended = false;
            seen.doubtful = false;
            seen.limits = None;
            seen.limits_tried = false;
            seen.disk = None;
            seen.memory.stopping = None;
            clear_failure(&mut seen.memory);
        }
        _ => {}
    }
    None
}

/// What is desired of it changed: a failure of the old wish no longer delays anything.
pub fn on_wish_changed(seen: &mut Seen) {
    if seen.memory.failure.is_some() {
        clear_failure(&mut seen.memory);
    }
}

/// The runtime said that its process ended.
pub fn on_end_noticed(seen: &mut Seen) {
    if seen.runtime.as_ref().is_some_and(|r| r.task != TaskState::None) {
        seen.ended = true;
        on_wish_changed(seen);
    }
}

/// A list shows that the process known here is gone and its exit collected: it ended, and counts as one that did.
pub fn on_vanished(
    seen: &mut Seen,
    id: ContainerId,
    want: Option<&DesiredContainer>,
    now: UnixMillis,
) -> Option<Notice> {
    let exit = match seen.runtime.as_ref()?.task {
        TaskState::Stopped(exit) => Some(exit),
        TaskState::Running { .. } => None,
        TaskState::None | TaskState::Created => return None,
    };
    on_exit(seen, id, exit, want, now)
}

fn created(meta: &ContainerMeta, spec: &ContainerSpec, image: &ImageInfo) -> RuntimeContainer {
    RuntimeContainer {
        meta: meta.clone(),
        spec: spec.clone(),
        image: image.manifest,
        task: TaskState::None,
        complete: true,
    }
}

fn clear_failure(memory: &mut Memory) {
    memory.failures_in_a_row = 0;
    memory.failure = None;
    memory.hopeless = false;
    memory.not_before = None;
}

/// One that is checked has a health from its first moment on, and one that is not has none.
pub(super) fn note_check(seen: &mut Seen, now: UnixMillis) {
    let runs = |runtime: &&RuntimeContainer| matches!(runtime.task, TaskState::Running { .. });
    let check = seen
        .runtime
        .as_ref()
        .filter(runs)
        .and_then(|runtime| runtime.spec.health.as_ref());
    match check.is_some_and(|check| check.probe().is_some()) {
        true => drop(seen.memory.health.get_or_insert(Health::starting(now))),
        false => seen.memory.health = None,
    }
}

/// What is to be checked of a container now, and how it was when that was last known; none of one that is not to run on.
pub fn checked(want: &DesiredContainer, seen: &Seen) -> Option<(Target, Health)> {
    let runtime = seen
        .runtime
        .as_ref()
        .filter(|_| !seen.ended && seen.memory.stopping.is_none())?;
    let TaskState::Running { pid, .. } = runtime.task else {
        return None;
    };
    let first = want.endpoints.first();
    let target = Target {
        id: want.id,
        pid,
        address: first.map(|at| at.subnets.address(at.host).into()),
        check: runtime.spec.health.clone()?,
    };
    Some((target, seen.memory.health.clone()?))
}

/// What a check found, and what to tell of it.
pub fn on_health(seen: &mut Seen, id: ContainerId, health: Health) -> Option<Notice> {
    let old = seen.memory.health.replace(health.clone())?;
    let output = health.output.unwrap_or_default();
    let (kind, text) = match (old.state, health.state) {
        (a, b) if a == b => return None,
        (_, HealthState::Unhealthy) => ("unhealthy", output),
        (HealthState::Unhealthy, HealthState::Healthy) => ("healthy", "it is healthy again".to_owned()),
        _ => return None,
    };
    Some(Notice {
        container: id,
        kind,
        text,
    })
}

fn on_started(seen: &mut Seen, again: bool, started: Started) {
    if let Some(runtime) = &mut seen.runtime {
        runtime.task = TaskState::Running {
            pid: started.pid,
            started_at: Some(started.at),
        };
    }
    let memory = &mut seen.memory;
    clear_failure(memory);
    memory.started_at = Some(started.at);
    memory.health = None;
    memory.running = true;
    memory.rest = None;
    memory.stopping = None;
    memory.oom_run = 0;
    memory.oom_at = None;
    if again {
        memory.restarts = memory.restarts.saturating_add(1);
    }
    seen.limits = None;
    seen.limits_tried = false;
}

fn failed(seen: &mut Seen, step: &Step, message: String, retryable: bool, now: UnixMillis) -> Option<Notice> {
    if matches!(step, Step::ReadLimits { .. }) {
        // Not known is shown as not known; the next relist tries again.
        seen.limits_tried = true;
        return None;
    }
    if let Step::Create { .. } = step {
        // The image may have been collected meanwhile: look it up again.
        seen.image = None;
    }
    count_failure(&mut seen.memory, step.container()?, message, retryable, now)
}

/// Counts a failure to get it running, and says when it is tried again. Told once for each message.
fn count_failure(
    memory: &mut Memory,
    container: ContainerId,
    message: String,
    retryable: bool,
    now: UnixMillis,
) -> Option<Notice> {
    memory.failures_in_a_row = memory.failures_in_a_row.saturating_add(1);
    memory.hopeless = !retryable;
    let delay = if retryable {
        backoff_ms(memory.failures_in_a_row, FAILURE_DELAY_MS, FAILURE_MAX_MS)
    } else {
        FAILURE_MAX_MS
    };
    memory.not_before = Some(UnixMillis(now.0.saturating_add(delay)));
    let first = memory.failure.as_ref() != Some(&message);
    memory.failure = Some(message.clone());
    first.then_some(Notice {
        container,
        kind: "failed",
        text: message,
    })
}

fn on_exit(
    seen: &mut Seen,
    id: ContainerId,
    exit: Option<TaskExit>,
    want: Option<&DesiredContainer>,
    now: UnixMillis,
) -> Option<Notice> {
    seen.ended = false;
    let runtime = seen.runtime.as_mut()?;
    let was_alive = !matches!(runtime.task, TaskState::None);
    runtime.task = TaskState::None;
    let memory = &mut seen.memory;
    let stopping = memory.stopping.take();
    // Absent only if the exit was collected before a crash, or the runtime lost it with a reboot.
    let known = exit.or_else(|| {
        was_alive.then_some(TaskExit {
            code: 255,
            at: now,
            oom_kills: None,
            begun: true,
        })
    })?;
    if !std::mem::take(&mut memory.running) && !proves_a_run(&known) {
        return never_ran(memory, id, stopping.is_some(), now);
    }
    let said = memory.health.take().and_then(|health| health.output);
    let said = said.unwrap_or_default();
    let around = circumstances(exit.is_none(), stopping.as_ref(), memory, &runtime.spec, &said);
    let info = explain(&known, &around, &runtime.spec.limits);
    memory.oom_run = memory.oom_run.max(known.oom_kills.unwrap_or(0));
    memory.oom_past = memory.oom_kills();
    memory.oom_run = 0;
    memory.oom_at = None;
    memory.last_exit = Some(info.clone());
    clear_failure(memory);
    match stopping.map(|s| s.reason) {
        Some(StopReason::Asked) => {
            memory.rest = Some(Rest::Stopped);
            memory.ends_in_a_row = 0;
        }
        Some(StopReason::Removed | StopReason::Recreate) => memory.ends_in_a_row = 0,
        Some(StopReason::Restart) => {
            memory.rest = None;
            memory.ends_in_a_row = 0;
            // Counted before the start, so that a crash between the two restarts nothing twice.
            memory.restarts_done = want.map_or(memory.restarts_done, |w| w.restarts_asked);
        }
        Some(StopReason::DiskLimit { limit }) => memory.rest = Some(Rest::DiskLimit { limit }),
        ill @ (None | Some(StopReason::Unhealthy)) => {
            let policy = want.map_or(runtime.spec.restart, |w| w.spec.restart);
            let failed = ill.is_some() || info.code != 0 || info.oom;
            by_policy(memory, policy, failed, info.at, now);
        }
    }
    let kind = match stopping.map(|s| s.reason) {
        _ if info.oom => "oom",
        Some(StopReason::DiskLimit { .. }) => "disk-limit",
        Some(StopReason::Unhealthy) if memory.rest.is_none() => "restarted",
        // It used its restarts up.
        Some(StopReason::Unhealthy) => "exited",
        None if info.code != 0 => "exited",
        _ => return None,
    };
    Some(Notice {
        container: id,
        kind,
        text: info.reason,
    })
}

/// Whether an end that nobody saw the run of can only be a program's. A process that was made and not let run yet ends
/// by being killed and in no other way.
fn proves_a_run(exit: &TaskExit) -> bool {
    exit.begun || exit.code != SIGKILLED || exit.oom_kills.is_some_and(|kills| kills > 0)
}

/// What ended was made but never let run, as when the runtime dies in the middle of a start. It is no run: there is no end
/// to tell of and nothing for the restart policy to judge, only a start that failed. `asked`: it was to end.
fn never_ran(memory: &mut Memory, id: ContainerId, asked: bool, now: UnixMillis) -> Option<Notice> {
    if asked {
        clear_failure(memory);
        return None;
    }
    let text = "its start was cut off before its program ran (the runtime died or was restarted)";
    count_failure(memory, id, text.to_owned(), true, now)
}

fn by_policy(memory: &mut Memory, policy: RestartPolicy, failed: bool, ended: UnixMillis, now: UnixMillis) {
    let ran_ms = memory.started_at.map_or(0, |at| ended.since(at));
    if ran_ms >= u64::from(policy.reset_after_ms) {
        memory.ends_in_a_row = 0;
    }
    memory.ends_in_a_row = memory.ends_in_a_row.saturating_add(1);
    let again = match policy.on {
        Restart::Always => true,
        Restart::OnFailure => failed,
        Restart::Never | Restart::Unknown => false,
    };
    let used_up = policy.max_restarts.is_some_and(|max| memory.ends_in_a_row > max);
    if !again || used_up {
        memory.rest = Some(Rest::Policy);
        return;
    }
    let delay = backoff_ms(
        memory.ends_in_a_row,
        u64::from(policy.delay_ms),
        u64::from(policy.max_delay_ms),
    );
    memory.not_before = Some(UnixMillis(now.0.saturating_add(delay)));
}

/// What the end of a run is judged by, besides the exit itself.
fn circumstances<'a>(
    unseen: bool,
    stopping: Option<&Stopping>,
    memory: &Memory,
    spec: &ContainerSpec,
    said: &'a str,
) -> Circumstances<'a> {
    let killed = stopping.is_some_and(|s| s.killed_at.is_some());
    Circumstances {
        unseen,
        killed_after_secs: killed.then_some(spec.stop_grace_secs),
        over_disk: match stopping.map(|s| s.reason) {
            Some(StopReason::DiskLimit { limit }) => Some(limit),
            _ => None,
        },
        ill: stopping
            .filter(|s| s.reason == StopReason::Unhealthy)
            .map(|_| said),
        oom_noticed: memory.oom_run,
        oom_noticed_at: memory.oom_at,
    }
}

/// OOM kills of the present run were read. Tells of kills that PID 1 survived.
pub fn on_oom_kills(seen: &mut Seen, id: ContainerId, kills: u64, now: UnixMillis) -> Option<Notice> {
    if kills <= seen.memory.oom_run {
        return None;
    }
    let more = kills - seen.memory.oom_run;
    seen.memory.oom_run = kills;
    seen.memory.oom_at = Some(now);
    let limit = seen.runtime.as_ref().map(|r| r.spec.limits.memory)?;
    Some(Notice {
        container: id,
        kind: "oom",
        text: format!("the kernel killed {more} process(es) inside for memory (limit {limit})"),
    })
}

/// The image a container was made from, if it was made.
pub fn image_of(seen: &Seen) -> Option<Digest> {
    seen.runtime.as_ref().map(|r| r.image)
}
