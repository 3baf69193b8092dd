//! Whether a container can have its volumes now. Pure.

use berth_common::model::VolumeMount;
use berth_common::protocol::{DesiredMount, DesiredVolume, VolumePlace};

use super::plan::{Seen, due_roll_back};
use crate::reconcile::{Mounts, VolumeOrders};

/// Whether the brain names a volume for each of the spec's, so that no container runs without its data.
///
/// # Errors
/// How many there are of each.
pub(super) fn complete(orders: Option<&Mounts>, spec: &[VolumeMount]) -> Result<(), String> {
    let named = orders.map_or(0, |mounts| mounts.volumes.len());
    match named == spec.len() {
        true => Ok(()),
        false => Err(format!(
            "its spec has {} volumes, and the brain named {named} for it: it is not run without its data",
            spec.len()
        )),
    }
}

/// Whether a container's volumes can all be mounted now.
///
/// # Errors
/// Which can't, and why not.
pub(super) fn all(
    orders: &VolumeOrders,
    mounts: &Mounts,
    spec: &[VolumeMount],
    seen: &Seen,
) -> Result<(), String> {
    for (mount, named) in mounts.volumes.iter().zip(spec) {
        if mount.snapshot.is_some() != named.snapshot.is_some() {
            return Err(format!(
                "volume {}: its spec and the brain are not of one mind on whether a snapshot of it is read; it is not run without its data",
                named.volume
            ));
        }
        let want = orders.volume(mount.volume);
        let one = match want {
            Some(want) if want.tenant != mounts.tenant => Err("it is another tenant's".to_owned()),
            Some(want) => one(want, mount, seen),
            None => Err("the brain does not say what this node is to it".to_owned()),
        };
        one.map_err(|why| format!("volume {} is not ready on this node: {why}", named.volume))?;
    }
    Ok(())
}

fn one(want: &DesiredVolume, mount: &DesiredMount, seen: &Seen) -> Result<(), String> {
    match want.place {
        VolumePlace::Held { .. } => {}
        VolumePlace::Arriving { .. } => return Err("it is still arriving".into()),
        VolumePlace::Deleted => return Err("it is being deleted".into()),
        VolumePlace::Unknown => {
            return Err("what this node is to it is not known to this agent; upgrade it".into());
        }
    }
    if want.send.as_ref().is_some_and(|send| send.finish) {
        return Err("it leaves for another node".into());
    }
    let Some(here) = seen.volumes.get(&want.id) else {
        return Err("it is not here yet".into());
    };
    let Some(data) = &here.data else {
        return Err("only a copy of it is here".into());
    };
    let held = here.meta.epoch;
    if want.epoch != mount.epoch || held != mount.epoch {
        return Err(format!(
            "it is in epoch {held} here, the brain is at {}, and the container was given {}",
            want.epoch, mount.epoch
        ));
    }
    if here.meta.tenant != want.tenant {
        return Err("another tenant's volume is here under its id".into());
    }
    if due_roll_back(want, here).is_some() {
        return Err("it is rolled back first".into());
    }
    if let Some(snapshot) = mount.snapshot
        && !here.snapshots.iter().any(|one| one.id == snapshot)
    {
        return Err("the snapshot that it reads is not here yet".into());
    }
    if data.limit.is_none() {
        return Err("its limit is not in force".into());
    }
    Ok(())
}
