//! Counters of one container, read from files that stay open.
//!
//! Owns the parsing of statistics. A counter that can't be read or parsed is absent. Needs seven descriptors a container
//! (five on v2), so the agent's limit of open files has to be raised from the customary 1,024.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::convert::parse_pressure;
use super::{Meter, RawStats, Stalls};

/// No statistics file is larger; a larger one counts as unreadable.
const BUFFER: usize = 16 << 10;
/// After so many reads in a row without CPU time everything is read again.
const MAX_CARRIED: u8 = 10;

/// One file, open while it can be read.
#[derive(Debug)]
struct Gauge {
    path: PathBuf,
    file: Option<File>,
}

impl Gauge {
    fn new(dir: &Path, name: &str) -> Self {
        Self {
            path: dir.join(name),
            file: None,
        }
    }

    /// The content. A group that was removed and made again is found again: the old file fails, a new one is opened.
    fn read<'b>(&mut self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let mut got = None;
        for fresh in [false, true] {
            if self.file.is_none() {
                self.file = File::open(&self.path).ok();
            } else if fresh {
                break;
            }
            match self.file.as_ref()?.read_at(buffer, 0) {
                Ok(count) => {
                    got = Some(count);
                    break;
                }
                Err(_) => self.file = None,
            }
        }
        got.filter(|count| *count < buffer.len())
            .map(|count| &buffer[..count])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The files of one container.
#[derive(Debug)]
pub(super) struct FileMeter {
    version: Version,
    cpu: Gauge,
    /// v1 only; on v2 `cpu` has it too.
    throttling: Option<Gauge>,
    memory: Gauge,
    memory_stat: Gauge,
    oom: Gauge,
    pids: Gauge,
    io: Gauge,
    last: RawStats,
    carried: u8,
}

impl FileMeter {
    pub(super) fn v1(cpuacct: &Path, cpu: &Path, memory: &Path, pids: &Path, blkio: &Path) -> Self {
        Self {
            version: Version::V1,
            cpu: Gauge::new(cpuacct, "cpuacct.usage"),
            throttling: Some(Gauge::new(cpu, "cpu.stat")),
            memory: Gauge::new(memory, "memory.usage_in_bytes"),
            memory_stat: Gauge::new(memory, "memory.stat"),
            oom: Gauge::new(memory, "memory.oom_control"),
            pids: Gauge::new(pids, "pids.current"),
            io: Gauge::new(blkio, "blkio.throttle.io_service_bytes_recursive"),
            last: RawStats::default(),
            carried: 0,
        }
    }

    pub(super) fn v2(dir: &Path) -> Self {
        Self {
            version: Version::V2,
            cpu: Gauge::new(dir, "cpu.stat"),
            throttling: None,
            memory: Gauge::new(dir, "memory.current"),
            memory_stat: Gauge::new(dir, "memory.stat"),
            oom: Gauge::new(dir, "memory.events"),
            pids: Gauge::new(dir, "pids.current"),
            io: Gauge::new(dir, "io.stat"),
            last: RawStats::default(),
            carried: 0,
        }
    }
}

impl Meter for FileMeter {
    fn read(&mut self) -> RawStats {
        let mut space = [0u8; BUFFER];
        let buffer = &mut space[..];
        let mut now = RawStats::default();
        match self.version {
            Version::V1 => now.cpu_ns = self.cpu.read(buffer).and_then(number),
            Version::V2 => {
                if let Some(text) = self.cpu.read(buffer) {
                    now.cpu_ns = field(text, b"usage_usec").and_then(|us| us.checked_mul(1_000));
                    now.periods = field(text, b"nr_periods");
                    now.throttled = field(text, b"nr_throttled");
                }
            }
        }
        now.memory = self.memory.read(buffer).and_then(number);
        let io = self.io.read(buffer).and_then(match self.version {
            Version::V1 => io_v1,
            Version::V2 => io_v2,
        });
        (now.read_bytes, now.write_bytes) =
            io.map_or((None, None), |(read, write)| (Some(read), Some(write)));

        // Forking, throttling and being killed all take CPU time: without any, those counters stand still.
        let idle = now.cpu_ns.is_some() && now.cpu_ns == self.last.cpu_ns && self.carried < MAX_CARRIED;
        self.carried = if idle { self.carried + 1 } else { 0 };
        let last = if idle { self.last } else { RawStats::default() };
        if let Some(gauge) = &mut self.throttling {
            (now.periods, now.throttled) = match (last.periods, last.throttled) {
                (Some(periods), Some(throttled)) => (Some(periods), Some(throttled)),
                _ => gauge.read(buffer).map_or((None, None), |text| {
                    (field(text, b"nr_periods"), field(text, b"nr_throttled"))
                }),
            };
        }
        // The cache can be reclaimed without the container's doing, but then its usage changes.
        now.inactive_file = match last.inactive_file {
            Some(bytes) if now.memory == last.memory => Some(bytes),
            _ => self.memory_stat.read(buffer).and_then(|text| match self.version {
                Version::V1 => field(text, b"total_inactive_file"),
                Version::V2 => field(text, b"inactive_file"),
            }),
        };
        now.oom_kills = last
            .oom_kills
            .or_else(|| self.oom.read(buffer).and_then(|text| field(text, b"oom_kill")));
        now.pids = last.pids.or_else(|| self.pids.read(buffer).and_then(number));
        self.last = now;
        now
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

fn field(text: &[u8], key: &[u8]) -> Option<u64> {
    text.split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(b" "))
        .and_then(number)
}

/// Bytes read and written, summed over devices, of `major:minor Read bytes` lines.
fn io_v1(text: &[u8]) -> Option<(u64, u64)> {
    let (mut read, mut write) = (0u64, 0u64);
    for line in text.split(|byte| *byte == b'\n') {
        let mut words = line.split(|byte| *byte == b' ');
        let (_, kind, value) = (words.next(), words.next(), words.next());
        match kind {
            Some(b"Read") => read = read.checked_add(number(value?)?)?,
            Some(b"Write") => write = write.checked_add(number(value?)?)?,
            _ => {}
        }
    }
    Some((read, write))
}

/// The same of `major:minor rbytes=… wbytes=…` lines.
fn io_v2(text: &[u8]) -> Option<(u64, u64)> {
    let (mut read, mut write) = (0u64, 0u64);
    for word in text.split(|byte| matches!(byte, b' ' | b'\n')) {
        if let Some(value) = word.strip_prefix(b"rbytes=") {
            read = read.checked_add(number(value)?)?;
        } else if let Some(value) = word.strip_prefix(b"wbytes=") {
            write = write.checked_add(number(value)?)?;
        }
    }
    Some((read, write))
}

/// The stalls of a v2 group.
pub(super) fn stalls(dir: &Path) -> Stalls {
    let one = |name: &str, is_cpu| {
        let text = std::fs::read_to_string(dir.join(name)).ok()?;
        parse_pressure(&text, is_cpu)
    };
    Stalls {
        cpu: one("cpu.pressure", true),
        memory: one("memory.pressure", false),
        io: one("io.pressure", false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn v2_files(dir: &Path, cpu: u64, memory: u64, pids: u64) {
        let cpu = format!("usage_usec {cpu}\nuser_usec 1\nnr_periods 10\nnr_throttled 4\n");
        fs::write(dir.join("cpu.stat"), cpu).unwrap();
        fs::write(dir.join("memory.current"), format!("{memory}\n")).unwrap();
        fs::write(dir.join("memory.stat"), "anon 5\ninactive_file 100\n").unwrap();
        fs::write(dir.join("memory.events"), "oom 9\noom_kill 2\noom_group_kill 0\n").unwrap();
        fs::write(dir.join("pids.current"), format!("{pids}\n")).unwrap();
        fs::write(
            dir.join("io.stat"),
            "8:0 rbytes=5 wbytes=6 rios=1\n8:16 rbytes=1 wbytes=1\n7:0\n",
        )
        .unwrap();
    }

    #[test]
    fn v2_counters() {
        let dir = tempfile::tempdir().unwrap();
        v2_files(dir.path(), 7, 4096, 3);
        let want = RawStats {
            cpu_ns: Some(7_000),
            periods: Some(10),
            throttled: Some(4),
            memory: Some(4096),
            inactive_file: Some(100),
            oom_kills: Some(2),
            pids: Some(3),
            read_bytes: Some(6),
            write_bytes: Some(7),
        };
        assert_eq!(FileMeter::v2(dir.path()).read(), want);
    }

    #[test]
    fn no_sample_is_invented_when_a_read_fails() {
        let missing = FileMeter::v2(Path::new("/nonexistent/group")).read();
        assert_eq!(missing, RawStats::default());
        let missing = [Path::new("/nonexistent"); 5];
        let [a, b, c, d, e] = missing;
        assert_eq!(FileMeter::v1(a, b, c, d, e).read(), RawStats::default());

        let dir = tempfile::tempdir().unwrap();
        v2_files(dir.path(), 7, 4096, 3);
        for (file, broken) in [
            ("memory.current", "nan"),
            ("pids.current", ""),
            ("io.stat", "8:0 rbytes=-1 wbytes=1"),
            ("cpu.stat", "usage_usec 99999999999999999999999\n"),
        ] {
            fs::write(dir.path().join(file), broken).unwrap();
        }
        fs::remove_file(dir.path().join("memory.events")).unwrap();
        let stats = FileMeter::v2(dir.path()).read();
        let want = RawStats {
            inactive_file: Some(100),
            ..RawStats::default()
        };
        assert_eq!(stats, want);
        fs::write(dir.path().join("pids.current"), vec![b'1'; BUFFER]).unwrap();
        assert_eq!(
            FileMeter::v2(dir.path()).read().pids,
            None,
            "cut content must not count"
        );
    }

    #[test]
    fn carries_over_only_while_idle_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        v2_files(dir.path(), 7, 4096, 3);
        let mut meter = FileMeter::v2(dir.path());
        meter.read();
        fs::write(dir.path().join("pids.current"), "5").unwrap();
        assert_eq!(meter.read().pids, Some(3));
        let seen = (0..=MAX_CARRIED).filter(|_| meter.read().pids == Some(3)).count();
        assert_eq!(seen, usize::from(MAX_CARRIED) - 1);
        assert_eq!(meter.read().pids, Some(5));
        v2_files(dir.path(), 8, 8192, 6);
        let stats = meter.read();
        assert_eq!((stats.pids, stats.memory), (Some(6), Some(8192)));
    }

    #[test]
    fn v1_io_lines() {
        let text = b"254:0 Read 10\n254:0 Write 20\n254:0 Sync 30\n8:0 Read 1\n8:0 Write 2\nTotal 33\n";
        assert_eq!(io_v1(text), Some((11, 22)));
        assert_eq!(io_v1(b"Total 0\n"), Some((0, 0)));
        assert_eq!(io_v1(b"254:0 Read\n"), None);
        assert_eq!(io_v1(b"254:0 Read x\n"), None);
    }
}
