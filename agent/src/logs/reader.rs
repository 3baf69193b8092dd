//! The reading side: what is there, then what comes, through rotation.
//!
//! Files are found by polling every 100 ms while following; a rotated file is read to its end by the handle that is
//! already open before the next is opened. The reader waits for its consumer and ends with it, or with the folder.

use std::collections::VecDeque;
use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_common::protocol::{LogLine, LogOptions};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncSeekExt as _, BufReader};
use tokio::sync::mpsc;

use super::record::{self, MAX_LINE};
use super::writer::{CURRENT, older};

const POLL: Duration = Duration::from_millis(100);
const QUEUE: usize = 256;
/// Most lines that a tail is remembered for.
const MAX_TAIL: u32 = 100_000;
/// A record's bytes plus its head; longer is damage.
const MAX_RECORD: u64 = MAX_LINE as u64 + 64;

/// Lines of the log in `dir`, oldest first.
pub fn read(dir: &Path, options: LogOptions) -> mpsc::Receiver<LogLine> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let dir = dir.to_owned();
    tokio::spawn(async move {
        // An error here means the folder or a file in it is gone or broken: the stream just ends, as documented.
        if let Err(error) = run(&dir, options, &sender).await {
            tracing::debug!(dir = %dir.display(), %error, "reading a log ended");
        }
    });
    receiver
}

struct Open {
    file: BufReader<File>,
    inode: u64,
    torn: Vec<u8>,
}

async fn open(path: &Path) -> std::io::Result<Option<Open>> {
    match File::open(path).await {
        Ok(file) => {
            let inode = file.metadata().await?.ino();
            Ok(Some(Open {
                file: BufReader::new(file),
                inode,
                torn: Vec::new(),
            }))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Open {
    /// The next whole record's line; `None` at the end for now.
    async fn next(&mut self) -> std::io::Result<Option<LogLine>> {
        loop {
            let left = MAX_RECORD.saturating_sub(self.torn.len() as u64).max(1);
            let n = (&mut self.file)
                .take(left)
                .read_until(b'\n', &mut self.torn)
                .await?;
            if self.torn.last() == Some(&b'\n') {
                self.torn.pop();
                let line = record::read(&self.torn);
                self.torn.clear();
                if line.is_some() {
                    return Ok(line);
                }
            } else if n == 0 {
                return Ok(None);
            } else if self.torn.len() as u64 >= MAX_RECORD {
                self.torn.clear();
            }
        }
    }
}

/// Oldest to newest, opened at once so that a rotation meanwhile loses nothing; those rotated between two opens are
/// recognised by their inode.
async fn open_all(dir: &Path) -> std::io::Result<Vec<Open>> {
    let mut files = Vec::new();
    let mut entries = tokio::fs::read_dir(dir).await?;
    let mut highest = 0;
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_suffix(".log")?.parse::<u32>().ok());
        highest = highest.max(number.unwrap_or(0));
    }
    let names = std::iter::once(CURRENT.to_owned()).chain((1..=highest).map(older));
    for name in names {
        if let Some(file) = open(&dir.join(name)).await?
            && files.iter().all(|known: &Open| known.inode != file.inode)
        {
            files.push(file);
        }
    }
    files.reverse();
    Ok(files)
}

async fn run(dir: &PathBuf, options: LogOptions, sender: &mpsc::Sender<LogLine>) -> std::io::Result<()> {
    let wanted = |line: &LogLine| options.since.is_none_or(|since| line.at >= since);
    let mut files = open_all(dir).await?;
    let tail = options.tail.map(|n| n.min(MAX_TAIL) as usize);
    let mut kept: VecDeque<LogLine> = VecDeque::new();
    for file in &mut files {
        // Only the newest piece of a long log matters to a tail.
        while let Some(line) = file.next().await? {
            if !wanted(&line) {
                continue;
            }
            match tail {
                Some(0) => {}
                Some(n) => {
                    if kept.len() == n {
                        kept.pop_front();
                    }
                    kept.push_back(line);
                }
                None => {
                    if sender.send(line).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
    for line in kept {
        if sender.send(line).await.is_err() {
            return Ok(());
        }
    }
    if !options.follow {
        return Ok(());
    }
    let mut current = files.pop();
    drop(files);
    loop {
        if let Some(file) = &mut current {
            while let Some(line) = file.next().await? {
                if wanted(&line) && sender.send(line).await.is_err() {
                    return Ok(());
                }
            }
        }
        let newest = open(&dir.join(CURRENT)).await?;
        let turned = match (&current, &newest) {
            (Some(old), Some(new)) => old.inode != new.inode,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if turned {
            // Written between our last read and the rotation.
            if let Some(file) = &mut current {
                while let Some(line) = file.next().await? {
                    if wanted(&line) && sender.send(line).await.is_err() {
                        return Ok(());
                    }
                }
            }
            let old = current.as_ref().map(|file| file.inode);
            // Several rotations may have passed: go on with the file after ours.
            let mut all = open_all(dir).await?;
            let from = all
                .iter()
                .position(|file| Some(file.inode) == old)
                .map_or(0, |at| at + 1);
            let mut rest = all.split_off(from.min(all.len()));
            current = rest.pop();
            for mut file in rest {
                while let Some(line) = file.next().await? {
                    if wanted(&line) && sender.send(line).await.is_err() {
                        return Ok(());
                    }
                }
            }
            continue;
        }
        if newest.is_none() && tokio::fs::metadata(dir).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = sender.closed() => return Ok(()),
        }
        if let Some(file) = &mut current {
            // BufReader remembers nothing of an end of file; asking its position refreshes what it knows.
            let at = file.file.stream_position().await?;
            file.file.seek(SeekFrom::Start(at)).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::record::Source;
    use crate::logs::writer::{Bounds, Log};
    use berth_common::model::UnixMillis;

    fn put(log: &mut Log, n: u64) {
        let mut out = Vec::new();
        record::write(&mut out, n, Source::Out, false, format!("{n}").as_bytes());
        log.write(n, &out, 1);
    }

    async fn all(mut lines: mpsc::Receiver<LogLine>) -> Vec<u64> {
        let mut read = Vec::new();
        while let Some(line) = lines.recv().await {
            read.push(line.text.parse().unwrap());
        }
        read
    }

    #[tokio::test]
    async fn tail_and_since_over_several_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::new(
            dir.path(),
            Bounds {
                max_size: 100,
                max_files: 50,
            },
        );
        (0..100).for_each(|n| put(&mut log, n));
        assert_eq!(
            all(read(dir.path(), LogOptions::default())).await,
            (0..100).collect::<Vec<_>>()
        );
        let tail = LogOptions {
            tail: Some(15),
            ..LogOptions::default()
        };
        assert_eq!(all(read(dir.path(), tail)).await, (85..100).collect::<Vec<_>>());
        let since = LogOptions {
            since: Some(UnixMillis(97)),
            ..LogOptions::default()
        };
        assert_eq!(all(read(dir.path(), since)).await, [97, 98, 99]);
    }

    #[tokio::test]
    async fn follow_goes_through_rotations_and_ends_with_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs");
        std::fs::create_dir(&path).unwrap();
        let lines = read(
            &path,
            LogOptions {
                follow: true,
                ..LogOptions::default()
            },
        );
        let writer = path.clone();
        let task = tokio::spawn(async move {
            let mut log = Log::new(
                &writer,
                Bounds {
                    max_size: 400,
                    max_files: 10,
                },
            );
            for n in 0..300 {
                put(&mut log, n);
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            std::fs::remove_dir_all(writer).unwrap();
        });
        let read = tokio::time::timeout(Duration::from_secs(20), all(lines))
            .await
            .unwrap();
        task.await.unwrap();
        assert_eq!(read, (0..300).collect::<Vec<_>>());
    }
}
