//! Classes of containers: those that reserve what they need, and those that use what reservations leave idle.

use serde::{Deserialize, Serialize};

use super::validate::SpecError;
use crate::model::{ContainerSpec, Limits, Reservation, ServiceSpec};
use crate::units::{Bytes, Millicores};

/// What a service's containers may count on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// What they reserve is theirs.
    #[default]
    Standard,
    /// They reserve neither CPU nor memory, run where there is some idle, with the least weight, and go first.
    BestEffort,
    /// Of a newer brain; users can't write it. Taken for `standard`.
    #[serde(other)]
    Unknown,
}

impl Class {
    /// The class that is not written.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
    pub fn is_standard(&self) -> bool {
        *self == Self::Standard
    }
}

/// The weight of containers that get what others leave: the least there is.
const LEAST_WEIGHT: u16 = 1;

impl ServiceSpec {
    /// What one container reserves and is limited to.
    ///
    /// # Errors
    /// As [`crate::model::ResourceSpec::resolve`].
    pub fn resolved(&self) -> Result<(Reservation, Limits), SpecError> {
        let (reservation, limits) = self.resources.resolve()?;
        if self.class != Class::BestEffort {
            return Ok((reservation, limits));
        }
        // Disk can't be taken back from who wrote it, so it is reserved all the same.
        let reservation = Reservation {
            cpu: Millicores(0),
            memory: Bytes(0),
            ..reservation
        };
        let limits = Limits {
            cpu_weight: LEAST_WEIGHT,
            ..limits
        };
        Ok((reservation, limits))
    }

    pub(super) fn check_class(&self) -> Result<(), SpecError> {
        let (reserve, limits) = (&self.resources.reserve, &self.resources.limits);
        if self.class == Class::Unknown {
            return Err(SpecError::new("/class", "one of standard, best-effort"));
        }
        if self.class != Class::BestEffort {
            return Ok(());
        }
        let theirs = [
            (
                "/resources/reserve/cpu",
                reserve.cpu.is_some_and(|cpu| cpu.0 > 0),
                "reserve no CPU",
            ),
            (
                "/resources/reserve/memory",
                reserve.memory.is_some_and(|memory| memory.0 > 0),
                "reserve no memory",
            ),
            (
                "/resources/limits/cpu_weight",
                limits.cpu_weight.is_some_and(|weight| weight != LEAST_WEIGHT),
                "have the least weight",
            ),
        ];
        match theirs.into_iter().find(|(_, wrong, _)| *wrong) {
            Some((field, _, what)) => Err(SpecError::new(
                field,
                format!("best-effort containers {what}; leave it out"),
            )),
            None => Ok(()),
        }
    }
}

impl ContainerSpec {
    /// What it uses of what reservations leave idle: memory up to its limit, and a tenth of its CPU limit, since CPU is compressible.
    /// Nothing where it reserves what it needs.
    pub fn idle_use(&self) -> Reservation {
        if self.class != Class::BestEffort {
            return Reservation::default();
        }
        Reservation {
            cpu: Millicores((self.limits.cpu.0 / 10).max(1)),
            memory: self.limits.memory,
            disk: Bytes(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(class: Class) -> ServiceSpec {
        let mut spec = ServiceSpec::new("web".parse().unwrap(), "nginx".parse().unwrap());
        spec.class = class;
        spec
    }

    #[test]
    fn r1_best_effort_reserves_disk_alone_and_has_every_limit() {
        let plain = spec(Class::Standard).container_spec().unwrap();
        let mut lent = spec(Class::BestEffort).container_spec().unwrap();
        assert_eq!((lent.reservation.cpu.0, lent.reservation.memory.0), (0, 0));
        assert_eq!(lent.reservation.disk, plain.reservation.disk);
        assert_eq!(lent.idle_use().memory, plain.reservation.memory);
        assert_eq!(lent.idle_use().cpu, plain.reservation.cpu);
        assert_eq!(plain.idle_use(), Reservation::default());
        assert_eq!(std::mem::replace(&mut lent.limits.cpu_weight, 100), 1);
        assert_eq!(lent.limits, plain.limits);
    }

    #[test]
    fn what_it_can_t_have_is_refused_by_field() {
        for (field, text) in [
            ("/resources/reserve/cpu", r#""reserve":{"cpu":"0.1"}"#),
            ("/resources/reserve/memory", r#""reserve":{"memory":"1MiB"}"#),
            ("/resources/limits/cpu_weight", r#""limits":{"cpu_weight":100}"#),
        ] {
            let text =
                format!(r#"{{"name":"web","image":"nginx","class":"best-effort","resources":{{{text}}}}}"#);
            let spec: ServiceSpec = serde_json::from_str(&text).unwrap();
            assert_eq!(spec.validate().unwrap_err().field, field);
        }
        let typo = r#"{"name":"web","image":"nginx","class":"besteffort"}"#;
        assert!(
            serde_json::from_str::<ServiceSpec>(typo)
                .unwrap_err()
                .to_string()
                .contains("besteffort")
        );
        assert_eq!(spec(Class::Unknown).validate().unwrap_err().field, "/class");
    }
}
