//! The writing side: a file that rotates by size and count, and a sink that never fails its caller.
//!
//! `current.log` is written; when full it becomes `1.log`, `1.log` becomes `2.log`, and the oldest goes. A container must
//! never wait for a full disk: what can't be written is counted and dropped, and a marker says how many lines are missing
//! once writing works again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::record::{self, Source};

/// Name of the file that is written.
pub const CURRENT: &str = "current.log";

/// Name of the `n`th older file.
pub fn older(n: u32) -> String {
    format!("{n}.log")
}

/// Limits of a container's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Size at which a file is full, bytes.
    pub max_size: u64,
    /// Files kept, the current included; at least 1.
    pub max_files: u32,
}

/// A rotating log in one folder.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    bounds: Bounds,
    file: Option<File>,
    size: u64,
    dropped: u64,
    torn: bool,
}

impl Log {
    /// A log in `dir`; the file is opened with the first write, and again after every failure.
    pub fn new(dir: &Path, bounds: Bounds) -> Self {
        Self {
            dir: dir.to_owned(),
            bounds,
            file: None,
            size: 0,
            dropped: 0,
            torn: false,
        }
    }

    fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(self.dir.join(CURRENT))?;
            self.size = file.metadata()?.len();
            // A predecessor may have been killed in the middle of a line.
            self.torn = self.size > 0;
            self.file = Some(file);
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        if self.bounds.max_files <= 1 {
            fs::remove_file(self.dir.join(CURRENT))?;
            return self.open();
        }
        for n in (1..self.bounds.max_files - 1).rev() {
            match fs::rename(self.dir.join(older(n)), self.dir.join(older(n + 1))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(self.dir.join(CURRENT), self.dir.join(older(1)))?;
        self.open()
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.open()?;
        if self.size > 0 && self.size + bytes.len() as u64 > self.bounds.max_size {
            self.rotate()?;
        }
        let Some(file) = &mut self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if std::mem::take(&mut self.torn) {
            file.write_all(b"\n")?;
            self.size += 1;
        }
        file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Appends whole records, `lines` of them; drops and counts them where that fails.
    pub fn write(&mut self, now: u64, records: &[u8], lines: u64) {
        if self.dropped > 0 {
            let mut marker = Vec::with_capacity(120);
            let text = format!(
                "berth: {} lines were lost, they could not be written to disk",
                self.dropped
            );
            record::write(&mut marker, now, Source::Berth, false, text.as_bytes());
            if self.append(&marker).is_ok() {
                self.dropped = 0;
            } else {
                self.file = None;
            }
        }
        if self.append(records).is_err() {
            self.file = None;
            self.dropped += lines;
        }
    }

    /// Lines lost since the last marker.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(n: u64) -> Vec<u8> {
        let mut out = Vec::new();
        record::write(&mut out, n, Source::Out, false, format!("line {n:06}").as_bytes());
        out
    }

    #[test]
    fn it_rotates_by_size_and_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(
            dir.path(),
            Bounds {
                max_size: 1000,
                max_files: 3,
            },
        );
        for n in 0..500 {
            log.write(n, &line(n), 1);
        }
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["1.log", "2.log", CURRENT]);
        for name in names {
            assert!(fs::metadata(dir.path().join(name)).unwrap().len() <= 1000);
        }
        let last = fs::read_to_string(dir.path().join(CURRENT)).unwrap();
        assert!(last.ends_with("line 000499\n"));
    }

    #[test]
    fn lost_lines_are_counted_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("logs");
        let mut log = Log::new(
            &gone,
            Bounds {
                max_size: 1000,
                max_files: 3,
            },
        );
        log.write(1, &line(1), 1);
        log.write(2, &line(2), 1);
        assert_eq!(log.dropped(), 2);
        fs::create_dir(&gone).unwrap();
        log.write(3, &line(3), 1);
        let text = fs::read_to_string(gone.join(CURRENT)).unwrap();
        assert!(
            text.contains("2 lines were lost") && text.contains("line 000003"),
            "{text}"
        );
    }

    #[test]
    fn a_torn_line_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CURRENT), "123 oF half a li").unwrap();
        Log::new(
            dir.path(),
            Bounds {
                max_size: 1000,
                max_files: 3,
            },
        )
        .write(4, &line(4), 1);
        let text = fs::read(dir.path().join(CURRENT)).unwrap();
        let read: Vec<_> = text.split(|b| *b == b'\n').filter_map(record::read).collect();
        assert_eq!(read.last().unwrap().text, "line 000004");
    }
}
