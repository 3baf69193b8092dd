//! Traces as they are published: rows of CPU samples, and containers with their arrivals. Plain or gzip.
//!
//! Everything in them is checked: a sample that is no percentage, or a row of another length, is told with its line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use flate2::read::MultiGzDecoder;

/// CPU of one machine or container over a day: samples in percent of what it may use.
pub type Row = Arc<[u8]>;

/// Most that is read of one trace, bytes: far more than any that is known.
const MOST: u64 = 4 << 30;
/// Most CPU and memory that a container can ask for: a thousand cores, a petabyte.
const LARGEST: (u32, u64) = (1_000_000, 1 << 30);
/// Longest line.
const LONGEST: usize = 1 << 20;

fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(File::open(path).with_context(|| format!("opening {}", path.display()))?);
    // Told by what is in it (RFC 1952), whatever it is called.
    let zipped = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    Ok(match zipped {
        true => Box::new(BufReader::new(MultiGzDecoder::new(file).take(MOST))),
        false => Box::new(file.take(MOST)),
    })
}

fn lines(path: &Path) -> anyhow::Result<impl Iterator<Item = anyhow::Result<(usize, String)>>> {
    let read = open(path)?.lines().enumerate();
    let name = path.display().to_string();
    Ok(read.map(move |(at, line)| {
        let line = line.with_context(|| format!("{name}, line {}", at + 1))?;
        ensure!(line.len() <= LONGEST, "{name}, line {}: too long", at + 1);
        Ok((at + 1, line))
    }))
}

/// Rows of samples, one of each machine: percentages with commas between, all of one length.
///
/// # Errors
/// Names the file and the line.
pub fn usage(path: &Path) -> anyhow::Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for line in lines(path)? {
        let (at, line) = line?;
        if line.trim().is_empty() {
            continue;
        }
        let samples = line
            .split(',')
            .map(|word| word.trim().parse::<u8>().ok().filter(|sample| *sample <= 100));
        let Some(row) = samples.collect::<Option<Vec<u8>>>() else {
            bail!(
                "{}, line {at}: a sample is no percentage (0 to 100)",
                path.display()
            );
        };
        if let Some(first) = rows.first() {
            ensure!(
                first.len() == row.len(),
                "{}, line {at}: {} samples, and the first row has {}",
                path.display(),
                row.len(),
                first.len()
            );
        }
        rows.push(row.into());
    }
    ensure!(!rows.is_empty(), "{}: no rows", path.display());
    Ok(rows)
}

/// A container of a trace of arrivals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// CPU asked for, millicores.
    pub cpu: u32,
    /// Memory asked for, MiB.
    pub memory_mib: u64,
    /// When it came, seconds.
    pub came: u64,
    /// When it went, seconds.
    pub went: u64,
}

/// Containers with their arrivals, by arrival: a table with a header that has `cpu_milli`, `memory_mib`, `creation_time` and
/// `deletion_time`. Rows without a sensible number in one of these (never finished, never begun, larger than any machine) are left out.
///
/// # Errors
/// When a column is missing, or no row is left.
pub fn arrivals(path: &Path) -> anyhow::Result<Vec<Asked>> {
    let mut lines = lines(path)?;
    let (_, header) = lines
        .next()
        .with_context(|| format!("{}: it is empty", path.display()))??;
    let names: Vec<&str> = header.split(',').map(str::trim).collect();
    let column = |name: &str| {
        let found = names.iter().position(|held| *held == name);
        found.with_context(|| format!("{}: no column {name}", path.display()))
    };
    let [cpu, memory, came, went] = [
        column("cpu_milli")?,
        column("memory_mib")?,
        column("creation_time")?,
        column("deletion_time")?,
    ];
    let mut asked = Vec::new();
    for line in lines {
        let (_, line) = line?;
        let words: Vec<&str> = line.split(',').map(str::trim).collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        let all = (number(cpu), number(memory), number(came), number(went));
        if let (Some(cpu), Some(memory_mib), Some(came), Some(went)) = all
            && let Ok(cpu @ 1..) = u32::try_from(cpu)
            && (cpu <= LARGEST.0 && memory_mib <= LARGEST.1)
            && went > came
        {
            asked.push(Asked {
                cpu,
                memory_mib,
                came,
                went,
            });
        }
    }
    ensure!(
        !asked.is_empty(),
        "{}: no container came and went",
        path.display()
    );
    asked.sort_by_key(|one| one.came);
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        file
    }

    #[test]
    fn rows_are_read_plain_and_zipped_and_what_is_wrong_has_its_line() {
        let plain = file(b"1,2,100\n\n0,0,7\n");
        let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zipped.write_all(b"1,2,100\n0, 0,7").unwrap();
        for file in [plain, self::file(&zipped.finish().unwrap())] {
            let rows = usage(file.path()).unwrap();
            assert_eq!(rows, [Row::from([1, 2, 100]), Row::from([0, 0, 7])]);
        }
        let cases: [(&[u8], &str); 4] = [
            (b"1,2\n1,101\n", "line 2: a sample is no percentage"),
            (b"1,2\n1\n", "line 2: 1 samples, and the first row has 2"),
            (b"x\n", "line 1"),
            (b"\n", "no rows"),
        ];
        for (text, told) in cases {
            let error = format!("{:#}", usage(file(text).path()).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn arrivals_are_sorted_and_what_never_ended_is_left_out() {
        let text = b"name,cpu_milli,memory_mib,creation_time,deletion_time\nb,100,64,9,20\na,200,32,3,5\nc,1,1,4,\nd,1,1,7,7\ne,4000000000,1,1,2\n";
        let all = arrivals(file(text).path()).unwrap();
        let came: Vec<_> = all.iter().map(|one| (one.cpu, one.came, one.went)).collect();
        assert_eq!(came, [(200, 3, 5), (100, 9, 20)]);
        for (text, told) in [(&b"cpu_milli\n1\n"[..], "no column memory_mib"), (b"", "empty")] {
            let error = format!("{:#}", arrivals(file(text).path()).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }
}
