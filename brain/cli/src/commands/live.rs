//! `top`, `events` and `version`.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use berth_common::api::{EventView, Listing, UsageView, VersionInfo, WatchEvent};
use crossterm::{cursor, execute, terminal};
use futures::StreamExt as _;
use reqwest::Method;
use serde_json::json;

use super::{Session, print};
use crate::args::OutputFormat;
use crate::client::sse::SseParser;
use crate::client::{Client, lines};
use crate::failure::Failure;
use crate::render;

/// The terminal's second screen until dropped.
struct Screen;

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(std::io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
    }
}

/// `berth top`.
pub async fn top(session: &Session, once: bool) -> Result<(), Failure> {
    let client = session.client().await?;
    let url = client.url(&["usage"], &[]);
    let wide = session.global.output != OutputFormat::Table || !std::io::stdout().is_terminal();
    if once || wide {
        let view: UsageView = client.get(url).await?;
        return session.show(&view, |style, _| render::usage::top(style, &view));
    }
    let fail = |source| Failure::io("draw on the terminal", source);
    let mut view: UsageView = client.get(url.clone()).await?;
    let screen = Screen;
    execute!(std::io::stdout(), terminal::EnterAlternateScreen, cursor::Hide).map_err(fail)?;
    loop {
        let (cols, rows) = terminal::size().unwrap_or((120, 40));
        let text = render::usage::top(session.style, &view);
        let mut out = std::io::stdout().lock();
        execute!(out, cursor::MoveTo(0, 0)).map_err(fail)?;
        // Cut to the screen, so that nothing scrolls; line by line over the old picture, so that nothing flickers.
        for line in text.lines().take(usize::from(rows).saturating_sub(1)) {
            let line: String = line.chars().take(usize::from(cols)).collect();
            write!(out, "{line}").map_err(fail)?;
            execute!(out, terminal::Clear(terminal::ClearType::UntilNewLine)).map_err(fail)?;
            write!(out, "\r\n").map_err(fail)?;
        }
        execute!(out, terminal::Clear(terminal::ClearType::FromCursorDown)).map_err(fail)?;
        drop(out);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(2)) => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        view = client.get(url.clone()).await?;
    }
    drop(screen);
    Ok(())
}

/// `berth events`.
pub async fn events(session: &Session, follow: bool, limit: u32) -> Result<(), Failure> {
    let client = session.client().await?;
    let mut query = vec![("limit", limit.to_string())];
    // Only a tenant named on the command line narrows what an administrator sees.
    let tenant = session
        .global
        .tenant
        .as_ref()
        .map(|name| ("tenant", name.to_string()));
    query.extend(tenant.clone());
    let page: Listing<EventView> = client.get(client.url(&["events"], &query)).await?;
    if !follow {
        return session.show(&page.items, |_, _| {
            page.items.iter().map(render::cluster::event).collect()
        });
    }
    for event in &page.items {
        one(session, event)?;
    }
    // Events have numbers of their own, by which no event is missed between listing, watching and watching again.
    let mut seen = page.items.last().map_or(0, |event| event.sequence);
    let mut failures = 0;
    loop {
        let before = seen;
        let ended = watch(session, &client, &mut seen, tenant.clone()).await;
        if seen != before {
            failures = 0;
        }
        // A broken connection resumes without a gap; a refusal is final.
        match ended {
            Err(failure) if failure.exit_code() == 5 && failures < 30 => {
                session.note("connection lost; resuming");
            }
            Err(failure) => return Err(failure),
            Ok(()) => {}
        }
        failures += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn watch(
    session: &Session,
    client: &Client,
    seen: &mut u64,
    tenant: Option<(&str, String)>,
) -> Result<(), Failure> {
    let mut query = vec![("after_event", seen.to_string()), ("kinds", "event".to_owned())];
    query.extend(tenant);
    let request = client
        .request(Method::GET, client.url(&["watch"], &query))
        .header("accept", "text/event-stream");
    let response = client.send(request, true).await?;
    let mut stream = lines::lines(client.clone(), response).boxed();
    let mut parser = SseParser::default();
    while let Some(line) = stream.next().await {
        let line = line?;
        let Some(event) = parser.line(&String::from_utf8_lossy(&line)) else {
            continue;
        };
        // Something of a newer brain is no reason to stop.
        if let Ok(WatchEvent::Event { event }) = serde_json::from_str(&event.data)
            && event.sequence > *seen
        {
            *seen = event.sequence;
            one(session, &event)?;
        }
    }
    Ok(())
}

fn one(session: &Session, event: &EventView) -> Result<(), Failure> {
    print(&match session.global.output {
        OutputFormat::Table => render::cluster::event(event),
        OutputFormat::Json => format!("{}\n", json!(event)),
        OutputFormat::Yaml => format!("---\n{}", render::yaml(event)),
    })
}

/// `berth version`. The client's own is told even when the brain can't be reached.
pub async fn version(session: &Session) -> Result<(), Failure> {
    const OWN: &str = env!("CARGO_PKG_VERSION");
    let asked = match session.client().await {
        Ok(client) => client
            .get::<VersionInfo>(client.url(&["version"], &[]))
            .await
            .map_err(Failure::from),
        Err(failure) => Err(failure),
    };
    let brain = asked.as_ref().ok();
    session.show(&json!({"client": OWN, "brain": brain}), |_, _| {
        let mut text = format!("client  {OWN}\n");
        if let Some(brain) = brain {
            text.push_str(&format!(
                "brain   {} (link protocol {} to {})\n",
                render::text::clean(&brain.version),
                brain.protocol_min,
                brain.protocol
            ));
        }
        text
    })?;
    asked.map(drop)
}
