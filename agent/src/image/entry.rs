//! What a layer's tar entry may be.
//!
//! Pure judgements over names, links, types and pax records. Refuses what would reach outside the image's root, hide
//! in the overlay, or make the unpacker write what the archive does not hold. containerd's own unpacker confines paths
//! too; this is the second wall, and the one that explains itself.

/// Longest path inside an image, bytes.
const MAX_PATH: usize = 4096;
const MAX_COMPONENT: usize = 255;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The path leaves the root.
    #[error("its path leaves the image's root")]
    Escape,
    /// A hard link to something outside.
    #[error("its link target leaves the image's root")]
    LinkEscape,
    /// Too long, empty, or with a NUL.
    #[error(
        "its path is empty, has a NUL byte or is too long (limit {MAX_PATH} bytes, {MAX_COMPONENT} a name)"
    )]
    Path,
    /// The link has no usable target.
    #[error("its link target is empty, has a NUL byte or is too long")]
    LinkTarget,
    /// A device node.
    #[error("it is a device node; containers get their devices from the host, rebuild the image without it")]
    Device,
    /// A GNU sparse file, or a type nobody unpacks.
    #[error("its type {0:?} is not supported in image layers")]
    Kind(char),
    /// A pax record that can't be read.
    #[error("its pax record is malformed")]
    Pax,
    /// An attribute the overlay file system would obey.
    #[error("it sets the extended attribute {0:?}, which images may not")]
    Attribute(String),
}

/// What pax records change about the next entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pax {
    /// Replaces the name.
    pub path: Option<Vec<u8>>,
    /// Replaces the link target.
    pub link: Option<Vec<u8>>,
    /// Replaces the size, bytes.
    pub size: Option<u64>,
}

impl Pax {
    /// Reads the records of a pax header: `LENGTH KEY=VALUE\n` each, where the length counts all of it. Values may hold
    /// any byte, newlines too.
    ///
    /// # Errors
    /// Records that are malformed, make a sparse file, or set a refused attribute.
    pub fn parse(mut data: &[u8]) -> Result<Self, EntryError> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let space = data.iter().take(12).position(|b| *b == b' ');
            let space = space.ok_or(EntryError::Pax)?;
            let length = decimal(&data[..space]).ok_or(EntryError::Pax)?;
            let length = usize::try_from(length).map_err(|_| EntryError::Pax)?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(EntryError::Pax);
            }
            let record = &data[space + 1..length - 1];
            data = &data[length..];
            let equals = record.iter().position(|b| *b == b'=').ok_or(EntryError::Pax)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() || key.contains(&0) {
                return Err(EntryError::Pax);
            }
            match key {
                b"path" => pax.path = Some(value.to_vec()),
                b"linkpath" => pax.link = Some(value.to_vec()),
                b"size" => pax.size = Some(decimal(value).ok_or(EntryError::Pax)?),
                _ if key.starts_with(b"GNU.sparse.") => return Err(EntryError::Kind('S')),
                _ => attribute(key)?,
            }
        }
        Ok(pax)
    }
}

fn attribute(key: &[u8]) -> Result<(), EntryError> {
    let name = key
        .strip_prefix(b"SCHILY.xattr.")
        .or_else(|| key.strip_prefix(b"LIBARCHIVE.xattr."));
    let Some(name) = name else { return Ok(()) };
    // The overlay reads redirects and opaque marks from these.
    if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
        return Err(EntryError::Attribute(shown(name)));
    }
    Ok(())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A name as an error may show it: printable and short.
pub(super) fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(&name[..name.len().min(200)]);
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    berth_common::id::clip(&text, 80)
}

fn inside(path: &[u8]) -> bool {
    path.split(|b| *b == b'/').all(|part| part != b"..")
}

fn well_formed(path: &[u8]) -> bool {
    !path.is_empty() && path.len() <= MAX_PATH && !path.contains(&0)
}

/// Judges a name. A leading slash is taken as the image's root, as every unpacker does.
///
/// # Errors
/// If it is malformed or leaves the root, also by way of a whiteout.
pub fn check_path(path: &[u8]) -> Result<(), EntryError> {
    let short = path.split(|b| *b == b'/').all(|part| part.len() <= MAX_COMPONENT);
    if !well_formed(path) || !short {
        return Err(EntryError::Path);
    }
    if !inside(path) {
        return Err(EntryError::Escape);
    }
    let base = path
        .split(|b| *b == b'/')
        .rfind(|part| !part.is_empty())
        .unwrap_or_default();
    match base.strip_prefix(WHITEOUT) {
        Some(_) if base == OPAQUE => Ok(()),
        // A whiteout deletes what its rest names: `.wh...` would name the parent.
        Some(b"" | b"." | b"..") => Err(EntryError::Escape),
        _ => Ok(()),
    }
}

/// Judges an entry by its type, with its final name and link target.
///
/// # Errors
/// For what images may not hold. A character device 0:0 is an overlay whiteout and fine.
pub fn check_entry(kind: u8, path: &[u8], link: Option<&[u8]>, device: (u32, u32)) -> Result<(), EntryError> {
    check_path(path)?;
    match kind {
        b'0' | 0 | b'7' | b'5' | b'6' => Ok(()),
        b'1' => match link {
            Some(link) if well_formed(link) && inside(link) => Ok(()),
            Some(link) if well_formed(link) => Err(EntryError::LinkEscape),
            _ => Err(EntryError::LinkTarget),
        },
        // A symbolic link may point anywhere: it is followed inside the container's own root.
        b'2' => match link {
            Some(link) if well_formed(link) => Ok(()),
            _ => Err(EntryError::LinkTarget),
        },
        b'3' if device == (0, 0) => Ok(()),
        b'3' | b'4' => Err(EntryError::Device),
        other => Err(EntryError::Kind(char::from(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths() {
        let long = vec![b'a'; 256];
        let deep = b"a/".repeat(2049);
        let table: [(&[u8], Result<(), EntryError>); 14] = [
            (b"etc/passwd", Ok(())),
            (b"./", Ok(())),
            (b"/etc/passwd", Ok(())),
            (b"a/..b/c..", Ok(())),
            (b"a/.wh.b", Ok(())),
            (b"a/.wh..wh..opq", Ok(())),
            (b"../x", Err(EntryError::Escape)),
            (b"a/../../x", Err(EntryError::Escape)),
            (b"a/.wh...", Err(EntryError::Escape)),
            (b"a/.wh.", Err(EntryError::Escape)),
            (b"", Err(EntryError::Path)),
            (b"a\0b", Err(EntryError::Path)),
            (&long, Err(EntryError::Path)),
            (&deep, Err(EntryError::Path)),
        ];
        for (path, expected) in table {
            assert_eq!(check_path(path), expected, "{}", shown(path));
        }
    }

    #[test]
    fn kinds_and_links() {
        type Row = (u8, Option<&'static [u8]>, (u32, u32), Result<(), EntryError>);
        let table: [Row; 10] = [
            (b'0', None, (0, 0), Ok(())),
            (b'2', Some(b"/../../etc"), (0, 0), Ok(())),
            (b'2', None, (0, 0), Err(EntryError::LinkTarget)),
            (b'1', Some(b"bin/sh"), (0, 0), Ok(())),
            (b'1', Some(b"../etc/shadow"), (0, 0), Err(EntryError::LinkEscape)),
            (b'1', Some(b""), (0, 0), Err(EntryError::LinkTarget)),
            (b'3', None, (0, 0), Ok(())),
            (b'3', None, (1, 3), Err(EntryError::Device)),
            (b'4', None, (0, 0), Err(EntryError::Device)),
            (b'S', None, (0, 0), Err(EntryError::Kind('S'))),
        ];
        for (kind, link, device, expected) in table {
            assert_eq!(
                check_entry(kind, b"x", link, device),
                expected,
                "{}",
                char::from(kind)
            );
        }
    }

    #[test]
    fn pax_records() {
        let pax = Pax::parse(b"12 path=a/b\n11 size=12\n30 SCHILY.xattr.user.x=a\nb=cd\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.size, Some(12));
        for bad in [
            &b"99 path=a\n"[..],
            b"x path=a\n",
            b"10 path=ab",
            b"8 nokey\n",
            b"0 \n",
            b"-1 a=b\n",
            b"13 size=1x23\n",
            b"99999999999999999999 a=b\n",
        ] {
            assert_eq!(Pax::parse(bad), Err(EntryError::Pax), "{}", shown(bad));
        }
        assert_eq!(Pax::parse(b"22 GNU.sparse.major=1\n"), Err(EntryError::Kind('S')));
        let redirect = b"49 SCHILY.xattr.trusted.overlay.redirect=/secret\n";
        assert!(matches!(Pax::parse(redirect), Err(EntryError::Attribute(_))));
    }

    proptest! {
        #[test]
        fn pax_never_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Pax::parse(&data);
        }

        #[test]
        fn an_accepted_path_never_climbs(path in "[a./]{1,20}(/[.]wh[.][.]{0,3})?") {
            if check_path(path.as_bytes()).is_ok() {
                prop_assert!(path.split('/').all(|part| part != ".."));
                prop_assert!(!path.trim_end_matches('/').ends_with(".wh..."));
            }
        }
    }
}
