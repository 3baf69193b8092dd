//! `logs`: one container's lines, or those of all replicas of a service.

use berth_common::api::ContainerView;
use berth_common::model::UnixMillis;
use berth_common::protocol::{LogLine, LogStream};
use futures::stream::{BoxStream, SelectAll, StreamExt as _};
use reqwest::Method;

use super::Session;
use super::service::{Target, target};
use crate::args::{LogsArgs, OutputFormat};
use crate::client::{Client, ClientError, lines};
use crate::failure::Failure;
use crate::render::text::moment;

const COLORS: [u8; 6] = [36, 33, 32, 35, 34, 31];

type Lines = BoxStream<'static, Result<LogLine, ClientError>>;

/// `berth logs`.
pub async fn logs(session: &Session, args: LogsArgs) -> Result<(), Failure> {
    let client = session.client().await?;
    let (containers, many) = match target(&client, &args.target).await? {
        Target::Service(view) => {
            let query = [("service", view.record.spec.name.to_string())];
            let (items, _) = client
                .list::<ContainerView>(client.tenant_url(&["containers"], &query))
                .await?;
            // One that has no node yet has written nothing.
            let mut placed: Vec<(String, String)> = items
                .into_iter()
                .filter(|c| c.record.node.is_some())
                .map(|c| (c.name, c.record.id.to_string()))
                .collect();
            placed.sort();
            if placed.is_empty() {
                return Err(Failure::refused(
                    format!(
                        "no container of {} has a node yet, so there are no logs",
                        args.target
                    ),
                    format!("`berth ps {}` says why", args.target),
                ));
            }
            (placed, true)
        }
        Target::Container(id) => (vec![(id.clone(), id)], false),
    };
    let width = containers.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut sources = Vec::new();
    for (index, (name, id)) in containers.iter().enumerate() {
        let prefix = match (many, session.style.color) {
            (false, _) => String::new(),
            (true, false) => format!("{name:<width$} | "),
            (true, true) => format!(
                "\u{1b}[{}m{name:<width$} |\u{1b}[0m ",
                COLORS[index % COLORS.len()]
            ),
        };
        sources.push((name.clone(), prefix, open(&client, id, &args).await?));
    }
    let printer = Printer {
        json: session.global.output == OutputFormat::Json,
        timestamps: args.timestamps,
        many,
    };
    if args.follow {
        follow(sources, &printer).await
    } else {
        merge(sources, &printer).await
    }
}

async fn open(client: &Client, id: &str, args: &LogsArgs) -> Result<Lines, Failure> {
    let mut query = vec![("follow", args.follow.to_string())];
    query.extend(args.tail.map(|tail| ("tail", tail.to_string())));
    query.extend(
        args.since
            .map(|since| ("since", since.moment(UnixMillis::now()).0.to_string())),
    );
    let url = client.tenant_url(&["containers", id, "logs"], &query);
    let response = client.send(client.request(Method::GET, url), true).await?;
    Ok(lines::ndjson(client.clone(), response))
}

/// As they come.
async fn follow(sources: Vec<(String, String, Lines)>, printer: &Printer) -> Result<(), Failure> {
    let mut all = SelectAll::new();
    for (name, prefix, lines) in sources {
        all.push(
            lines
                .map(move |line| (name.clone(), prefix.clone(), line))
                .boxed(),
        );
    }
    while let Some((name, prefix, line)) = all.next().await {
        printer.print(&name, &prefix, &line?)?;
    }
    Ok(())
}

/// By time: always the oldest of the heads, so that memory stays at one line per container.
async fn merge(sources: Vec<(String, String, Lines)>, printer: &Printer) -> Result<(), Failure> {
    let mut heads = Vec::new();
    for (name, prefix, mut lines) in sources {
        if let Some(head) = lines.next().await {
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

struct Printer {
    json: bool,
    timestamps: bool,
    many: bool,
}

impl Printer {
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

    fn print(&self, name: &str, prefix: &str, line: &LogLine) -> Result<(), Failure> {
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
