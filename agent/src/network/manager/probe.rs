//! Taking part in a probe: an endpoint on the probe's network, for as long as that goes on.

use std::net::IpAddr;
use std::sync::Arc;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{ContainerId, NodeId};
use berth_common::model::{Subnets, Vni};
use berth_common::protocol::{DesiredEndpoint, Heard, Neighbours, ProbePeer, Probed};

use super::Networks;
use crate::network::Namespace;
use crate::network::plan::mtu_over;
use crate::network::probe::{Answering, measure};
use crate::reconcile::{Endpoints, Places};

/// Pings from host to host: enough to see that there is a way.
const OUTSIDE: u32 = 5;
/// From endpoint to endpoint: so many that one of fifty lost is seen.
const INSIDE: u32 = 50;

/// Whose endpoint it is: no container is called so.
const NOBODY: ContainerId = ContainerId::from_bytes([0; 10]);

/// This host's part of a probe. It ends when this is dropped.
pub struct Probe {
    networks: Arc<Networks>,
    neighbours: Neighbours,
    subnets: Subnets,
    space: Namespace,
    answering: Option<Answering>,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe")
            .field("space", &self.space)
            .finish_non_exhaustive()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.answering = None;
        self.networks.known.lock().probe(None);
        *self.networks.probing.lock() = None;
        self.networks.wake.notify_one();
    }
}

impl Networks {
    /// Takes part in a probe.
    ///
    /// # Errors
    /// When one goes on here, or this host can't have networks, and why.
    pub async fn probe(
        self: &Arc<Self>,
        endpoint: DesiredEndpoint,
        neighbours: Neighbours,
    ) -> Result<Probe, Problem> {
        if endpoint.vni != Vni::PROBE {
            return Err(Problem::invalid(format!(
                "network {} is not a probe's",
                endpoint.vni
            )));
        }
        let space = Namespace::new()
            .map_err(|error| Problem::unavailable(format!("a namespace can't be made: {error}")))?;
        {
            let mut probing = self.probing.lock();
            if probing.is_some() {
                let busy = Problem::new(ErrorKind::Conflict, "another check of the network goes on here");
                return Err(busy.cure("wait until it is done, a minute at most"));
            }
            if !self.known.lock().probe(Some(neighbours.clone())) {
                return Err(
                    Problem::unavailable("this node has not heard yet which others there are")
                        .cure("try again in a few seconds"),
                );
            }
            *probing = Some(endpoint.clone());
        }
        // From here on dropping it undoes everything.
        let mut probe = Probe {
            networks: self.clone(),
            neighbours,
            subnets: endpoint.subnets,
            space,
            answering: None,
        };
        self.refresh();
        // Filters and what leads to other sites first: an endpoint leaves out whom nothing may be sent to yet.
        let prepared = async {
            self.join(std::slice::from_ref(&endpoint), &probe.space).await?;
            self.keep_host(false).await?;
            self.join(std::slice::from_ref(&endpoint), &probe.space).await
        };
        prepared.await.map_err(Problem::unavailable)?;
        let answering = Answering::start(&probe.space, endpoint.subnets, endpoint.host);
        probe.answering = Some(answering.map_err(|error| {
            Problem::unavailable(format!("the probe's endpoint can't answer others: {error}"))
        })?);
        Ok(probe)
    }

    /// What is desired, and the probe's endpoint while there is one.
    pub(super) fn with_probe(&self, mut desired: Arc<Endpoints>) -> Arc<Endpoints> {
        if let Some(endpoint) = &*self.probing.lock() {
            let at = vec![endpoint.clone()];
            Arc::make_mut(&mut desired).insert(
                NOBODY,
                Places {
                    at,
                    ..Places::default()
                },
            );
        }
        desired
    }
}

impl Probe {
    /// Measures the way to another that takes part. Blocks for seconds.
    pub fn measure(&self, peer: ProbePeer) -> Probed {
        let to = IpAddr::from(self.subnets.address(peer.host));
        let at = *self.networks.underlay.borrow();
        let network_mtu = at.map_or(0, |at| mtu_over(at.address, at.mtu));
        let mtu = at.map_or(0, |at| at.mtu);
        let outside = self
            .neighbours
            .nodes
            .get(&peer.node)
            .copied()
            .and_then(|address| {
                let asked = self
                    .networks
                    .kernel
                    .host()
                    .within(move || measure::way(address, OUTSIDE, mtu));
                told(peer.node, asked.and_then(std::convert::identity))
            });
        let inside = self.space.within(move || {
            let way = measure::way(to, INSIDE, network_mtu);
            // Datagrams also where no ping is answered: who hears them tells in which direction packets are lost.
            let udp = measure::udp(to);
            let answered = way.as_ref().is_ok_and(|way| way.echoes.answered > 0);
            (way, udp, (answered || udp) && measure::tcp(to))
        });
        let (way, udp, tcp) = match inside {
            Ok((way, udp, tcp)) => (told(peer.node, way).unwrap_or_default(), udp, tcp),
            Err(error) => {
                tracing::warn!(node = %peer.node, %error, "the way to a node can't be measured");
                (measure::Way::default(), false, false)
            }
        };
        Probed {
            node: peer.node,
            underlay: outside.map(|way| way.echoes),
            underlay_mtu: outside.and_then(|way| way.mtu),
            network: way.echoes,
            network_mtu: way.mtu,
            udp,
            tcp,
        }
    }

    /// Whom it has heard so far.
    pub fn heard(&self) -> Heard {
        let hosts = self.answering.as_ref().map(Answering::heard);
        Heard {
            hosts: hosts.unwrap_or_default(),
        }
    }
}

fn told<T>(node: NodeId, asked: std::io::Result<T>) -> Option<T> {
    asked
        .inspect_err(|error| tracing::debug!(%node, %error, "pings can't be sent"))
        .ok()
}
