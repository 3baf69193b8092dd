//! The `USER` of an image or exec: parsing it and looking names up in passwd and group files. Pure.
//!
//! The files come from images and running containers and are hostile: lines that don't parse are passed over, sizes
//! are bounded by the caller, ids outside the container's 65,536 are refused.

use berth_common::id::clip;

/// Ids a process runs with, as seen inside the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// Why a user could not be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// No such name.
    #[error("the image has no {kind} {name:?}; use a name from its /etc/{file} or a number")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// The name, shortened.
        name: String,
        /// `passwd` or `group`.
        file: &'static str,
    },
    /// An id a container can't have.
    #[error("id {0} is out of range: a container has 0 to 65535")]
    OutOfRange(u32),
}

/// What has to be looked up for a `USER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the ids are given.
    Nothing(u32, u32),
    /// passwd and group.
    Files,
}

/// Whether `user` (`""`, `root`, `1000`, `name`, `user:group`) can be understood without the image's files.
pub fn need(user: &str) -> Need {
    let number = |text: &str| text.parse::<u32>().ok();
    match user.split_once(':') {
        None if user.is_empty() => Need::Nothing(0, 0),
        Some((uid, gid)) => match (number(uid), number(gid)) {
            (Some(uid), Some(gid)) => Need::Nothing(uid, gid),
            _ => Need::Files,
        },
        None => Need::Files,
    }
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

fn passwd(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Passwd { name, uid, gid })
    })
}

fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// The ids of `user`, by the contents of the container's passwd and group files (empty if it has none).
///
/// # Errors
/// When a name isn't there or an id is outside the container's range.
pub fn resolve(user: &str, passwd_text: &str, group_text: &str) -> Result<Identity, UserError> {
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|g| !g.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    // A name wins over a number, as everywhere else; a number that has no entry stands for itself with group 0.
    let number = name.parse::<u32>().ok();
    let entry = passwd(passwd_text)
        .find(|entry| entry.name == name)
        .or_else(|| passwd(passwd_text).find(|entry| Some(entry.uid) == number));
    let (uid, mut gid) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) if name == "root" => (0, 0),
        (None, None) => {
            return Err(UserError::Unknown {
                kind: "user",
                name: clip(name, 60),
                file: "passwd",
            });
        }
    };
    let mut further = Vec::new();
    if let Some(group) = group {
        let number = group.parse::<u32>().ok();
        gid = match groups(group_text).find(|(name, _, _)| *name == group) {
            Some((_, gid, _)) => gid,
            None => number.ok_or(UserError::Unknown {
                kind: "group",
                name: clip(group, 60),
                file: "group",
            })?,
        };
    } else if let Some(entry) = &entry {
        further = groups(group_text)
            .filter(|(_, id, members)| *id != gid && members.split(',').any(|member| member == entry.name))
            .map(|(_, id, _)| id)
            .take(64)
            .collect();
    }
    for id in [uid, gid].iter().chain(&further) {
        if *id > 65_535 {
            return Err(UserError::OutOfRange(*id));
        }
    }
    Ok(Identity {
        uid,
        gid,
        groups: further,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\nbroken\n:x:1:1::\n77:x:5:6::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:web\nlog:x:40:web,root\nadm:x:41:root\n";

    #[test]
    fn users_table() {
        let id = |uid, gid, groups: &[u32]| Identity {
            uid,
            gid,
            groups: groups.to_vec(),
        };
        let cases = [
            ("", id(0, 0, &[40, 41])),
            ("root", id(0, 0, &[40, 41])),
            ("web", id(33, 34, &[40])),
            ("33", id(33, 34, &[40])),
            ("web:adm", id(33, 41, &[])),
            ("1000", id(1000, 0, &[])),
            ("1000:50", id(1000, 50, &[])),
            ("77", id(5, 6, &[])),
        ];
        for (user, want) in cases {
            assert_eq!(resolve(user, PASSWD, GROUP).unwrap(), want, "{user}");
        }
        assert_eq!(resolve("root", "", "").unwrap(), id(0, 0, &[]));
        assert!(
            resolve("nobody", PASSWD, GROUP)
                .unwrap_err()
                .to_string()
                .contains("/etc/passwd")
        );
        assert!(
            resolve("web:none", PASSWD, GROUP)
                .unwrap_err()
                .to_string()
                .contains("/etc/group")
        );
        assert_eq!(
            resolve("70000", PASSWD, GROUP),
            Err(UserError::OutOfRange(70_000))
        );
        assert_eq!(need(""), Need::Nothing(0, 0));
        assert_eq!(need("5:6"), Need::Nothing(5, 6));
        assert_eq!(need("5"), Need::Files);
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic_nor_leave_the_range(user in ".{0,20}", passwd in "[a-z0-9:,\n]{0,200}", group in "[a-z0-9:,\n]{0,200}") {
            if let Ok(identity) = resolve(&user, &passwd, &group) {
                prop_assert!(identity.uid <= 65_535 && identity.gid <= 65_535);
                prop_assert!(identity.groups.iter().all(|g| *g <= 65_535));
            }
        }
    }
}
