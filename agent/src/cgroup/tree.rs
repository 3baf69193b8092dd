//! Directories of control groups: making, listing, and removing without ever touching a live process.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_common::id::TenantId;

use super::CgroupError;
use super::file::{io, read};

/// A dead process can hold its group for a moment; how often and how long to wait for that.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// Deeper trees are not ours: containers may not nest groups without end.
const MAX_DEPTH: usize = 32;

/// Makes a group that everyone may pass through, whatever the agent's umask: a container mounts its own control group as the
/// root of its user namespace, and the kernel has it look up every group on the way.
pub(super) fn create(dir: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(io("creating", dir, error)),
        _ => {}
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
        .map_err(|error| io("changing the mode of", dir, error))
}

/// Makes every group above `path` below `mount` that is not there; one that is may be somebody else's and stays as it is.
pub(super) fn create_above(mount: &Path, path: &str) -> Result<(), CgroupError> {
    let mut dir = mount.to_path_buf();
    let mut parts = path.trim_matches('/').split('/').peekable();
    while let Some(part) = parts.next()
        && parts.peek().is_some()
    {
        dir.push(part);
        if !dir.is_dir() {
            create(&dir)?;
        }
    }
    Ok(())
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io("reading", dir, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| io("reading", dir, error))?;
        // Not following links: a hierarchy has none, and what is not one must not lead us elsewhere.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Processes in a group and below it; none if the group is not there.
pub(super) fn pids(dir: &Path) -> Result<Vec<u32>, CgroupError> {
    let mut found = Vec::new();
    collect_pids(dir, MAX_DEPTH, &mut found)?;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn collect_pids(dir: &Path, depth: usize, found: &mut Vec<u32>) -> Result<(), CgroupError> {
    let text = match read(&dir.join("cgroup.procs")) {
        Ok(text) => text,
        // ENODEV: removed between opening and reading. EOPNOTSUPP: a threaded group, whose processes its parent lists.
        Err(CgroupError::Io { source, .. })
            if source.kind() == ErrorKind::NotFound
                || matches!(source.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP)) =>
        {
            String::new()
        }
        Err(error) => return Err(error),
    };
    // 0 stands for processes of a pid namespace we can't see.
    found.extend(
        text.lines()
            .filter_map(|line| line.parse::<u32>().ok())
            .filter(|pid| *pid != 0),
    );
    if depth > 0 {
        for child in children(dir)? {
            collect_pids(&child, depth - 1, found)?;
        }
    }
    Ok(())
}

/// Removes a group and the groups below it, if no process lives in them. Missing is success.
///
/// # Errors
/// [`CgroupError::Busy`] when processes are inside, also after a short wait for dying ones; then nothing live was touched.
pub(super) fn remove(dir: &Path) -> Result<(), CgroupError> {
    let mut attempt = 1;
    loop {
        if !dir.exists() {
            return Ok(());
        }
        let inside = pids(dir)?;
        let result = if inside.is_empty() {
            remove_once(dir, MAX_DEPTH)
        } else {
            Err(CgroupError::Busy {
                path: dir.display().to_string(),
                pids: inside.into_iter().take(8).collect(),
            })
        };
        match result {
            Ok(()) => return Ok(()),
            Err(error) if attempt == ATTEMPTS || !waits(&error) => return Err(error),
            Err(_) => std::thread::sleep(PAUSE),
        }
        attempt += 1;
    }
}

fn waits(error: &CgroupError) -> bool {
    match error {
        CgroupError::Busy { .. } => true,
        CgroupError::Io { source, .. } => source.raw_os_error() == Some(libc::EBUSY),
        _ => false,
    }
}

fn remove_once(dir: &Path, depth: usize) -> Result<(), CgroupError> {
    if depth > 0 {
        for child in children(dir)? {
            remove_once(&child, depth - 1)?;
        }
    }
    remove_empty(dir).map_err(|error| io("removing", dir, error))
}

/// `rmdir`, which the kernel refuses while processes or groups are inside. Missing is success.
pub(super) fn remove_empty(dir: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn has_children(dir: &Path) -> Result<bool, CgroupError> {
    Ok(!children(dir)?.is_empty())
}

/// Removes a tenant's group if it is empty; a group with containers in it is left alone.
pub(super) fn remove_if_empty(dir: &Path) -> Result<(), CgroupError> {
    if has_children(dir)? {
        return Ok(());
    }
    match remove_empty(dir) {
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::EBUSY | libc::ENOTEMPTY | libc::EEXIST)
            ) =>
        {
            Err(io("removing", dir, error))
        }
        _ => Ok(()),
    }
}

/// Tenants with a group in berth's top cgroup `root`; names that are no tenant's are ignored.
pub(super) fn tenants(root: &Path, found: &mut BTreeSet<TenantId>) -> Result<(), CgroupError> {
    for child in children(root)? {
        let id: Option<TenantId> = child
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("tenant-")?.strip_suffix(".slice"))
            .and_then(|id| id.parse().ok());
        found.extend(id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_can_be_passed_through_whatever_they_were_made_with() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("berth.slice");
        for _ in 0..2 {
            create(&group).unwrap();
            let mode = std::fs::metadata(&group).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o755);
            std::fs::set_permissions(&group, std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        assert!(create(&dir.path().join("no/such")).is_err());
    }

    #[test]
    fn tenants_are_found_and_foreign_names_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let mut found = BTreeSet::new();
        tenants(dir.path(), &mut found).unwrap();
        assert!(found.is_empty());
        let tenant = TenantId::from_bytes([7; 10]);
        for name in [
            format!("tenant-{tenant}.slice"),
            "tenant-x.slice".into(),
            "other".into(),
        ] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        tenants(dir.path(), &mut found).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [tenant]);
    }

    #[test]
    fn a_group_with_processes_is_left_whole() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("g");
        std::fs::create_dir_all(group.join("below/deeper")).unwrap();
        std::fs::write(group.join("below/cgroup.procs"), "41\n42\n0\n").unwrap();
        match remove(&group).unwrap_err() {
            CgroupError::Busy { pids, .. } => assert_eq!(pids, [41, 42]),
            other => panic!("{other}"),
        }
        assert!(
            group.join("below/deeper").exists(),
            "nothing of a live group may go"
        );
        std::fs::remove_file(group.join("below/cgroup.procs")).unwrap();
        remove(&group).unwrap();
        assert!(!group.exists());
        remove(&group).unwrap();
    }

    #[test]
    fn a_tenant_with_containers_stays() {
        let dir = tempfile::tempdir().unwrap();
        let tenant = dir.path().join("t");
        std::fs::create_dir_all(tenant.join("c")).unwrap();
        remove_if_empty(&tenant).unwrap();
        assert!(tenant.exists());
        std::fs::remove_dir(tenant.join("c")).unwrap();
        remove_if_empty(&tenant).unwrap();
        assert!(!tenant.exists());
        remove_if_empty(&tenant).unwrap();
    }
}
