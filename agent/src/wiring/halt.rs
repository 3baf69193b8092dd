//! Stops every container of this host for a shutdown, each with its own signal and grace, and changes nothing else: what the
//! agent wants stays, so that it starts them again (R3).
//!
//! Without it systemd would end with a SIGTERM to all that is left and wait until it gives up: PID 1s of containers ignore
//! that signal unless they ask for it.

use std::collections::HashMap;
use std::time::Duration;

use berth_common::id::ContainerId;
use tokio::time::Instant;

use crate::container::runtime::{Runtime, RuntimeError, TaskState};
use crate::reconcile::apply::chain;

const SIGKILL: i32 = 9;
/// Pause between looks at what still runs.
const LOOK: Duration = Duration::from_millis(100);
/// Time that the kernel has to end what was killed.
const LAST: Duration = Duration::from_secs(10);

/// What became of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Halted {
    /// Containers that ended by themselves when told.
    pub stopped: usize,
    /// Containers that had to be killed.
    pub killed: usize,
    /// What failed, in words.
    pub errors: Vec<String>,
}

struct Waiting {
    kill_at: Instant,
    killed: bool,
}

/// Tells all that run to stop, kills those whose grace is over, and waits until none runs.
///
/// # Errors
/// When the runtime can't be listed at first.
pub async fn containers(runtime: &dyn Runtime) -> Result<Halted, RuntimeError> {
    let mut halted = Halted::default();
    let mut waiting: HashMap<ContainerId, Waiting> = HashMap::new();
    let begun = Instant::now();
    for container in runtime.list().await? {
        let id = container.meta.id;
        if !matches!(container.task, TaskState::Running { .. } | TaskState::Created) {
            continue;
        }
        let told = match runtime.stop_signal(id).await {
            Ok(signal) => runtime.signal(id, signal, false).await,
            Err(error) => Err(error),
        };
        let grace = match told {
            Ok(()) => Duration::from_secs(container.spec.stop_grace_secs.into()),
            Err(RuntimeError::Missing(_)) => continue,
            Err(error) => {
                halted.errors.push(chain(&error));
                Duration::ZERO
            }
        };
        let kill_at = begun + grace;
        waiting.insert(
            id,
            Waiting {
                kill_at,
                killed: false,
            },
        );
    }
    while !waiting.is_empty() {
        let now = Instant::now();
        for (id, held) in waiting
            .iter_mut()
            .filter(|(_, held)| !held.killed && held.kill_at <= now)
        {
            held.killed = true;
            if let Err(error) = runtime.signal(*id, SIGKILL, true).await {
                halted.errors.push(chain(&error));
            }
        }
        tokio::time::sleep(LOOK).await;
        let Ok(listed) = runtime.list().await else {
            // A runtime that is gone for good must not keep the host from going down.
            let now = Instant::now();
            waiting.retain(|_, held| now <= held.kill_at + LAST);
            if waiting.is_empty() {
                halted.errors.push(
                    "containerd does not answer any more; what still runs is killed with the host".to_owned(),
                );
            }
            continue;
        };
        let runs = |id: ContainerId| {
            let found = listed.iter().find(|container| container.meta.id == id);
            found.is_some_and(|c| matches!(c.task, TaskState::Running { .. } | TaskState::Created))
        };
        waiting.retain(|id, held| {
            let given_up = held.killed && Instant::now() > held.kill_at + LAST;
            if given_up {
                halted.errors.push(format!("container {id} does not end"));
                return false;
            }
            let still = runs(*id);
            if !still && held.killed {
                halted.killed += 1;
            } else if !still {
                halted.stopped += 1;
            }
            still
        });
    }
    Ok(halted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::runtime::{ContainerMeta, RuntimeContainer};
    use crate::fakes::{FakeRuntime, Fault};
    use berth_common::id::TenantId;
    use berth_common::model::ServiceSpec;

    fn running(runtime: &FakeRuntime, n: u8) -> ContainerId {
        let id = ContainerId::from_bytes([n; 10]);
        let mut spec = ServiceSpec::new("s".parse().unwrap(), "x".parse().unwrap());
        spec.stop_grace_secs = 5;
        runtime.leave_half_made(RuntimeContainer {
            meta: ContainerMeta {
                id,
                tenant: TenantId::from_bytes([1; 10]),
                tenant_name: "t".parse().unwrap(),
                service_name: "s".parse().unwrap(),
                replica: u32::from(n),
            },
            spec: spec.container_spec().unwrap(),
            image: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            task: TaskState::Running {
                pid: u32::from(n),
                started_at: None,
            },
            complete: true,
        });
        id
    }

    #[tokio::test(start_paused = true)]
    async fn all_end_within_their_grace_and_the_deaf_are_killed() {
        let runtime = FakeRuntime::default();
        running(&runtime, 1);
        let deaf = running(&runtime, 2);
        runtime.ignore_stop(deaf);
        let begun = Instant::now();
        let halted = containers(&runtime).await.unwrap();
        assert_eq!((halted.stopped, halted.killed), (1, 1), "{halted:?}");
        let took = begun.elapsed();
        assert!(took >= Duration::from_secs(5), "the grace was given: {took:?}");
        assert_eq!(runtime.containers().len(), 2, "nothing is deleted");
        let again = containers(&runtime).await.unwrap();
        assert_eq!(again, Halted::default(), "safe to repeat");
    }

    #[tokio::test(start_paused = true)]
    async fn a_runtime_that_is_gone_does_not_hold_the_shutdown_up() {
        let runtime = FakeRuntime::default();
        let deaf = running(&runtime, 1);
        runtime.ignore_stop(deaf);
        let halting = containers(&runtime);
        tokio::pin!(halting);
        let early = tokio::time::timeout(Duration::from_secs(1), &mut halting).await;
        assert!(early.is_err(), "it waits for the grace");
        for operation in ["list", "signal"] {
            for _ in 0..1_000 {
                runtime.faults.inject(
                    operation,
                    Fault::Fail {
                        message: "gone".into(),
                        retryable: true,
                    },
                );
            }
        }
        let ended = tokio::time::timeout(Duration::from_secs(60), halting).await;
        let halted = ended.expect("it gives up").unwrap();
        assert!(
            halted
                .errors
                .iter()
                .any(|e| e.contains("does not answer any more")),
            "{halted:?}"
        );
    }
}
