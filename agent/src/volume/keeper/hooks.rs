//! Commands in a container around a snapshot.
//!
//! The one before lets its program bring to the disk what a snapshot is to hold; the one after undoes what that took. So there is no
//! snapshot where the first fails, and the second follows whenever the first was begun. While they run the order may be withdrawn: then
//! nothing is made that nobody would ever name again.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_common::id::{ContainerId, SnapshotId, VolumeId};

use super::begun::Begun;
use super::plan::Hooked;
use crate::container::command;
use crate::container::runtime::Runtime;
use crate::volume::{Pool, VolumeError};

/// Who runs commands in containers.
#[async_trait]
pub trait Commands: Send + Sync + 'static {
    /// Runs one to its end; it is ended when this is dropped, which is how it is bounded in time.
    ///
    /// # Errors
    /// That it failed, in words.
    async fn run(&self, container: ContainerId, words: &[String]) -> Result<(), String>;
}

/// In containers of a runtime.
pub struct RuntimeCommands(pub Arc<dyn Runtime>);

#[async_trait]
impl Commands for RuntimeCommands {
    async fn run(&self, container: ContainerId, words: &[String]) -> Result<(), String> {
        command::run(&*self.0, container, words).await
    }
}

async fn within(
    commands: Option<&dyn Commands>,
    hooked: &Hooked,
    words: Option<&Vec<String>>,
) -> Result<(), String> {
    let Some(words) = words else { return Ok(()) };
    let Some(commands) = commands else {
        return Err("this agent runs no commands".to_owned());
    };
    let limit = Duration::from_millis(hooked.hooks.limit_ms.into());
    let ran = tokio::time::timeout(limit, commands.run(hooked.container, words)).await;
    ran.unwrap_or_else(|_| {
        Err(format!(
            "it did not end within {} s, and was killed",
            limit.as_secs()
        ))
    })
}

/// Takes a snapshot with its commands, unless it is `wanted` no more once the first has run. What went wrong with the second is returned
/// in words: the snapshot is there all the same.
///
/// # Errors
/// `Command` if the first failed, else the pool's.
pub(super) async fn snapshot(
    pool: &dyn Pool,
    (commands, begun): (Option<&dyn Commands>, &Begun),
    (volume, snapshot): (VolumeId, SnapshotId),
    hooked: &Hooked,
    wanted: impl Fn() -> bool,
) -> Result<Option<String>, VolumeError> {
    if hooked.hooks.after.is_some() {
        begun
            .note(volume, hooked)
            .map_err(|why| VolumeError::Command { volume, why })?;
    }
    let before = within(commands, hooked, hooked.hooks.before.as_ref()).await;
    let made = match before {
        Err(why) => Err(VolumeError::Command { volume, why }),
        Ok(()) if wanted() => pool.snapshot(volume, snapshot).await.map(drop),
        Ok(()) => Ok(()),
    };
    let after = end((commands, begun), volume, hooked).await;
    match (made, after) {
        (Ok(()), after) => Ok(after),
        (Err(error), after) => {
            // What failed first is what is told, and tried again.
            if let Some(why) = after {
                tracing::warn!(%volume, why, "after a snapshot that was not made");
            }
            Err(error)
        }
    }
}

/// Runs the second, once; why it failed, in words.
pub(super) async fn end(
    (commands, begun): (Option<&dyn Commands>, &Begun),
    volume: VolumeId,
    hooked: &Hooked,
) -> Option<String> {
    let after = within(commands, hooked, hooked.hooks.after.as_ref()).await;
    begun.done(volume);
    let why = after.err()?;
    Some(format!("the command after its snapshot failed: {why}"))
}
