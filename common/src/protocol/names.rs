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
}

/// One replica that takes requests.
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

    /// A replica's endpoint.
    pub const fn replica(service: Name, replica: u32, host: HostNumber) -> Self {
        Self {
            service,
            member: Member::Replica(replica),
            host,
        }
    }

    /// Where a service's names begin in an ordered set; they end with the first of another service.
    pub const fn first(service: Name) -> Self {
        Self::service(service, HostNumber(0))
    }

    /// Which replica it is; none of a service itself.
    pub const fn is_replica(&self) -> Option<u32> {
        match self.member {
            Member::Service => None,
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
    names_of(names, service).filter_map(|named| Some((named.is_replica()?, named.host)))
}

impl Called {
    /// Groups names by service.
    pub fn new(vni: Vni, names: impl IntoIterator<Item = Named>) -> Self {
        let mut of: BTreeMap<_, (Option<HostNumber>, Vec<_>)> = BTreeMap::new();
        for named in names {
            let (address, replicas) = of.entry(named.service).or_default();
            match named.member {
                Member::Service => *address = Some(named.host),
                Member::Replica(replica) => replicas.push(CalledReplica {
                    replica,
                    host: named.host,
                }),
            }
        }
        let services = of
            .into_iter()
            .map(|(service, (address, replicas))| CalledService {
                service,
                address,
                replicas,
            });
        Self {
            vni,
            services: services.collect(),
        }
    }

    /// What is called so, one by one.
    pub(super) fn names(self) -> impl Iterator<Item = Named> {
        self.services.into_iter().flat_map(|of| {
            let service = of.service;
            let own = of.address.map(|host| Named::service(service.clone(), host));
            let replicas = of.replicas.into_iter();
            own.into_iter()
                .chain(replicas.map(move |one| Named::replica(service.clone(), one.replica, one.host)))
        })
    }
}
