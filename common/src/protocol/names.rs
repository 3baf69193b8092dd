//! What services and their replicas are called on a network: addresses by name, as a node is told them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::id::Name;
use crate::model::{HostNumber, Vni};

/// Who is called what on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// Which network.
    pub vni: Vni,
    /// Services there.
    pub services: Vec<CalledService>,
}

/// A service on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalledService {
    /// The service's name.
    pub service: Name,
    /// Its own address, behind which its replicas take turns; none of one that has none, or whose address is no news.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<HostNumber>,
    /// Those of its replicas that take requests, with their endpoints on that network.
    pub replicas: Vec<CalledReplica>,
    /// The others: they have no names, but may send requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub idle: Vec<CalledReplica>,
}

/// One replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalledReplica {
    /// Which, from 1. For moments two containers may be the same one.
    pub replica: u32,
    /// Its endpoint.
    pub host: HostNumber,
}

/// What of a service has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// The service itself.
    Service,
    /// A replica that takes requests, from 1.
    Replica(u32),
    /// One that takes none now: it starts, is unhealthy, or leaves.
    Idle(u32),
}

/// An address on a network, by what it is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// The service's name.
    pub service: Name,
    /// What of it.
    pub member: Member,
    /// The address.
    pub host: HostNumber,
}

impl Named {
    /// A service's own address.
    pub const fn service(service: Name, host: HostNumber) -> Self {
        Self {
            service,
            member: Member::Service,
            host,
        }
    }

    /// The endpoint of a replica that takes requests.
    pub const fn replica(service: Name, replica: u32, host: HostNumber) -> Self {
        Self {
            service,
            member: Member::Replica(replica),
            host,
        }
    }

    /// The endpoint of a replica that takes no requests now.
    pub const fn idle(service: Name, replica: u32, host: HostNumber) -> Self {
        Self {
            service,
            member: Member::Idle(replica),
            host,
        }
    }

    /// Where a service's names begin in an ordered set; they end with the first of another service.
    pub const fn first(service: Name) -> Self {
        Self::service(service, HostNumber(0))
    }

    /// Which replica that takes requests it is; none of anything else.
    pub const fn as_replica(&self) -> Option<u32> {
        match self.member {
            Member::Service | Member::Idle(_) => None,
            Member::Replica(replica) => Some(replica),
        }
    }
}

/// What is called after a service.
pub fn names_of<'a>(names: &'a BTreeSet<Named>, service: &'a Name) -> impl Iterator<Item = &'a Named> {
    let from = names.range(Named::first(service.clone())..);
    from.take_while(move |named| named.service == *service)
}

/// Replicas of a service that take requests.
pub fn replicas_of<'a>(
    names: &'a BTreeSet<Named>,
    service: &'a Name,
) -> impl Iterator<Item = (u32, HostNumber)> + 'a {
    names_of(names, service).filter_map(|named| Some((named.as_replica()?, named.host)))
}

/// Endpoints of a service, whether they take requests or not.
pub fn endpoints_of<'a>(
    names: &'a BTreeSet<Named>,
    service: &'a Name,
) -> impl Iterator<Item = HostNumber> + 'a {
    let of = names_of(names, service).filter(|named| named.member != Member::Service);
    of.map(|named| named.host)
}

impl Called {
    /// Groups names by service.
    pub fn new(vni: Vni, names: impl IntoIterator<Item = Named>) -> Self {
        let mut of: BTreeMap<Name, CalledService> = BTreeMap::new();
        for Named {
            service,
            member,
            host,
        } in names
        {
            let called = of.entry(service.clone()).or_insert_with(|| CalledService {
                service,
                address: None,
                replicas: Vec::new(),
                idle: Vec::new(),
            });
            match member {
                Member::Service => called.address = Some(host),
                Member::Replica(replica) => called.replicas.push(CalledReplica { replica, host }),
                Member::Idle(replica) => called.idle.push(CalledReplica { replica, host }),
            }
        }
        Self {
            vni,
            services: of.into_values().collect(),
        }
    }

    /// What is called so, one by one.
    pub(super) fn names(self) -> impl Iterator<Item = Named> {
        self.services.into_iter().flat_map(|of| {
            let service = of.service;
            let named = |member, host| Named {
                service: service.clone(),
                member,
                host,
            };
            let own = of.address.map(|host| named(Member::Service, host));
            let replicas = of
                .replicas
                .iter()
                .map(|one| named(Member::Replica(one.replica), one.host));
            let idle = of
                .idle
                .iter()
                .map(|one| named(Member::Idle(one.replica), one.host));
            own.into_iter().chain(replicas).chain(idle).collect::<Vec<_>>()
        })
    }
}
