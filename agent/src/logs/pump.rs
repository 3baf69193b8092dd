//! From a container's two pipes into its log, in arrival order, until both end.
//!
//! One thread, two fixed buffers. A flooder is slowed down, never dropped: above `rate` bytes a second the pipes are left
//! unread for a moment, so that the container waits in its own write and the disk belongs to its neighbours too.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::record::{self, MAX_LINE, Source};
use super::writer::Log;

const CHUNK: usize = 64 << 10;

/// Cuts a stream of bytes into records.
#[derive(Debug)]
pub struct Lines {
    source: Source,
    pending: Vec<u8>,
    continued: bool,
}

impl Lines {
    /// Of one stream.
    pub const fn new(source: Source) -> Self {
        Self {
            source,
            pending: Vec::new(),
            continued: false,
        }
    }

    /// Takes bytes and appends the records they complete to `out`; returns how many.
    pub fn push(&mut self, now: u64, mut bytes: &[u8], out: &mut Vec<u8>) -> u64 {
        let mut lines = 0;
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let end = bytes.iter().take(room + 1).position(|b| *b == b'\n');
            match end {
                Some(end) => {
                    if self.pending.is_empty() {
                        record::write(out, now, self.source, false, &bytes[..end]);
                    } else {
                        self.pending.extend_from_slice(&bytes[..end]);
                        record::write(out, now, self.source, false, &self.pending);
                        self.pending.clear();
                    }
                    self.continued = false;
                    lines += 1;
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() <= room => {
                    self.pending.extend_from_slice(bytes);
                    break;
                }
                None => {
                    self.pending.extend_from_slice(&bytes[..room]);
                    record::write(out, now, self.source, true, &self.pending);
                    self.pending.clear();
                    self.continued = true;
                    lines += 1;
                    bytes = &bytes[room..];
                }
            }
        }
        lines
    }

    /// The stream ended: what has no newline is a line too.
    pub fn finish(&mut self, now: u64, out: &mut Vec<u8>) -> u64 {
        if self.pending.is_empty() && !self.continued {
            return 0;
        }
        record::write(out, now, self.source, false, &self.pending);
        self.pending.clear();
        self.continued = false;
        1
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Copies both streams to the log until both have ended. `rate` in bytes a second, 0 for no bound.
pub fn run(out: OwnedFd, err: OwnedFd, log: &mut Log, rate: u64) {
    let mut streams = [
        (Some(File::from(out)), Lines::new(Source::Out)),
        (Some(File::from(err)), Lines::new(Source::Err)),
    ];
    let mut buffer = vec![0u8; CHUNK];
    let mut records = Vec::with_capacity(2 * CHUNK);
    let (mut window, mut used) = (Instant::now(), 0u64);
    loop {
        let ready = {
            let mut fds: Vec<(usize, PollFd<'_>)> = streams
                .iter()
                .enumerate()
                .filter_map(|(i, (file, _))| {
                    Some((i, PollFd::new(file.as_ref()?.as_fd(), PollFlags::POLLIN)))
                })
                .collect();
            if fds.is_empty() {
                return;
            }
            let mut only: Vec<PollFd<'_>> = fds.iter().map(|(_, fd)| fd.clone()).collect();
            if poll(&mut only, PollTimeout::NONE).is_err() {
                continue;
            }
            for (slot, fd) in fds.iter_mut().zip(only) {
                slot.1 = fd;
            }
            fds.iter()
                .filter(|(_, fd)| fd.any().unwrap_or(true))
                .map(|(i, _)| *i)
                .collect::<Vec<_>>()
        };
        let now = now_ms();
        let mut lines = 0;
        for i in ready {
            let (slot, splitter) = &mut streams[i];
            let Some(file) = slot else { continue };
            match file.read(&mut buffer) {
                Ok(0) => {
                    lines += splitter.finish(now, &mut records);
                    *slot = None;
                }
                Ok(n) => {
                    used += n as u64;
                    lines += splitter.push(now, &buffer[..n], &mut records);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => *slot = None,
            }
        }
        if lines > 0 {
            log.write(now, &records, lines);
            records.clear();
        }
        let elapsed = window.elapsed();
        if elapsed >= Duration::from_secs(1) {
            (window, used) = (Instant::now(), 0);
        } else if rate > 0 && used >= rate {
            std::thread::sleep(Duration::from_secs(1) - elapsed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(records: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        for line in records.split(|b| *b == b'\n').filter_map(record::read) {
            text.extend_from_slice(line.text.as_bytes());
            if !line.partial {
                text.push(b'\n');
            }
        }
        text
    }

    #[test]
    fn long_lines_are_split_and_marked() {
        let mut lines = Lines::new(Source::Out);
        let mut out = Vec::new();
        let long = vec![b'x'; 3 * MAX_LINE];
        lines.push(1, &long, &mut out);
        lines.push(1, b"y\n", &mut out);
        let read: Vec<_> = out.split(|b| *b == b'\n').filter_map(record::read).collect();
        assert!(read.iter().all(|l| l.text.len() <= MAX_LINE));
        assert!(!read.last().unwrap().partial && read[0].partial);
        assert_eq!(joined(&out).len(), 3 * MAX_LINE + 2);
    }

    proptest! {
        #[test]
        fn however_it_is_cut_nothing_is_lost(text in "[a-c\n]{0,300}", cuts in proptest::collection::vec(1usize..40, 1..20)) {
            let mut lines = Lines::new(Source::Err);
            let (mut out, mut rest, mut cut) = (Vec::new(), text.as_bytes(), cuts.iter().cycle());
            while !rest.is_empty() {
                let n = (*cut.next().unwrap()).min(rest.len());
                lines.push(1, &rest[..n], &mut out);
                rest = &rest[n..];
            }
            lines.finish(1, &mut out);
            let mut want = text.clone().into_bytes();
            if !want.is_empty() && !want.ends_with(b"\n") {
                want.push(b'\n');
            }
            prop_assert_eq!(joined(&out), want);
        }
    }
}
