//! What only btrfs's own trees tell: how much each subvolume uses, and which subvolumes lie in which.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;

const ROOT_TREE: u64 = 1;
const QUOTA_TREE: u64 = 8;
const ROOT_ITEM: u32 = 132;
const ROOT_REF: u32 = 156;
const QGROUP_STATUS: u32 = 240;
const QGROUP_INFO: u32 = 242;
const QGROUP_LIMIT: u32 = 244;
/// Of a limit's flags: there is one on referenced bytes.
const LIMITS_REFERENCED: u64 = 1;
/// First number that a subvolume may have, and the first that is none.
const SUBVOLUMES: std::ops::Range<u64> = 256..1 << 48;
/// Room for answers, bytes; a thousand entries take two or three calls.
const BUFFER: usize = 64 << 10;

#[repr(C)]
#[derive(Clone, Copy)]
struct Key {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transaction: u64,
    max_transaction: u64,
    min_type: u32,
    max_type: u32,
    items: u32,
    unused: u32,
    more_unused: [u64; 4],
}

/// The kernel's struct ends before the buffer; its size is part of the call's number.
#[repr(C)]
struct Head {
    key: Key,
    buffer_size: u64,
}

#[repr(C)]
struct SearchArgs {
    head: Head,
    buffer: [u8; BUFFER],
}

const _: () = assert!(size_of::<Head>() == 112);

mod ioctls {
    nix::ioctl_readwrite_bad!(
        search,
        nix::request_code_readwrite!(0x94, 17, size_of::<super::Head>()),
        super::SearchArgs
    );
}

/// One entry of a tree.
struct Item<'a> {
    object: u64,
    kind: u32,
    offset: u64,
    data: &'a [u8],
}

fn number(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// Calls `each` on all entries of `tree` between two keys (object, type, offset), both included. Keys are in order, so what
/// lies between holds other objects' and types' entries too: `each` must choose.
fn search(
    anywhere: impl AsFd,
    tree: u64,
    from: (u64, u32, u64),
    to: (u64, u32, u64),
    mut each: impl FnMut(&Item<'_>),
) -> io::Result<()> {
    let fd = anywhere.as_fd().as_raw_fd();
    let key = |from: (u64, u32, u64)| Key {
        tree,
        min_object: from.0,
        max_object: to.0,
        min_offset: from.2,
        max_offset: to.2,
        min_transaction: 0,
        max_transaction: u64::MAX,
        min_type: from.1,
        max_type: to.1,
        items: u32::MAX,
        unused: 0,
        more_unused: [0; 4],
    };
    let mut args = Box::new(SearchArgs {
        head: Head {
            key: key(from),
            buffer_size: BUFFER as u64,
        },
        buffer: [0; BUFFER],
    });
    loop {
        // SAFETY: the argument has the kernel's layout, its buffer is as long as it says, and it outlives the call.
        unsafe { ioctls::search(fd, &raw mut *args) }?;
        let found = args.head.key.items;
        if found == 0 {
            return Ok(());
        }
        let broken = || io::Error::from(io::ErrorKind::InvalidData);
        let (mut at, mut last) = (0usize, from);
        for _ in 0..found {
            // transaction, object, offset; type and length share eight bytes.
            let head = args.buffer.get(at..at + 32).ok_or_else(broken)?;
            let word = |n: usize| u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| head[n * 8 + i]));
            let half = |n: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|i| head[n * 4 + i]));
            let length = half(7) as usize;
            let data = args.buffer.get(at + 32..at + 32 + length).ok_or_else(broken)?;
            last = (word(1), half(6), word(2));
            each(&Item {
                object: last.0,
                kind: last.1,
                offset: last.2,
                data,
            });
            at += 32 + length;
        }
        // The next key after the last one seen.
        let next = match last {
            (object, kind, offset) if offset < u64::MAX => (object, kind, offset + 1),
            (object, kind, _) if kind < u32::from(u8::MAX) => (object, kind + 1, 0),
            (object, _, _) if object < u64::MAX => (object + 1, 0, 0),
            _ => return Ok(()),
        };
        if next > to {
            return Ok(());
        }
        args.head.key = key(next);
    }
}

/// What quotas count for one subvolume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes it shows, whoever shares them; as of the last commit.
    pub referenced: u64,
    /// Bytes that would be free if it went; as of the last commit.
    pub exclusive: u64,
    /// Limit on `referenced`, bytes; `None`: no limit.
    pub limit: Option<u64>,
}

/// How quotas are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaState {
    /// They count.
    pub on: bool,
    /// They charge each extent to its first owner alone.
    pub simple: bool,
    /// A new count of everything is under way.
    pub counting: bool,
    /// The numbers are wrong until they are counted anew.
    pub inconsistent: bool,
}

/// The state of quotas; all false where they were never on.
///
/// # Errors
/// `ENOTTY` where it isn't btrfs; `EPERM` unless root.
pub fn quota_state(anywhere: impl AsFd) -> io::Result<QuotaState> {
    let mut flags = 0;
    let found = search(
        anywhere,
        QUOTA_TREE,
        (0, QGROUP_STATUS, 0),
        (0, QGROUP_STATUS, 0),
        |item| {
            flags = number(item.data, 16).unwrap_or(0);
        },
    );
    match found {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    Ok(QuotaState {
        on: flags & 1 != 0,
        counting: flags & 2 != 0,
        inconsistent: flags & 4 != 0,
        simple: flags & 8 != 0,
    })
}

/// What is counted for every subvolume, by its number; also for those that are being cleaned away.
///
/// # Errors
/// `ENOENT` where quotas are off.
pub fn usage(anywhere: impl AsFd) -> io::Result<BTreeMap<u64, Usage>> {
    let mut found: BTreeMap<u64, Usage> = BTreeMap::new();
    search(
        anywhere,
        QUOTA_TREE,
        (0, QGROUP_INFO, 0),
        (0, QGROUP_LIMIT, u64::MAX),
        |item| {
            // Numbers beyond are groups of subvolumes, which berth makes none of.
            if !SUBVOLUMES.contains(&item.offset) {
                return;
            }
            let usage = found.entry(item.offset).or_default();
            match item.kind {
                QGROUP_INFO => {
                    usage.referenced = number(item.data, 8).unwrap_or(0);
                    usage.exclusive = number(item.data, 24).unwrap_or(0);
                }
                QGROUP_LIMIT if number(item.data, 0).unwrap_or(0) & LIMITS_REFERENCED != 0 => {
                    usage.limit = number(item.data, 8);
                }
                _ => {}
            }
        },
    )?;
    Ok(found)
}

/// A subvolume within another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nested {
    /// Its number.
    pub id: u64,
    /// The number of the subvolume it lies in.
    pub parent: u64,
    /// Inode number of the folder it lies in, in `parent`.
    pub folder: u64,
    /// Its name there.
    pub name: OsString,
}

/// The subvolumes that lie directly in the subvolume `parent`, or in any for `None`.
///
/// # Errors
/// `ENOTTY` where it isn't btrfs; `EPERM` unless root.
pub fn nested(anywhere: impl AsFd, parent: Option<u64>) -> io::Result<Vec<Nested>> {
    let (first, last) = parent.map_or((5, SUBVOLUMES.end), |one| (one, one));
    let mut found = Vec::new();
    search(
        anywhere,
        ROOT_TREE,
        (first, ROOT_REF, 0),
        (last, ROOT_REF, u64::MAX),
        |item| {
            if item.kind != ROOT_REF {
                return;
            }
            // folder, sequence, length of the name, name
            if let (Some(folder), Some(name)) = (number(item.data, 0), item.data.get(18..)) {
                found.push(Nested {
                    id: item.offset,
                    parent: item.object,
                    folder,
                    name: OsString::from_vec(name.to_vec()),
                });
            }
        },
    )?;
    Ok(found)
}

/// Numbers of all subvolumes that exist, those being cleaned away included.
///
/// # Errors
/// `ENOTTY` where it isn't btrfs; `EPERM` unless root.
pub fn subvolumes(anywhere: impl AsFd) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    search(
        anywhere,
        ROOT_TREE,
        (SUBVOLUMES.start, ROOT_ITEM, 0),
        (SUBVOLUMES.end, ROOT_ITEM, u64::MAX),
        |item| {
            if item.kind == ROOT_ITEM && SUBVOLUMES.contains(&item.object) {
                found.push(item.object);
            }
        },
    )?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_refuses() {
        let open = std::fs::File::open("/dev/shm").unwrap();
        assert!(usage(&open).is_err() && nested(&open, None).is_err() && subvolumes(&open).is_err());
        assert!(quota_state(&open).is_err());
    }

    #[test]
    fn short_entries_have_no_numbers() {
        assert_eq!(number(&[1, 0, 0, 0, 0, 0, 0, 0], 0), Some(1));
        assert_eq!(number(&[1, 0, 0], 0), None);
    }
}
