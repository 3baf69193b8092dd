//! Reservations and limits (R1, R4).
//!
//! People may leave out anything; [`ResourceSpec::resolve`] fills it in, so that no container ever lacks a limit.

use serde::{Deserialize, Serialize};

use crate::model::SpecError;
use crate::units::{Bytes, Millicores};

/// What a user writes about resources; everything may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ResourceSpec {
    /// What the scheduler sets aside.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reserve: ReserveSpec,
    /// What the kernel enforces.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: LimitsSpec,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The user's reservations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ReserveSpec {
    /// CPU in millicores; default a tenth of the limit, since CPU is compressible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Millicores>,
    /// Memory; default the limit, since memory is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Disk of the writable layer; default the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
}

/// The user's limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct LimitsSpec {
    /// CPU quota in millicores; default 1000 (one core). 10 to 1,024,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Millicores>,
    /// Share under contention, 1 to 10,000 (cgroup v2 scale); default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u16>,
    /// Memory, default 256MiB. At least 6MiB. Swap is always none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Memory above which a container is slowed down and its memory reclaimed, before the limit ends it; default none. At
    /// least 1MiB, at most the limit. Needs cgroup v2 (`memory.high`); without it it does nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<Bytes>,
    /// Processes and threads, default 512. 1 to 1,000,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Writable layer, default 1GiB. At least 1MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Reads from the device that holds the layer, bytes a second, default 200MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bps: Option<Bytes>,
    /// Writes, bytes a second, default 100MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bps: Option<Bytes>,
    /// Read operations a second, default 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u32>,
    /// Write operations a second, default 5,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u32>,
}

/// What the scheduler sets aside for one container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reservation {
    /// CPU in millicores.
    pub cpu: Millicores,
    /// Memory in bytes.
    pub memory: Bytes,
    /// Disk in bytes.
    pub disk: Bytes,
}

impl Reservation {
    /// Component-wise sum.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_add(other.cpu),
            memory: self.memory.saturating_add(other.memory),
            disk: self.disk.saturating_add(other.disk),
        }
    }

    /// Component-wise difference, not below zero.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(other.cpu),
            memory: self.memory.saturating_sub(other.memory),
            disk: self.disk.saturating_sub(other.disk),
        }
    }
}

/// Throttles on the block device that holds the writable layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IoLimits {
    /// Bytes read a second.
    pub read_bps: Bytes,
    /// Bytes written a second.
    pub write_bps: Bytes,
    /// Read operations a second.
    pub read_iops: u32,
    /// Write operations a second.
    pub write_iops: u32,
}

/// What becomes of swap. Only `none` exists today; the field is on the wire so that an older agent refuses to make or
/// change a container that asks for another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MemorySwap {
    /// memory + swap = memory.
    #[default]
    None,
    /// Of a newer brain: a limit that can't be put in force here (R1).
    #[serde(other)]
    Unknown,
}

/// Every limit of one container, none missing (R1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limits {
    /// CPU quota in millicores.
    pub cpu: Millicores,
    /// cgroup v2 weight, 1 to 10,000.
    pub cpu_weight: u16,
    /// Memory in bytes.
    pub memory: Bytes,
    /// Memory above which it is slowed down and reclaimed from, bytes; none: nothing but the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<Bytes>,
    /// Swap.
    #[serde(default)]
    pub swap: MemorySwap,
    /// Processes and threads.
    pub pids: u32,
    /// Writable layer in bytes.
    pub disk: Bytes,
    /// Block device throttles.
    pub io: IoLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu: Millicores(1000),
            cpu_weight: 100,
            memory: Bytes::mib(256),
            memory_high: None,
            swap: MemorySwap::None,
            pids: 512,
            disk: Bytes::gib(1),
            io: IoLimits {
                read_bps: Bytes::mib(200),
                write_bps: Bytes::mib(100),
                read_iops: 10_000,
                write_iops: 5_000,
            },
        }
    }
}

fn within<T: PartialOrd + std::fmt::Display + Copy>(
    field: &'static str,
    value: T,
    low: T,
    high: T,
) -> Result<T, SpecError> {
    if value < low || value > high {
        return Err(SpecError::new(
            field,
            format!("{value} is out of range: {low} to {high}"),
        ));
    }
    Ok(value)
}

impl ResourceSpec {
    /// Fills in defaults and checks ranges.
    ///
    /// # Errors
    /// Names the field that is out of range, or a reservation above its limit.
    pub fn resolve(&self) -> Result<(Reservation, Limits), SpecError> {
        let d = Limits::default();
        let l = &self.limits;
        let top = Bytes(1 << 50);
        let io =
            |field, value: Option<Bytes>, default| within(field, value.unwrap_or(default), Bytes(4096), top);
        let ops = |field, value: Option<u32>, default| within(field, value.unwrap_or(default), 1, 10_000_000);
        let memory = within(
            "/resources/limits/memory",
            l.memory.unwrap_or(d.memory),
            Bytes::mib(6),
            top,
        )?;
        let high = |value| within("/resources/limits/memory_high", value, Bytes::mib(1), memory);
        let limits = Limits {
            memory,
            memory_high: l.memory_high.map(high).transpose()?,
            cpu: within(
                "/resources/limits/cpu",
                l.cpu.unwrap_or(d.cpu),
                Millicores(10),
                Millicores(1_024_000),
            )?,
            cpu_weight: within(
                "/resources/limits/cpu_weight",
                l.cpu_weight.unwrap_or(100),
                1,
                10_000,
            )?,
            swap: MemorySwap::None,
            pids: within("/resources/limits/pids", l.pids.unwrap_or(d.pids), 1, 1_000_000)?,
            disk: within(
                "/resources/limits/disk",
                l.disk.unwrap_or(d.disk),
                Bytes::mib(1),
                top,
            )?,
            io: IoLimits {
                read_bps: io("/resources/limits/read_bps", l.read_bps, d.io.read_bps)?,
                write_bps: io("/resources/limits/write_bps", l.write_bps, d.io.write_bps)?,
                read_iops: ops("/resources/limits/read_iops", l.read_iops, d.io.read_iops)?,
                write_iops: ops("/resources/limits/write_iops", l.write_iops, d.io.write_iops)?,
            },
        };
        let r = &self.reserve;
        let reservation = Reservation {
            cpu: r.cpu.unwrap_or(Millicores((limits.cpu.0 / 10).max(1))),
            memory: r.memory.unwrap_or(limits.memory),
            disk: r.disk.unwrap_or(limits.disk),
        };
        let over = |field, what: &str| {
            Err(SpecError::new(
                field,
                format!("the {what} reservation is above its limit; raise the limit or lower it"),
            ))
        };
        if reservation.cpu > limits.cpu {
            return over("/resources/reserve/cpu", "CPU");
        }
        if reservation.memory > limits.memory {
            return over("/resources/reserve/memory", "memory");
        }
        if reservation.disk > limits.disk {
            return over("/resources/reserve/disk", "disk");
        }
        Ok((reservation, limits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_given_resolves_to_every_limit() {
        let (reservation, limits) = ResourceSpec::default().resolve().unwrap();
        assert_eq!(limits, Limits::default());
        assert_eq!(reservation.memory, limits.memory);
        assert_eq!(reservation.cpu, Millicores(100));
    }

    #[test]
    fn zero_and_absurd_are_refused_naming_the_field() {
        let cases = [
            (r#"{"limits":{"cpu":0}}"#, "cpu"),
            (r#"{"limits":{"memory":0}}"#, "memory"),
            (
                r#"{"limits":{"memory":"1024TiB"},"reserve":{"memory":"1025TiB"}}"#,
                "memory",
            ),
            (r#"{"limits":{"memory_high":"257MiB"}}"#, "memory_high"),
            (r#"{"limits":{"memory_high":0}}"#, "memory_high"),
            (r#"{"limits":{"pids":0}}"#, "pids"),
            (r#"{"limits":{"cpu_weight":10001}}"#, "cpu_weight"),
            (r#"{"limits":{"read_iops":0}}"#, "read_iops"),
            (r#"{"reserve":{"cpu":2000}}"#, "reserve/cpu"),
        ];
        for (json, field) in cases {
            let spec: ResourceSpec = serde_json::from_str(json).unwrap();
            let error = spec.resolve().unwrap_err();
            assert!(error.field.contains(field), "{json}: {error}");
        }
        assert!(
            serde_json::from_str::<ResourceSpec>(r#"{"limits":{"cpus":1}}"#).is_err(),
            "typo must not be ignored"
        );
    }

    proptest! {
        #[test]
        fn r1_whatever_resolves_has_every_limit_above_zero(cpu in proptest::option::of(any::<u32>()), memory in proptest::option::of(any::<u64>()), pids in proptest::option::of(any::<u32>())) {
            let spec = ResourceSpec {
                limits: LimitsSpec { cpu: cpu.map(Millicores), memory: memory.map(Bytes), pids, ..Default::default() },
                ..Default::default()
            };
            if let Ok((r, l)) = spec.resolve() {
                prop_assert!(l.cpu.0 > 0 && l.memory.0 > 0 && l.pids > 0 && l.disk.0 > 0);
                prop_assert!(l.io.read_bps.0 > 0 && l.io.write_bps.0 > 0 && l.io.read_iops > 0 && l.io.write_iops > 0);
                prop_assert!(r.cpu <= l.cpu && r.memory <= l.memory && r.disk <= l.disk);
            }
        }
    }
}
