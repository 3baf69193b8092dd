//! Snapshots in the state: which schedules are due, who reads one, and names that are free.

use berth_common::id::{Name, VolumeId};
use berth_common::model::{UnixMillis, VolumeMount, VolumeRecord};

use super::State;

/// Most characters of a name.
const NAME_LEN: usize = 63;

impl State {
    /// A service or a container that reads a snapshot of a volume, for people: `service web` or `container web.1`.
    pub fn reader_of(&self, volume: &VolumeRecord, snapshot: &Name) -> Option<String> {
        let mut services = self.mounting.iter().filter_map(|id| self.services.get(id));
        let service = services.find(|service| {
            service.tenant == volume.tenant && reads(&service.spec.volumes, &volume.name, snapshot)
        });
        let service = service.map(|service| format!("service {}", service.spec.name));
        service.or_else(|| self.container_reading(volume, snapshot))
    }

    /// A container that has a snapshot of a volume, whatever its service asks for by now.
    pub fn container_reading(&self, volume: &VolumeRecord, snapshot: &Name) -> Option<String> {
        // They are where the volume is.
        let mut containers = volume.node.into_iter().flat_map(|node| self.containers_on(node));
        let found = containers
            .find(|one| one.tenant == volume.tenant && reads(&one.spec.volumes, &volume.name, snapshot))?;
        Some(format!("container {}.{}", found.service_name, found.replica))
    }

    /// Keeps the index of schedules in step with a volume that was `old` and is `new`.
    pub(super) fn index_schedule(
        &mut self,
        id: VolumeId,
        old: Option<&VolumeRecord>,
        new: Option<&VolumeRecord>,
    ) {
        if let Some(at) = old.and_then(VolumeRecord::next_snapshot) {
            self.snapshots_due.remove(&(at, id));
        }
        if let Some(at) = new.and_then(VolumeRecord::next_snapshot) {
            self.snapshots_due.insert((at, id));
        }
    }
}

fn reads(mounts: &[VolumeMount], volume: &Name, snapshot: &Name) -> bool {
    let mut mounts = mounts.iter();
    mounts.any(|mount| mount.volume == *volume && mount.snapshot.as_ref() == Some(snapshot))
}

/// A name that no snapshot of the volume has: this, or this with a number.
pub fn free_name(volume: &VolumeRecord, wanted: &str) -> Name {
    let numbered = (1..).map(|number| {
        let suffix = if number == 1 {
            String::new()
        } else {
            format!("-{number}")
        };
        let kept: String = wanted.chars().take(NAME_LEN - suffix.len()).collect();
        format!("{}{suffix}", kept.trim_end_matches('-'))
    });
    let taken = |name: &Name| volume.snapshots.iter().any(|one| one.name == *name);
    let mut names = numbered.filter_map(|name| name.parse::<Name>().ok());
    names.find(|name| !taken(name)).expect("numbers never end")
}

/// A moment in UTC: `20261128t1530z`.
pub fn stamp(now: UnixMillis) -> String {
    let seconds = i64::try_from(now.0 / 1000).unwrap_or_default();
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}{:02}{:02}t{:02}{:02}z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute()
    )
}

#[cfg(test)]
mod tests {
    use berth_common::id::{SnapshotId, TenantId};
    use berth_common::model::SnapshotRecord;
    use berth_common::units::Bytes;

    use super::*;

    #[test]
    fn names_are_free() {
        let volume = |names: &[&str]| {
            let snapshot = |name: &&str| SnapshotRecord {
                id: SnapshotId::random(),
                name: name.parse().unwrap(),
                created_at: UnixMillis(0),
                scheduled: false,
                removing: false,
            };
            let name = "data".parse().unwrap();
            VolumeRecord {
                snapshots: names.iter().map(snapshot).collect(),
                ..VolumeRecord::new(
                    VolumeId::random(),
                    TenantId::random(),
                    name,
                    Bytes::gib(1),
                    UnixMillis(0),
                )
            }
        };
        let there = volume(&["before-a", "before-a-2"]);
        assert_eq!(free_name(&there, "before-a").as_str(), "before-a-3");
        assert_eq!(free_name(&there, "before-b").as_str(), "before-b");
        // A hyphen where it is cut would end the name.
        let long = format!("before-{}-{}", "a".repeat(55), "b".repeat(30));
        let cut = free_name(&there, &long);
        assert_eq!(cut.as_str(), format!("before-{}", "a".repeat(55)));
        let again = free_name(&volume(&[cut.as_str()]), &long);
        assert_eq!(again.as_str(), format!("before-{}-2", "a".repeat(54)));
        let auto = format!("auto-{}", stamp(UnixMillis(1_795_880_000_000)));
        assert_eq!(free_name(&there, &auto).as_str(), "auto-20261128t1533z");
    }
}
