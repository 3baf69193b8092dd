//! Reading and writing single cgroup files, with errors that name the file and the data.

use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Write};
use std::path::Path;

use berth_common::id::clip;

use super::CgroupError;

/// No file read here is larger; a larger one is cut rather than trusted with our memory.
const MAX_FILE: u64 = 1 << 20;

pub(super) fn io(operation: impl Into<String>, path: &Path, source: Error) -> CgroupError {
    CgroupError::Io {
        operation: operation.into(),
        path: path.display().to_string(),
        source,
    }
}

pub(super) fn unexpected(path: &Path, found: &str, expected: impl Into<String>) -> CgroupError {
    CgroupError::Unexpected {
        path: path.display().to_string(),
        found: clip(found.trim(), 80),
        expected: expected.into(),
    }
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
        .map_err(|source| io("reading", path, source))?;
    Ok(text)
}

/// The number in a file of one number; `max` and `-1` are `None`.
pub(super) fn read_number(path: &Path) -> Result<Option<u64>, CgroupError> {
    let text = read(path)?;
    match text.trim() {
        "max" | "-1" => Ok(None),
        number => number
            .parse()
            .map(Some)
            .map_err(|_| unexpected(path, &text, "a number")),
    }
}

/// Writes in one call, as the kernel parses one call at a time. Never creates a file: a missing one means that a
/// controller is missing, and must not turn into a plain file somewhere.
pub(super) fn write_raw(path: &Path, value: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    let written = file.write(value.as_bytes())?;
    if written == value.len() {
        Ok(())
    } else {
        Err(Error::other(format!(
            "only {written} of {} bytes were taken",
            value.len()
        )))
    }
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    write_raw(path, value).map_err(|source| io(format!("writing {value:?} to"), path, source))
}

/// Writes a number unless it is there already, and reads back; `rounded` is what the kernel must then hold.
pub(super) fn set_number(path: &Path, value: u64, rounded: u64) -> Result<(), CgroupError> {
    if read_number(path)? == Some(rounded) {
        return Ok(());
    }
    write(path, &value.to_string())?;
    let held = read(path)?;
    if held.trim().parse() == Ok(rounded) {
        Ok(())
    } else {
        Err(unexpected(
            path,
            &held,
            format!("{rounded} after writing {value}"),
        ))
    }
}

/// The value of `key` in a file of `key value` lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_what_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for (text, want) in [("5\n", Some(5)), ("max\n", None), ("-1\n", None)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read_number(&path).unwrap(), want);
        }
        std::fs::write(&path, "five").unwrap();
        assert!(matches!(read_number(&path), Err(CgroupError::Unexpected { .. })));
        let missing = dir.path().join("missing");
        assert!(set_number(&missing, 1, 1).is_err());
        assert!(!missing.exists(), "a write must not create a plain file");
    }

    #[test]
    fn a_value_the_kernel_changed_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "1").unwrap();
        let error = set_number(&path, 4097, 4096).unwrap_err();
        assert!(
            error.to_string().contains("expected 4096 after writing 4097"),
            "{error}"
        );
        set_number(&path, 4096, 4096).unwrap();
    }
}
