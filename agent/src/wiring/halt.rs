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
