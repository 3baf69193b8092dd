//! `network …`.

use berth_common::api::{CheckEvent, CheckNetworks, CreateNetwork, NetworkView, Trace};
use berth_common::protocol::Verdict;
use futures::StreamExt as _;
use reqwest::Method;

use super::Session;
use super::progress::Line;
use crate::args::NetworkCommand;
use crate::client::{Client, lines};
use crate::failure::Failure;
use crate::render;
use crate::render::check::{Absent, Checked};

/// `berth network …`.
pub async fn network(session: &Session, command: NetworkCommand) -> Result<(), Failure> {
    let client = session.client().await?;
    match command {
        NetworkCommand::Create { name, cidr } => {
            let body = CreateNetwork { name, cidr };
            let url = client.tenant_url(&["networks"], &[]);
            let made: NetworkView = client.call(Method::POST, url, Some(&body)).await?;
            let sentence = format!("{}: made, {} and {}", made.name, made.cidr, made.cidr6);
            session.done(&made, &sentence)
        }
        NetworkCommand::Ls => {
            let (items, _) = client
                .list::<NetworkView>(client.tenant_url(&["networks"], &[]))
                .await?;
            session.list(&items, |n| n.name.to_string(), render::cluster::networks)
        }
        NetworkCommand::Inspect { name } => {
            let url = client.tenant_url(&["networks", name.as_str()], &[]);
            session.inspect(&client.get::<NetworkView>(url).await?)
        }
        NetworkCommand::Check { node } => check(session, &client, CheckNetworks { nodes: node }).await,
        NetworkCommand::Trace { from, to, network } => {
            let mut query = vec![("from", from), ("to", to)];
            query.extend(network.map(|name| ("network", name.to_string())));
            let trace: Trace = client.get(client.tenant_url(&["trace"], &query)).await?;
            session.show(&trace, |style, _| render::check::trace(style, &trace))?;
            match trace.verdict {
                Verdict::Passes => Ok(()),
                Verdict::Drops => Err(Failure::refused(
                    format!("a packet from {} does not reach {}", trace.from, trace.to),
                    "see the last place above",
                )),
                Verdict::Unknown => Err(Failure::refused(
                    format!(
                        "whether a packet from {} reaches {} is not known",
                        trace.from, trace.to
                    ),
                    "see the last place above",
                )),
            }
        }
        NetworkCommand::Rm { name } => {
            let url = client.tenant_url(&["networks", name.as_str()], &[]);
            session.remove(&client, url, name.as_str()).await
        }
    }
}

async fn check(session: &Session, client: &Client, body: CheckNetworks) -> Result<(), Failure> {
    let url = client.url(&["nodes", "check"], &[]);
    let asked = client.request(Method::POST, url).json(&body);
    let response = client.send(asked, false).await?;
    let mut events = lines::ndjson::<CheckEvent>(client.clone(), response);
    let line = Line::new(session.global.quiet);
    line.say("every node makes its part");
    let (mut checked, mut whole) = (Checked::default(), false);
    while let Some(event) = events.next().await {
        match event? {
            CheckEvent::Progress { done, total } => {
                // Not on a terminal each line stays: the last is enough there.
                if line.is_live() || done == total {
                    line.say(&format!("measured {done} of {total} ways"));
                }
            }
            CheckEvent::Absent { node, problem } => checked.absent.push(Absent { node, problem }),
            CheckEvent::Pair { pair } => checked.pairs.push(pair),
            CheckEvent::Done => whole = true,
            CheckEvent::Unknown => {}
        }
    }
    drop(line);
    session.show(&checked, |style, _| render::check::checked(style, &checked))?;
    let wrong = checked
        .pairs
        .iter()
        .filter(|pair| !pair.findings.is_empty())
        .count();
    let cure = "mend what is listed, then check again";
    if !whole {
        return Err(Failure::refused(
            "the check broke off: what is shown is not all",
            "run it again",
        ));
    }
    match (wrong, checked.absent.len()) {
        (0, 0) => Ok(()),
        (0, absent) => Err(Failure::refused(
            format!("{absent} nodes could not be checked"),
            cure,
        )),
        (wrong, _) => Err(Failure::refused(
            format!(
                "something is wrong between {wrong} of {} pairs of nodes",
                checked.pairs.len()
            ),
            cure,
        )),
    }
}
