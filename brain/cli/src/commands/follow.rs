//! `logs -f`: lines as they come, for as long as there is something to follow.
//!
//! Owns what a person expects of it: a stream that breaks because the brain restarts or a link flaps goes on after the last
//! line seen, and the replicas that a service gets later are followed too. Refuses to give up on anything that can pass by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_common::model::UnixMillis;
use berth_common::protocol::LogLine;
use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};

use super::Session;
use super::logs::{Printer, open, placed};
use crate::args::LogsArgs;
use crate::client::Client;
use crate::failure::Failure;

/// Time between looks at which replicas a service has.
const LOOK: Duration = Duration::from_secs(2);
/// Pause before a broken stream is opened again.
const PAUSE: Duration = Duration::from_secs(1);
/// Attempts in a row without a line, about as many seconds.
const ATTEMPTS: u32 = 120;
/// Exit code of failures that can pass by themselves.
const PASSING: u8 = 5;
/// Lines that may wait to be printed.
const WAITING: usize = 256;

/// Up to where a log was seen: the newest moment, and how many lines of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Position {
    newest: Option<UnixMillis>,
    of_it: usize,
    /// Of a stream opened again from that moment on, how many lines are to be passed over.
    repeated: usize,
}

impl Position {
    /// A stream is opened again: its first lines are those of the newest moment seen.
    fn reopen(&mut self) -> Option<UnixMillis> {
        self.repeated = self.of_it;
        self.newest
    }

    /// Whether the line is new; it is seen now.
    fn see(&mut self, line: &LogLine) -> bool {
        if self.newest == Some(line.at) {
            if self.repeated > 0 {
                self.repeated -= 1;
                return false;
            }
            self.of_it += 1;
        } else {
            (self.newest, self.of_it, self.repeated) = (Some(line.at), 1, 0);
        }
        true
    }
}

/// One container's log.
struct Source {
    client: Client,
    id: String,
    tail: Option<u32>,
    since: Option<UnixMillis>,
    /// Told once that it broke off.
    note: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Source {
    /// Sends every line once, until the log ends or something is final.
    async fn run(self, lines: mpsc::Sender<LogLine>) -> Result<(), Failure> {
        let mut position = Position::default();
        let mut failures = 0;
        loop {
            let opened = match position.reopen() {
                Some(moment) => open(&self.client, &self.id, true, None, Some(moment)).await,
                None => open(&self.client, &self.id, true, self.tail, self.since).await,
            };
            let failure = match opened {
                Err(failure) => failure,
                Ok(mut stream) => loop {
                    match stream.next().await {
                        None => return Ok(()),
                        Some(Err(error)) => break Failure::from(error),
                        Some(Ok(line)) => {
                            failures = 0;
                            if position.see(&line) && lines.send(line).await.is_err() {
                                return Ok(());
                            }
                        }
                    }
                },
            };
            if failure.exit_code() != PASSING || failures >= ATTEMPTS {
                return Err(failure);
            }
            if failures == 0 {
                (self.note)(&format!("the log of {} broke off; resuming", self.id));
            }
            failures += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn note(session: &Session) -> Arc<dyn Fn(&str) + Send + Sync> {
    let quiet = session.global.quiet;
    Arc::new(move |text| {
        if !quiet {
            eprintln!("{text}");
        }
    })
}

/// Follows one container until its log ends.
///
/// # Errors
/// What is final, or did not pass within two minutes.
pub(super) async fn container(
    session: &Session,
    client: &Client,
    id: &str,
    args: &LogsArgs,
    printer: Printer,
) -> Result<(), Failure> {
    let (sender, mut lines) = mpsc::channel(WAITING);
    let source = Source {
        client: client.clone(),
        id: id.to_owned(),
        tail: args.tail,
        since: args.since.map(|since| since.moment(UnixMillis::now())),
        note: note(session),
    };
    let run = tokio::spawn(source.run(sender));
    while let Some(line) = lines.recv().await {
        printer.print(id, "", &line)?;
    }
    ended(run.await)
}

/// Follows all replicas of a service, those to come included, until the service is gone.
///
/// # Errors
/// As [`container`].
pub(super) async fn service(
    session: &Session,
    client: &Client,
    service: &str,
    args: &LogsArgs,
    printer: Printer,
) -> Result<(), Failure> {
    let since = args.since.map(|since| since.moment(UnixMillis::now()));
    let (sender, mut lines) = mpsc::channel::<(Arc<str>, Arc<str>, LogLine)>(WAITING);
    let note = note(session);
    // Kept after their end: an ended log is not begun again.
    let mut known = BTreeMap::new();
    let mut sources = JoinSet::new();
    let mut running = BTreeMap::<Id, String>::new();
    let (mut first, mut failures) = (true, 0);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some((name, prefix, line)) = lines.recv() => printer.print(&name, &prefix, &line)?,
            Some(done) = sources.join_next_with_id() => {
                let (id, result) = match done {
                    Ok((id, result)) => (id, ended(Ok(result))),
                    Err(error) => (error.id(), ended(Err(error))),
                };
                running.remove(&id);
                match result {
                    // A replica that was removed takes its log with it.
                    Err(failure) if !failure.is_not_found() => return Err(failure),
                    _ => {}
                }
            }
            _ = look.tick() => {
                let found = match placed(client, service).await {
                    Ok(found) => found,
                    Err(failure) if failure.is_not_found() => Vec::new(),
                    Err(failure) if failure.exit_code() == PASSING && failures < ATTEMPTS / 2 => {
                        failures += 1;
                        continue;
                    }
                    Err(failure) => return Err(failure),
                };
                failures = 0;
                if found.is_empty() && running.is_empty() {
                    let url = client.tenant_url(&["services", service], &[]);
                    match client.get::<serde_json::Value>(url).await.map_err(Failure::from) {
                        Err(failure) if failure.is_not_found() => return Ok(()),
                        _ if first => note(&format!("waiting for the first container of {service}; `berth ps {service}` says why")),
                        _ => {}
                    }
                }
                let width = found.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
                for (name, id) in found {
                    let index = known.len();
                    if known.contains_key(&id) {
                        continue;
                    }
                    known.insert(id.clone(), index);
                    let prefix: Arc<str> = printer.prefix(&name, width, index).into();
                    let name: Arc<str> = name.into();
                    let source = Source {
                        client: client.clone(),
                        id: id.clone(),
                        // Of a replica that came later every line is news.
                        tail: args.tail.filter(|_| first),
                        since,
                        note: Arc::clone(&note),
                    };
                    let sender = sender.clone();
                    let task = sources.spawn(async move {
                        let (own, mut lines) = mpsc::channel(1);
                        let pass = async {
                            while let Some(line) = lines.recv().await {
                                if sender.send((Arc::clone(&name), Arc::clone(&prefix), line)).await.is_err() {
                                    return;
                                }
                            }
                        };
                        tokio::join!(source.run(own), pass).0
                    });
                    running.insert(task.id(), id);
                }
                first = false;
            }
        }
    }
}

fn ended(result: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    result.unwrap_or_else(|error| Err(Failure::io("follow", std::io::Error::other(error))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::protocol::LogStream;
    use proptest::prelude::*;

    fn line(at: u64, text: usize) -> LogLine {
        LogLine {
            at: UnixMillis(at),
            stream: LogStream::Stdout,
            text: text.to_string(),
            partial: false,
        }
    }

    proptest! {
        /// Wherever the stream breaks, and however often, each line is seen once and in order.
        #[test]
        fn a_resumed_log_has_every_line_once(
            steps in prop::collection::vec(0u64..3, 1..60),
            breaks in prop::collection::vec(0usize..20, 0..8),
        ) {
            let mut at = 1_000;
            let log: Vec<LogLine> = steps
                .iter()
                .enumerate()
                .map(|(n, step)| {
                    at += step;
                    line(at, n)
                })
                .collect();
            let mut position = Position::default();
            let mut seen = Vec::new();
            let mut breaks = breaks.into_iter();
            loop {
                let since = position.reopen();
                let rest = log.iter().filter(|l| since.is_none_or(|since| l.at >= since));
                let length = breaks.next();
                for line in rest.take(length.unwrap_or(usize::MAX)) {
                    if position.see(line) {
                        seen.push(line.text.clone());
                    }
                }
                if length.is_none() {
                    break;
                }
            }
            let all: Vec<String> = (0..log.len()).map(|n| n.to_string()).collect();
            prop_assert_eq!(seen, all);
        }
    }
}
