//! Which capabilities a container gets. Pure.
//!
//! The default is Docker's list without `MKNOD`, `NET_RAW` and `AUDIT_WRITE`: device nodes can't be made in a user
//! namespace anyway, raw sockets allow spoofing inside a network (unprivileged ping works without, by sysctl), and the
//! audit log belongs to the host. `SETFCAP` stays for package managers.

use std::collections::BTreeSet;

use berth_common::id::clip;
use oci_spec::runtime::Capability;

/// What a container may do when nothing was added or dropped.
pub const DEFAULT: [Capability; 11] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::Setfcap,
    Capability::SysChroot,
];

/// Every capability, by kernel number.
pub const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// A word that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a capability; write for example NET_ADMIN, or ALL")]
pub struct UnknownCapability(String);

fn parse(text: &str) -> Result<Vec<Capability>, UnknownCapability> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if name == "ALL" {
        return Ok(ALL.to_vec());
    }
    let found = name
        .parse::<Capability>()
        .map_err(|_| UnknownCapability(clip(text, 40)))?;
    Ok(vec![found])
}

/// The default, plus `add`, minus `drop` (`ALL` means all; dropping ALL and adding some leaves the added ones).
///
/// # Errors
/// When a word is no capability.
pub fn resolve(add: &[String], drop: &[String]) -> Result<BTreeSet<u8>, UnknownCapability> {
    let number = |capability: Capability| {
        ALL.iter()
            .position(|other| *other == capability)
            .and_then(|at| u8::try_from(at).ok())
    };
    let mut set: BTreeSet<u8> = DEFAULT.iter().filter_map(|c| number(*c)).collect();
    let mut added = BTreeSet::new();
    for word in add {
        added.extend(parse(word)?.into_iter().filter_map(number));
    }
    let mut explicit_drop = BTreeSet::new();
    let mut drop_all = false;
    for word in drop {
        let parsed = parse(word)?;
        if parsed.len() > 1 {
            drop_all = true;
        } else {
            explicit_drop.extend(parsed.into_iter().filter_map(number));
        }
    }
    if drop_all {
        set.clear();
    }
    set.extend(added);
    set.retain(|c| !explicit_drop.contains(c));
    Ok(set)
}

/// The set as oci-spec's type.
pub fn as_oci(set: &BTreeSet<u8>) -> oci_spec::runtime::Capabilities {
    set.iter()
        .filter_map(|n| ALL.get(usize::from(*n)).copied())
        .collect()
}

/// The capabilities in a mask as /proc shows it (`CapBnd`).
pub fn from_mask(mask: u64) -> BTreeSet<u8> {
    (0..41).filter(|bit| mask & (1 << bit) != 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn adding_and_dropping_table() {
        let cases: [(&[&str], &[&str], usize); 7] = [
            (&[], &[], 11),
            (&["net_admin"], &[], 12),
            (&["CAP_NET_ADMIN", "CHOWN"], &["kill"], 11),
            (&[], &["ALL"], 0),
            (&["SYS_TIME"], &["ALL"], 1),
            (&["ALL"], &["SYS_ADMIN"], 40),
            (&["ALL"], &[], 41),
        ];
        for (add, drop, count) in cases {
            assert_eq!(
                resolve(&words(add), &words(drop)).unwrap().len(),
                count,
                "+{add:?} -{drop:?}"
            );
        }
        assert!(
            resolve(&words(&["CAP_ROOT"]), &[])
                .unwrap_err()
                .to_string()
                .contains("NET_ADMIN")
        );
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(ALL[21], Capability::SysAdmin);
        assert_eq!(ALL[40], Capability::CheckpointRestore);
        assert_eq!(from_mask(0x1ff_feff_ffff).len(), 40);
    }
}
