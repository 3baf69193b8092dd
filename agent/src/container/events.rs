//! What happens in containerd, as hints to look sooner. The connection may break at any time; each new one begins with
//! [`RuntimeEvent::Relist`], since what happened in between is unknown.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::events::{TaskExit, TaskOom};
use containerd_client::services::v1 as api;
use prost::Message as _;
use tokio::sync::mpsc;

use super::containerd::{ContainerdRuntime, Inner};
use super::runtime::RuntimeEvent;

const QUEUE: usize = 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Time in which a daemon that is there has taken the subscription, and one that isn't has refused it.
const SETTLE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl ContainerdRuntime {
    pub(super) fn listen(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            while !sender.is_closed() {
                match inner.follow(&sender).await {
                    Ok(()) => pause = FIRST_PAUSE,
                    Err(status) => tracing::warn!(%status, "containerd's events broke off"),
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = sender.closed() => return,
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
        receiver
    }
}

impl Inner {
    /// Passes events on until the stream ends.
    async fn follow(&self, sender: &mpsc::Sender<RuntimeEvent>) -> Result<(), tonic::Status> {
        let namespace = self.containerd.namespace();
        let filters = ["/tasks/exit", "/tasks/oom"]
            .map(|topic| format!("namespace=={namespace:?},topic=={topic:?}"))
            .to_vec();
        let mut client = self.containerd.events();
        let body = api::SubscribeRequest { filters };
        let subscribed = client.subscribe(self.containerd.request(body));
        tokio::pin!(subscribed);
        // containerd answers with its first event, however late that is, so no answer soon means that it listens. From
        // then on nothing is missed, which is the moment to look at everything. A full queue only means that the
        // reconciler has reason enough to look.
        let early = tokio::select! {
            reply = &mut subscribed => Some(reply?),
            () = tokio::time::sleep(SETTLE) => None,
            () = sender.closed() => return Ok(()),
        };
        let _ = sender.try_send(RuntimeEvent::Relist);
        let reply = match early {
            Some(reply) => reply,
            None => tokio::select! {
                reply = &mut subscribed => reply?,
                () = sender.closed() => return Ok(()),
            },
        };
        let mut stream = reply.into_inner();
        loop {
            let envelope = tokio::select! {
                message = stream.message() => match message? {
                    Some(envelope) => envelope,
                    None => return Ok(()),
                },
                () = sender.closed() => return Ok(()),
            };
            let Some(event) = envelope.event.as_ref().and_then(event_of) else {
                continue;
            };
            if let Err(mpsc::error::TrySendError::Full(event)) = sender.try_send(event) {
                let _ = sender.send(event).await;
            }
        }
    }
}

fn event_of(any: &prost_types::Any) -> Option<RuntimeEvent> {
    match any.type_url.rsplit('/').next()? {
        "containerd.events.TaskExit" => {
            let exit = TaskExit::decode(any.value.as_slice()).ok()?;
            // Other ids are execs.
            (exit.id == exit.container_id).then_some(RuntimeEvent::Exited(exit.container_id.parse().ok()?))
        }
        "containerd.events.TaskOOM" => {
            let oom = TaskOom::decode(any.value.as_slice()).ok()?;
            Some(RuntimeEvent::Oom(oom.container_id.parse().ok()?))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::id::ContainerId;

    fn any(name: &str, value: Vec<u8>) -> prost_types::Any {
        prost_types::Any {
            type_url: name.into(),
            value,
        }
    }

    #[test]
    fn only_ends_of_containers_and_ooms_count() {
        let id = ContainerId::random();
        let exit = |exec: &str| TaskExit {
            container_id: id.to_string(),
            id: exec.into(),
            ..Default::default()
        };
        let own = any(
            "containerd.events.TaskExit",
            exit(&id.to_string()).encode_to_vec(),
        );
        assert_eq!(event_of(&own), Some(RuntimeEvent::Exited(id)));
        assert_eq!(
            event_of(&any("containerd.events.TaskExit", exit("exec-1").encode_to_vec())),
            None
        );
        let oom = TaskOom {
            container_id: id.to_string(),
        }
        .encode_to_vec();
        assert_eq!(
            event_of(&any("types.containerd.io/containerd.events.TaskOOM", oom)),
            Some(RuntimeEvent::Oom(id))
        );
        assert_eq!(event_of(&any("containerd.events.TaskExit", vec![255, 255])), None);
        assert_eq!(event_of(&any("containerd.events.ImageDelete", vec![])), None);
    }
}
