//! `logs`: one container's lines, or those of all replicas of a service.

use berth_common::api::ContainerView;
use berth_common::model::UnixMillis;
use berth_common::protocol::{LogLine, LogStream};
use futures::stream::{BoxStream, StreamExt as _};
use reqwest::Method;

use super::Session;
use super::follow;
use super::service::{Target, target};
use crate::args::{LogsArgs, OutputFormat};
use crate::client::{Client, ClientError, lines};
use crate::failure::Failure;
use crate::render::text::moment;

const COLORS: [u8; 6] = [36, 33, 32, 35, 34, 31];

pub(super) type Lines = BoxStream<'static, Result<LogLine, ClientError>>;

/// `berth logs`.
pub async fn logs(session: &Session, args: LogsArgs) -> Result<(), Failure> {
    let client = session.client().await?;
    let target = target(&client, &args.target).await?;
    let printer = Printer {
        json: session.global.output == OutputFormat::Json,
        timestamps: args.timestamps,
        many: matches!(target, Target::Service(_)),
        color: session.style.color,
    };
    let service = match target {
        Target::Container(id) => {
            let containers = vec![(id.clone(), id)];
            return if args.follow {
                follow::container(session, &client, &containers[0].1, &args, printer).await
            } else {
                merge(&client, containers, &args, &printer).await
            };
        }
        Target::Service(view) => view.record.spec.name.to_string(),
    };
    if args.follow {
        return follow::service(session, &client, &service, &args, printer).await;
    }
    let placed = placed(&client, &service).await?;
    if placed.is_empty() {
        return Err(Failure::refused(
            format!("no container of {service} has a node yet, so there are no logs"),
            format!("`berth ps {service}` says why"),
        ));
    }
    merge(&client, placed, &args, &printer).await
}

/// Name and id of a service's containers that have a node: one that has none yet has written nothing.
pub(super) async fn placed(client: &Client, service: &str) -> Result<Vec<(String, String)>, Failure> {
    let query = [("service", service.to_owned())];
    let (items, _) = client
        .list::<ContainerView>(client.tenant_url(&["containers"], &query))
        .await?;
    let mut placed: Vec<_> = items
        .into_iter()
        .filter(|c| c.record.node.is_some())
        .map(|c| (c.name, c.record.id.to_string()))
        .collect();
    placed.sort();
    Ok(placed)
}

/// Opens a container's log: the last `tail` lines, or those since a moment, or all.
pub(super) async fn open(
    client: &Client,
    id: &str,
    follow: bool,
    tail: Option<u32>,
    since: Option<UnixMillis>,
) -> Result<Lines, Failure> {
    let mut query = vec![("follow", follow.to_string())];
    query.extend(tail.map(|tail| ("tail", tail.to_string())));
    query.extend(since.map(|since| ("since", since.0.to_string())));
    let url = client.tenant_url(&["containers", id, "logs"], &query);
    let response = client.send(client.request(Method::GET, url), true).await?;
    Ok(lines::ndjson(client.clone(), response))
}

/// By time: always the oldest of the heads, so that memory stays at one line per container.
async fn merge(
    client: &Client,
    containers: Vec<(String, String)>,
    args: &LogsArgs,
    printer: &Printer,
) -> Result<(), Failure> {
    let since = args.since.map(|since| since.moment(UnixMillis::now()));
    let width = containers.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut heads = Vec::new();
    for (index, (name, id)) in containers.into_iter().enumerate() {
        let mut lines = open(client, &id, false, args.tail, since).await?;
        if let Some(head) = lines.next().await {
            let prefix = printer.prefix(&name, width, index);
            heads.push((head?, name, prefix, lines));
        }
    }
    while let Some(index) = (0..heads.len()).min_by_key(|i| (heads[*i].0.at, *i)) {
        let (line, name, prefix, lines) = &mut heads[index];
        printer.print(name, prefix, line)?;
        match lines.next().await {
            Some(next) => *line = next?,
            None => drop(heads.remove(index)),
        }
    }
    Ok(())
}

/// How lines are printed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Printer {
    json: bool,
    timestamps: bool,
    /// Lines of several containers, told apart by a prefix.
    many: bool,
    color: bool,
}

impl Printer {
    /// What stands before the lines of the container that came as the `index`-th.
    pub(super) fn prefix(&self, name: &str, width: usize, index: usize) -> String {
        match (self.many, self.color) {
            (false, _) => String::new(),
            (true, false) => format!("{name:<width$} | "),
            (true, true) => format!(
                "\u{1b}[{}m{name:<width$} |\u{1b}[0m ",
                COLORS[index % COLORS.len()]
            ),
        }
    }

    /// The line as it is printed, with its newline unless it goes on.
    fn format(&self, name: &str, prefix: &str, line: &LogLine) -> String {
        if self.json {
            let mut value = serde_json::json!(line);
            value["container"] = name.into();
            return format!("{value}\n");
        }
        let stamp = if self.timestamps {
            format!("{} ", moment(line.at))
        } else {
            String::new()
        };
        // With other containers in between, a line that goes on has to be cut.
        let end = if line.partial && !self.many && !self.timestamps {
            ""
        } else {
            "\n"
        };
        format!("{prefix}{stamp}{}{end}", line.text)
    }

    pub(super) fn print(&self, name: &str, prefix: &str, line: &LogLine) -> Result<(), Failure> {
        let text = self.format(name, prefix, line);
        let write = |out: &mut dyn std::io::Write| out.write_all(text.as_bytes()).and_then(|()| out.flush());
        match line.stream {
            LogStream::Stderr | LogStream::Unknown if !self.json => write(&mut std::io::stderr().lock()),
            _ => write(&mut std::io::stdout().lock()),
        }
        .map_err(|source| Failure::io("write", source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str, partial: bool) -> LogLine {
        LogLine {
            at: UnixMillis(1000),
            stream: LogStream::Stdout,
            text: text.into(),
            partial,
        }
    }

    #[test]
    fn forms() {
        let printer = |json, timestamps, many| Printer {
            json,
            timestamps,
            many,
            color: false,
        };
        assert_eq!(
            printer(false, false, false).format("w.1", "", &line("a", true)),
            "a"
        );
        assert_eq!(
            printer(false, false, true).format("w.1", "w.1 | ", &line("a", true)),
            "w.1 | a\n"
        );
        assert_eq!(
            printer(false, true, false).format("w.1", "", &line("a", false)),
            "1970-01-01T00:00:01.000Z a\n"
        );
        assert!(
            printer(true, false, false)
                .format("w.1", "", &line("a", false))
                .contains("\"container\":\"w.1\"")
        );
    }
}
