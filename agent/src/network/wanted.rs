//! Which networks this node must have: from what is desired, what runs, and who else there is. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_common::id::{ContainerId, Name, NodeId};
use berth_common::model::{Bandwidth, HostNumber, Underlay, Vni};
use berth_common::protocol::{DesiredEndpoint, Named, Neighbours};

use super::plan::Overlay;
use super::publish::{Local, inward};
use crate::dns::Zone;
use crate::dns::zone::KnownNetwork;
use crate::reconcile::Endpoints;

/// Containers' places on networks, also of those that are not wanted any more and still run: they end in order.
#[derive(Debug, Default)]
pub struct Wanted {
    places: Endpoints,
    /// Containers that answer nobody: they ended and were not begun again yet.
    ended: BTreeSet<ContainerId>,
}

impl Wanted {
    /// Takes in what is desired now, and forgets what neither is nor runs.
    pub fn take(
        &mut self,
        desired: &Endpoints,
        running: &BTreeSet<ContainerId>,
        ended: BTreeSet<ContainerId>,
    ) {
        self.places.retain(|id, _| running.contains(id));
        self.places
            .extend(desired.iter().map(|(id, places)| (*id, places.clone())));
        self.ended = ended;
    }

    /// A container's places, the first with the default route.
    pub fn of(&self, container: ContainerId) -> &[DesiredEndpoint] {
        self.places.get(&container).map_or(&[], |places| &places.at)
    }

    /// Services whose containers may open connections to a container; none: all.
    pub fn lets_in(&self, container: ContainerId) -> Option<&[Name]> {
        self.places.get(&container)?.ingress_from.as_deref()
    }

    fn all(&self) -> impl Iterator<Item = &DesiredEndpoint> {
        self.places.values().flat_map(|places| &places.at)
    }

    /// What the one with an address on a network may know of names: those of all networks that it is on.
    pub fn zone<'a>(
        &'a self,
        vni: Vni,
        who: IpAddr,
        names: Option<&'a BTreeMap<Vni, BTreeSet<Named>>>,
    ) -> Zone<'a> {
        let is = |place: &&DesiredEndpoint| place.vni == vni && place.subnets.number(who) == Some(place.host);
        let mut all = self.places.values().map(|places| &places.at);
        let places = all.find(|places| places.iter().any(|place| is(&place)));
        let known = places.into_iter().flatten().map(|place| KnownNetwork {
            name: &place.network,
            subnets: place.subnets,
            names: names.and_then(|names| names.get(&place.vni)),
        });
        Zone(known.collect())
    }

    /// Networks that somebody here is on.
    pub fn networks(&self) -> BTreeSet<Vni> {
        self.all().map(|place| place.vni).collect()
    }

    /// Places of those that have not ended.
    fn answering(&self) -> impl Iterator<Item = &DesiredEndpoint> {
        let all = self.places.iter().filter(|(id, _)| !self.ended.contains(id));
        all.flat_map(|(_, places)| &places.at)
    }

    /// Endpoints here whose containers have not ended, by network.
    pub fn local(&self) -> Local {
        let mut local = Local::new();
        for place in self.answering() {
            let held = local.entry(place.vni);
            let (_, hosts) = held.or_insert_with(|| (place.subnets, BTreeSet::new()));
            hosts.insert(place.host);
        }
        local
    }

    /// What a network is called, for people.
    pub fn name(&self, vni: Vni) -> String {
        let place = self.all().find(|place| place.vni == vni);
        place.map_or_else(
            || format!("the network with VNI {vni}"),
            |place| format!("network {} (VNI {vni})", place.network),
        )
    }

    /// A network as it must be here; none if nobody here is on it. `neighbours`: none while nobody has said who else there is. `shut`:
    /// nodes to which nothing may be sent, since it would go in the clear.
    pub fn overlay(
        &self,
        vni: Vni,
        at: Underlay,
        neighbours: Option<&Neighbours>,
        shut: &BTreeSet<NodeId>,
    ) -> Option<Overlay> {
        let own: Vec<_> = self.all().filter(|place| place.vni == vni).collect();
        let subnets = own.first()?.subnets;
        let local: BTreeSet<HostNumber> = own.iter().map(|place| place.host).collect();
        let answering = self.answering().filter(|place| place.vni == vni);
        let answering = answering.map(|place| place.host).collect();
        let remote = neighbours.map(|known| {
            let mut remote: BTreeMap<_, _> = known.reachable(vni, shut);
            // What came here a moment ago may still be told as elsewhere.
            remote.retain(|host, _| !local.contains(host));
            remote
        });
        Some(Overlay {
            vni,
            subnets,
            underlay: (at.address, at.mtu),
            port: at.port,
            remote,
            transit: None,
            six: at.address6.is_some(),
            rates: self.rates(vni),
            published: neighbours.map_or_else(Vec::new, |known| inward(known, vni, &subnets, &answering)),
            local,
            offload: true,
        })
    }

    fn rates(&self, vni: Vni) -> BTreeMap<HostNumber, Bandwidth> {
        let limited = self.places.values().filter(|places| !places.bandwidth.is_free());
        let rates = limited.flat_map(|places| {
            let here = places.at.iter().filter(|place| place.vni == vni);
            here.map(|place| (place.host, places.bandwidth))
        });
        rates.collect()
    }

    /// Which of a container's places on a network are among `absent`: as which of its networks, and which number there.
    pub fn lost(
        &self,
        container: ContainerId,
        vni: Vni,
        absent: &BTreeSet<HostNumber>,
    ) -> Option<(usize, HostNumber)> {
        let mut places = self.of(container).iter().enumerate();
        let lost = places.find(|(_, place)| place.vni == vni && absent.contains(&place.host));
        lost.map(|(nth, place)| (nth, place.host))
    }
}

#[cfg(test)]
mod tests {
    use berth_common::model::Subnets;

    use super::*;
    use crate::reconcile::Places;

    fn vni(n: u32) -> Vni {
        Vni::try_from(n).unwrap()
    }

    fn id(n: u8) -> ContainerId {
        ContainerId::from_bytes([n; 10])
    }

    fn place(net: u32, host: u32) -> DesiredEndpoint {
        DesiredEndpoint {
            vni: vni(net),
            network: "back".parse().unwrap(),
            subnets: Subnets::new("10.80.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()).unwrap(),
            host: HostNumber(host),
        }
    }

    fn at(at: Vec<DesiredEndpoint>) -> Places {
        Places {
            at,
            ..Places::default()
        }
    }

    #[test]
    fn what_still_runs_keeps_its_places_and_what_does_not_loses_them() {
        let mut wanted = Wanted::default();
        let desired = Endpoints::from([
            (id(1), at(vec![place(7, 2)])),
            (id(2), at(vec![place(8, 2), place(7, 3)])),
        ]);
        wanted.take(&desired, &BTreeSet::new(), BTreeSet::new());
        assert_eq!(wanted.networks(), [vni(7), vni(8)].into());
        assert_eq!(wanted.name(vni(7)), "network back (VNI 7)");
        // Both are not wanted any more; one still runs.
        wanted.take(&Endpoints::new(), &[id(2)].into(), BTreeSet::new());
        assert_eq!((wanted.of(id(1)).len(), wanted.of(id(2)).len()), (0, 2));
        assert_eq!(
            wanted.lost(id(2), vni(7), &[HostNumber(3)].into()),
            Some((1, HostNumber(3)))
        );
        assert_eq!(wanted.lost(id(2), vni(8), &[HostNumber(3)].into()), None);
        wanted.take(&Endpoints::new(), &BTreeSet::new(), BTreeSet::new());
        assert!(wanted.networks().is_empty());
    }

    #[test]
    fn who_ended_answers_nobody_until_it_begins_again_and_keeps_its_place() {
        let mut wanted = Wanted::default();
        let desired = Endpoints::from([(id(1), at(vec![place(7, 2)])), (id(2), at(vec![place(7, 3)]))]);
        let hosts = |wanted: &Wanted| wanted.local().remove(&vni(7)).map(|(_, hosts)| hosts);
        wanted.take(&desired, &BTreeSet::new(), [id(1)].into());
        assert_eq!(hosts(&wanted), Some([HostNumber(3)].into()));
        assert_eq!(wanted.of(id(1)).len(), 1);
        wanted.take(&desired, &BTreeSet::new(), BTreeSet::new());
        assert_eq!(hosts(&wanted), Some([HostNumber(2), HostNumber(3)].into()));
    }

    #[test]
    fn an_endpoint_is_here_or_elsewhere_and_unknown_is_not_nobody() {
        let mut wanted = Wanted::default();
        wanted.take(
            &Endpoints::from([(id(1), at(vec![place(7, 2)]))]),
            &BTreeSet::new(),
            BTreeSet::new(),
        );
        let at = Underlay {
            address: [192, 0, 2, 1].into(),
            mtu: 1500,
            port: 4789,
            wireguard: None,
            address6: None,
        };
        let node = NodeId::from_bytes([9; 10]);
        let known = Neighbours {
            nodes: [(node, [192, 0, 2, 9].into())].into(),
            networks: [(vni(7), [(HostNumber(2), node), (HostNumber(3), node)].into())].into(),
            ..Neighbours::default()
        };
        let nobody = BTreeSet::new();
        let overlay = wanted.overlay(vni(7), at, Some(&known), &nobody).unwrap();
        assert_eq!(overlay.local, [HostNumber(2)].into());
        assert_eq!(
            overlay.remote,
            Some([(HostNumber(3), [192, 0, 2, 9].into())].into())
        );
        assert_eq!(wanted.overlay(vni(7), at, None, &nobody).unwrap().remote, None);
        assert_eq!(wanted.overlay(vni(8), at, Some(&known), &nobody), None);
        // Of another site, and not sealed yet.
        let shut = [node].into();
        let overlay = wanted.overlay(vni(7), at, Some(&known), &shut).unwrap();
        assert_eq!(overlay.remote, Some(BTreeMap::new()));
    }
}
