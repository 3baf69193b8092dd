//! Quotas: what all services and volumes of a tenant reserve together (R4). Pure.
//!
//! Counted are specs and not containers, so that what waits for room counts too, and a rollout's extra container does not. Volumes count by
//! their sizes against the limit for disk, those too that services' mounts will have made.
//! A tenant over its quota (it was lowered) may still change whatever does not reserve more of what is exceeded.

use std::collections::BTreeMap;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::Name;
use berth_common::model::{DEFAULT_VOLUME, Reservation, ServiceRecord, ServiceSpec, TenantRecord};
use berth_common::units::{Bytes, Millicores};

use super::problem::spec_problem;
use crate::cluster::State;

/// Most containers of a tenant, whatever its quota: it bounds the brain's memory.
const MAX_CONTAINERS: u32 = 100_000;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Total {
    reserved: Reservation,
    containers: u32,
}

impl Total {
    /// Of one service. A spec that no longer resolves, by an older brain's rules, counts as nothing.
    fn of(spec: &ServiceSpec) -> Self {
        let each = spec.resolved().map(|(each, _)| each).unwrap_or_default();
        let n = spec.replicas;
        Self {
            reserved: Reservation {
                cpu: Millicores(each.cpu.0.saturating_mul(n)),
                memory: Bytes(each.memory.0.saturating_mul(u64::from(n))),
                disk: Bytes(each.disk.0.saturating_mul(u64::from(n))),
            },
            containers: n,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            reserved: self.reserved.plus(other.reserved),
            containers: self.containers.saturating_add(other.containers),
        }
    }

    /// Only what is more here than in `before`; the rest is zero.
    fn grown(self, before: Self) -> Self {
        let (now, was) = (self.reserved, before.reserved);
        Self {
            reserved: Reservation {
                cpu: if now.cpu > was.cpu { now.cpu } else { Millicores(0) },
                memory: if now.memory > was.memory {
                    now.memory
                } else {
                    Bytes(0)
                },
                disk: if now.disk > was.disk { now.disk } else { Bytes(0) },
            },
            containers: if self.containers > before.containers {
                self.containers
            } else {
                0
            },
        }
    }
}

/// What a tenant with these services has in all; `except`: a volume that counts only if it is there already.
fn total(state: &State, tenant: &TenantRecord, specs: &[&ServiceSpec], except: Option<&Name>) -> Total {
    let services = specs
        .iter()
        .fold(Total::default(), |sum, spec| sum.plus(Total::of(spec)));
    // Where nothing limits it the sum over volumes is not needed.
    if tenant.quota.disk == Bytes::ZERO {
        return services;
    }
    let mut missing = BTreeMap::new();
    for spec in specs {
        for mount in spec.volumes.iter().filter(|mount| mount.snapshot.is_none()) {
            let replicas = if mount.per_replica { spec.replicas } else { 1 };
            let names = (1..=replicas).filter_map(|replica| mount.name_for(replica).ok());
            for name in names.filter(|name| state.volume(tenant.id, name).is_none()) {
                missing
                    .entry(name)
                    .or_insert(mount.size.unwrap_or(DEFAULT_VOLUME));
            }
        }
    }
    if let Some(name) = except {
        missing.remove(name);
    }
    let there = super::volumes::of_tenant(state, tenant.id).map(|volume| volume.size);
    let volumes = there.chain(missing.into_values());
    services.plus(Total {
        reserved: Reservation {
            disk: volumes.fold(Bytes::ZERO, Bytes::saturating_add),
            ..Reservation::default()
        },
        containers: 0,
    })
}

/// Whether the tenant's quota has room for so much more of a volume, new or there already.
///
/// # Errors
/// `quota-exceeded`, with numbers.
pub fn judge_volume(state: &State, tenant: &TenantRecord, name: &Name, more: Bytes) -> Result<(), Problem> {
    let own = state.services.values().filter(|s| s.tenant == tenant.id);
    let specs: Vec<_> = own.map(|service| &service.spec).collect();
    let before = total(state, tenant, &specs, Some(name)).reserved.disk;
    let after = Reservation {
        disk: before.saturating_add(more),
        ..Reservation::default()
    };
    match tenant.quota.exceeded_by(after, 0) {
        None => Ok(()),
        Some(what) => Err(exceeded(tenant, &format!("volume {name}"), &what)),
    }
}

fn exceeded(tenant: &TenantRecord, with: &str, what: &str) -> Problem {
    let detail = format!(
        "with {with}, tenant {} would exceed its quota. {what}",
        tenant.name
    );
    Problem::new(ErrorKind::QuotaExceeded, detail).cure(format!(
        "reserve less, remove something, or ask an administrator for: berth tenant quota {}",
        tenant.name
    ))
}

/// Whether the tenant's quota has room for `spec` in place of `replaced`.
///
/// # Errors
/// `quota-exceeded`, with numbers.
pub fn judge(
    state: &State,
    tenant: &TenantRecord,
    spec: &ServiceSpec,
    replaced: Option<&ServiceRecord>,
) -> Result<(), Problem> {
    spec.resolved().map_err(|error| spec_problem(&error))?;
    let others = state
        .services
        .values()
        .filter(|s| s.tenant == tenant.id && replaced.is_none_or(|old| old.id != s.id));
    let mut specs: Vec<_> = others.map(|service| &service.spec).collect();
    specs.push(spec);
    let after = total(state, tenant, &specs, None);
    specs.pop();
    specs.extend(replaced.map(|old| &old.spec));
    let before = total(state, tenant, &specs, None);
    let grown = after.grown(before);
    if grown.containers > MAX_CONTAINERS {
        return Err(Problem::new(
            ErrorKind::QuotaExceeded,
            format!(
                "tenant {} would have {} containers; at most {MAX_CONTAINERS}",
                tenant.name, grown.containers
            ),
        )
        .cure("ask for fewer replicas"));
    }
    let Some(what) = tenant.quota.exceeded_by(grown.reserved, grown.containers) else {
        return Ok(());
    };
    Err(exceeded(tenant, &format!("service {}", spec.name), &what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Change;
    use crate::controllers::fixtures::{service, tenant_id};
    use berth_common::id::Revision;
    use berth_common::model::{Quota, UnixMillis};

    fn tenant(memory: Bytes, containers: u32) -> TenantRecord {
        let quota = Quota {
            memory,
            containers,
            ..Quota::default()
        };
        TenantRecord {
            quota,
            ..super::super::tenants::new_tenant(tenant_id(1), "t1".parse().unwrap(), UnixMillis(0))
        }
    }

    fn state(services: &[ServiceRecord]) -> State {
        let mut state = State::default();
        let puts = services.iter().cloned().map(Change::PutService).collect();
        state.apply(puts, Revision(1));
        state
    }

    #[test]
    fn replicas_times_reservation_over_all_services() {
        let a = service(1, 1, "web", 3, Bytes::gib(1));
        let foreign = service(2, 2, "web", 100, Bytes::gib(1));
        let state = state(&[a.clone(), foreign]);
        let room = tenant(Bytes::gib(8), 0);
        let want = |replicas| service(3, 1, "web", replicas, Bytes::gib(1)).spec;
        judge(&state, &room, &want(5), None).unwrap();
        let problem = judge(&state, &room, &want(6), None).unwrap_err();
        assert_eq!(problem.kind, ErrorKind::QuotaExceeded);
        assert!(problem.detail.contains("9GiB of 8GiB"), "{}", problem.detail);
        judge(&state, &room, &want(8), Some(&a)).unwrap();
        judge(&state, &tenant(Bytes(0), 7), &want(5), None).unwrap_err();
        judge(&state, &tenant(Bytes(0), 0), &want(10_000), None).unwrap();
    }

    #[test]
    fn over_a_lowered_quota_only_growth_is_refused() {
        let a = service(1, 1, "web", 10, Bytes::gib(1));
        let state = state(std::slice::from_ref(&a));
        let tight = tenant(Bytes::gib(4), 0);
        let with = |replicas, gib| service(1, 1, "web:2", replicas, Bytes::gib(gib)).spec;
        judge(&state, &tight, &with(10, 1), Some(&a)).unwrap();
        judge(&state, &tight, &with(7, 1), Some(&a)).unwrap();
        judge(&state, &tight, &with(11, 1), Some(&a)).unwrap_err();
        judge(&state, &tight, &with(10, 2), Some(&a)).unwrap_err();
    }

    #[test]
    fn best_effort_reserves_no_memory_and_counts_as_containers() {
        let state = state(&[]);
        let mut lent = service(1, 1, "web", 10, Bytes::gib(1));
        lent.spec.class = berth_common::model::Class::BestEffort;
        judge(&state, &tenant(Bytes::gib(1), 10), &lent.spec, None).unwrap();
        judge(&state, &tenant(Bytes::gib(1), 9), &lent.spec, None).unwrap_err();
    }

    #[test]
    fn sums_do_not_overflow() {
        let mut a = service(1, 1, "web", 10_000, Bytes(1 << 50));
        a.spec.resources.limits.cpu = Some(Millicores(1_024_000));
        a.spec.resources.reserve.cpu = Some(Millicores(1_024_000));
        let state = state(std::slice::from_ref(&a));
        let problem = judge(
            &state,
            &tenant(Bytes::gib(1), 0),
            &service(2, 1, "web", 10_000, Bytes(1 << 50)).spec,
            None,
        );
        assert_eq!(problem.unwrap_err().kind, ErrorKind::QuotaExceeded);
    }
}
