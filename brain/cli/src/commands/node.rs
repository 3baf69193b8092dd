//! `node …`.

use std::time::{Duration, Instant};

use berth_common::api::{CreateJoinToken, CreatedJoinToken, NodeView, PackNodes, PackView, UpdateNode};
use berth_common::model::NodeRecord;
use reqwest::Method;

use super::Session;
use super::progress::Line;
use crate::args::{NodeChanges, NodeCommand};
use crate::client::Client;
use crate::failure::Failure;
use crate::render::text::moment;
use crate::{render, spec};

/// `berth node …`.
pub async fn node(session: &Session, command: NodeCommand) -> Result<(), Failure> {
    let client = session.client().await?;
    match command {
        NodeCommand::Ls => {
            let (items, _) = client.list::<NodeView>(client.url(&["nodes"], &[])).await?;
            session.list(
                &items,
                |n| n.record.name.to_string(),
                |style, _, items| render::cluster::nodes(style, items),
            )
        }
        NodeCommand::Inspect { node } => {
            session.inspect(&client.get::<NodeView>(client.url(&["nodes", &node], &[])).await?)
        }
        NodeCommand::Token {
            private,
            label,
            taint,
            pool,
            ttl,
            address,
        } => {
            let body = CreateJoinToken {
                private,
                labels: spec::map(label),
                taints: taint,
                pool,
                ttl_secs: ttl,
                addresses: address,
            };
            let url = client.url(&["nodes", "tokens"], &[]);
            let made: CreatedJoinToken = client.call(Method::POST, url, Some(&body)).await?;
            session.note(&format!(
                "on the new host, until {}:\n  {}\nor, where berth-agent is installed already: sudo berth-agent join TOKEN",
                moment(made.expires_at),
                made.install
            ));
            session.show(&made, |_, _| format!("{}\n", made.token))
        }
        NodeCommand::Update { node, changes } => {
            let url = client.url(&["nodes", &node], &[]);
            let current: NodeView = client.get(url.clone()).await?;
            let body = changed(&current.record, &changes).map_err(|why| {
                Failure::usage(why, format!("`berth node inspect {node}` shows what it has"))
            })?;
            let view: NodeView = client.call(Method::PATCH, url, Some(&body)).await?;
            session.done(&view, &format!("{}: changed", view.record.name))
        }
        NodeCommand::Cordon { node } => {
            simple(session, &client, &node, "cordon", "takes no new containers").await
        }
        NodeCommand::Uncordon { node } => {
            simple(session, &client, &node, "uncordon", "takes containers again").await
        }
        NodeCommand::Drain {
            node,
            timeout,
            detach,
        } => drain(session, &client, &node, timeout, detach).await,
        NodeCommand::Pack {
            pool,
            keep,
            dry_run,
            timeout,
            detach,
        } => {
            let body = PackNodes { pool, keep, dry_run };
            let url = client.url(&["nodes", "pack"], &[]);
            let view: PackView = client.call(Method::POST, url, Some(&body)).await?;
            session.show(&view, |style, _| render::schedule::packed(style, &view))?;
            if dry_run || detach {
                return Ok(());
            }
            emptied(session, &client, &view, timeout).await
        }
        NodeCommand::Rm { node, force } => {
            let url = client.url(&["nodes", &node], &[("force", force.to_string())]);
            session.remove(&client, url, &node).await
        }
    }
}

/// The request that makes these changes of a node as it is.
///
/// # Errors
/// What is not there to be taken away: a typo must not pass for done.
fn changed(node: &NodeRecord, changes: &NodeChanges) -> Result<UpdateNode, String> {
    let mut labels = node.labels.clone();
    for key in &changes.label_rm {
        if labels.remove(key).is_none() {
            return Err(format!("--label-rm {key}: it has no such label"));
        }
    }
    labels.extend(changes.label.iter().cloned());
    let mut taints = node.taints.clone();
    for gone in &changes.taint_rm {
        let before = taints.len();
        taints.retain(|taint| !gone.covers(taint));
        if taints.len() == before {
            return Err(format!("--taint-rm {gone}: it has no such taint"));
        }
    }
    for taint in &changes.taint {
        // Another value of the same key and effect takes the old one's place.
        taints.retain(|old| (&old.key, old.effect) != (&taint.key, taint.effect));
        taints.push(taint.clone());
    }
    // The half that is not named stays; of a node that has none of its own, it is as if there were none.
    let old = node.overcommit.unwrap_or_default();
    let overcommit = super::pool::changed(old, &changes.overcommit);
    let named = changes
        .overcommit
        .overcommit_cpu
        .or(changes.overcommit.overcommit_memory);
    Ok(UpdateNode {
        labels: (labels != node.labels).then_some(labels),
        taints: (taints != node.taints).then_some(taints),
        pool: changes.pool.clone().filter(|pool| *pool != node.pool),
        overcommit: named
            .map(|_| overcommit)
            .filter(|new| node.overcommit != Some(*new)),
        overcommit_of_pool: changes.overcommit_rm,
    })
}

async fn simple(
    session: &Session,
    client: &Client,
    node: &str,
    verb: &str,
    does: &str,
) -> Result<(), Failure> {
    let view: NodeView = client.post(client.url(&["nodes", node, verb], &[])).await?;
    session.done(&view, &format!("{}: {does}", view.record.name))
}

async fn drain(
    session: &Session,
    client: &Client,
    node: &str,
    timeout: Option<u64>,
    detach: bool,
) -> Result<(), Failure> {
    let view: NodeView = client.post(client.url(&["nodes", node, "drain"], &[])).await?;
    if detach {
        return session.done(&view, &format!("{}: drains", view.record.name));
    }
    let view = until_empty(session, client, view, Instant::now(), timeout).await?;
    session.done(&view, &format!("{}: empty", view.record.name))
}

/// Waits until all nodes that are emptied are empty.
async fn emptied(
    session: &Session,
    client: &Client,
    packed: &PackView,
    timeout: Option<u64>,
) -> Result<(), Failure> {
    let begun = Instant::now();
    for node in &packed.freed {
        let url = client.url(&["nodes", node.name.as_str()], &[]);
        let view = until_empty(session, client, client.get(url).await?, begun, timeout).await?;
        session.note(&format!("{}: empty", view.record.name));
    }
    Ok(())
}

/// Waits until nothing is left on a node, which is being drained, and says meanwhile what is.
async fn until_empty(
    session: &Session,
    client: &Client,
    mut view: NodeView,
    begun: Instant,
    timeout: Option<u64>,
) -> Result<NodeView, Failure> {
    let name = view.record.name.to_string();
    let node = name.as_str();
    let line = Line::new(session.global.quiet);
    let mut most = view.taken.containers;
    while view.taken.containers > 0 {
        most = most.max(view.taken.containers);
        let waits = view.drain_waits.join("; ");
        let left = view.taken.containers;
        if timeout.is_some_and(|limit| begun.elapsed().as_secs() >= limit) {
            return Err(Failure::refused(
                format!("{node} still has {left} containers: {waits}"),
                format!(
                    "draining goes on; look with `berth node inspect {node}`, undo with `berth node uncordon {node}`"
                ),
            ));
        }
        if !view.record.draining {
            return Err(Failure::refused(
                format!("{node} is no longer draining; {left} containers are on it"),
                "someone ran `berth node uncordon`; drain it again",
            ));
        }
        line.say(&format!(
            "{} of {most} containers left{}{waits}",
            left,
            if waits.is_empty() { "" } else { ": " }
        ));
        tokio::time::sleep(Duration::from_millis(500)).await;
        view = client.get(client.url(&["nodes", node], &[])).await?;
    }
    Ok(view)
}
