//! What goes down to an agent: its desired set, who is around it, and what becomes of a set that it does not take.

use std::time::Duration;

use berth_common::error::Problem;
use berth_common::id::{Generation, clip};
use berth_common::protocol::{BrainMessage, write_frame};
use quinn::SendStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::desired::{Outbox, Verdict};
use super::super::neighbours::NeighboursOutbox;
use super::{End, HELLO_TIMEOUT, MAX_TEXT, Session};
use crate::cluster::desired_set;
use crate::controllers::NewEvent;

/// Time an agent has to take a message that is being sent.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// How long changes of a node's neighbours are gathered before they are sent.
const CROWD: Duration = Duration::from_millis(20);
/// A whole set is sent again at most this often.
const RESEND_PAUSE: Duration = Duration::from_millis(500);
/// Pause before a node that could not keep a desired set, for example on a full disk, is asked again.
const RETRY_PAUSE: Duration = Duration::from_secs(3);

/// A desired set that an agent did not take.
pub(super) struct Refusal {
    pub(super) held: Generation,
    pub(super) refused: Generation,
    pub(super) problem: Problem,
}

impl Session<'_> {
    /// Desired sets, to the agent.
    pub(super) async fn order(
        &self,
        mut send: SendStream,
        mut refusals: mpsc::Receiver<Refusal>,
    ) -> Result<(), End> {
        let node = self.node();
        // Told once, however often it is tried again.
        let mut told = None;
        let mut changed = self.shared.cluster.node_changed(node);
        let mut around = self.shared.cluster.neighbours_changed(node);
        let mut outbox = Outbox::default();
        let mut neighbours = NeighboursOutbox::default();
        loop {
            changed.borrow_and_update();
            around.borrow_and_update();
            let state = self.shared.cluster.snapshot();
            if !state.nodes.contains_key(&node) {
                let end = self.removed();
                if let End::Refused(problem) = &end {
                    let problem = (**problem).clone();
                    transmit(&mut send, &BrainMessage::Reject { problem }).await?;
                    let _ = send.finish();
                    // Closing at once would throw away what was not sent yet.
                    let _ = timeout(HELLO_TIMEOUT, send.stopped()).await;
                }
                return Err(end);
            }
            let near = neighbours.next(&state, node);
            let update = outbox.next(desired_set(&state, node));
            drop(state);
            // First who is there, so that what starts now finds it.
            if let Some(near) = near {
                transmit(&mut send, &BrainMessage::Neighbours(near)).await?;
            }
            if let Some(update) = update {
                transmit(&mut send, &BrainMessage::Desired(update)).await?;
            }
            tokio::select! {
                tick = around.changed() => {
                    if tick.is_err() {
                        around = self.shared.cluster.neighbours_changed(node);
                    }
                    // Others' containers come and go in crowds, and one message for many of them is as good.
                    let _ = timeout(CROWD, changed.changed()).await;
                }
                tick = changed.changed() => if tick.is_err() && self.shared.cluster.snapshot().nodes.contains_key(&node) {
                    // Removed and put back meanwhile, or the brain stops.
                    tokio::time::sleep(RESEND_PAUSE).await;
                    changed = self.shared.cluster.node_changed(node);
                },
                refusal = refusals.recv() => {
                    let Some(refusal) = refusal else { return Err(End::Stuck) };
                    let passing = refusal.problem.kind.retryable();
                    let verdict = outbox.refused(refusal.held, refusal.refused, passing);
                    let news = told.as_ref() != Some(&refusal.problem.detail);
                    if matches!(verdict, Verdict::Stuck | Verdict::Later) && news {
                        self.stuck(&refusal).await?;
                        told = Some(refusal.problem.detail);
                    }
                    match verdict {
                        Verdict::Resend => tokio::time::sleep(RESEND_PAUSE).await,
                        Verdict::Later => tokio::time::sleep(RETRY_PAUSE).await,
                        Verdict::Old | Verdict::Stuck => {}
                    }
                }
            }
        }
    }

    async fn stuck(&self, refusal: &Refusal) -> Result<(), End> {
        let Refusal {
            held,
            refused,
            problem,
        } = refusal;
        let mut why = problem.detail.clone();
        if let Some(cure) = &problem.cure {
            why = format!("{why}; {cure}");
        }
        let state = self.shared.cluster.snapshot();
        let event = state.nodes.get(&self.node()).map(|record| NewEvent {
            kind: "desired-refused",
            tenant: None,
            subject: format!("node {}", record.name),
            text: format!(
                "Node {} keeps to desired set {held} and does not take {refused}: {}",
                record.name,
                clip(&why, MAX_TEXT)
            ),
        });
        drop(state);
        match self.member.report(Vec::new(), event.into_iter().collect()).await {
            true => Ok(()),
            false => Err(End::Replaced),
        }
    }
}

pub(super) async fn transmit(send: &mut SendStream, message: &BrainMessage) -> Result<(), End> {
    match timeout(SEND_TIMEOUT, write_frame(send, message)).await {
        Ok(sent) => sent.map_err(End::Control),
        Err(_) => Err(End::Stuck),
    }
}
