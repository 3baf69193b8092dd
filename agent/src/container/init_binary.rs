//! Whether a program can run in any image: it must not ask for an interpreter that the image may not have.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const INTERPRETER: u32 = 3;

/// Whether the 64-bit ELF program at `path` is linked statically.
///
/// # Errors
/// When it can't be read or is no such program.
pub fn is_static(path: &Path) -> io::Result<bool> {
    let bad = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "not a 64-bit little-endian ELF program",
        )
    };
    let file = File::open(path)?;
    let mut head = [0u8; 64];
    file.read_exact_at(&mut head, 0)?;
    if head[..6] != [0x7f, b'E', b'L', b'F', 2, 1] {
        return Err(bad());
    }
    let offset = u64::from_le_bytes(head[32..40].try_into().map_err(|_| bad())?);
    let size = u64::from(u16::from_le_bytes([head[54], head[55]]));
    let count = u64::from(u16::from_le_bytes([head[56], head[57]]));
    if size < 4 || count > 128 {
        return Err(bad());
    }
    for n in 0..count {
        let mut kind = [0u8; 4];
        let at = n
            .checked_mul(size)
            .and_then(|skip| offset.checked_add(skip))
            .ok_or_else(bad)?;
        file.read_exact_at(&mut kind, at)?;
        if u32::from_le_bytes(kind) == INTERPRETER {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busybox_is_static_and_this_test_is_not() {
        assert!(is_static(Path::new("/bin/busybox")).unwrap());
        assert!(!is_static(&std::env::current_exe().unwrap()).unwrap());
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("short", &b"\x7fELF"[..]),
            ("script", &[b'#'; 100][..]),
            ("odd", &[0xff; 64][..]),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            assert!(is_static(&path).is_err(), "{name}");
        }
    }
}
