//! Conversions between berth's units and the kernel's, all pure.
//!
//! Owns every rounding that makes a value read back differ from the one written. Nothing else may compare them.

use berth_common::model::{IoLimits, Reservation};
use berth_common::protocol::Pressure;
use berth_common::units::{Bytes, Millicores};

use super::Device;

/// CFS period berth always uses, microseconds.
pub const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses smaller quotas, microseconds.
const MIN_QUOTA_US: u64 = 1_000;
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

/// v1 `cpu.shares` (2 to 262,144) for a v2 weight (1 to 10,000): `2 + ⌈(weight − 1) · 262142 / 9999⌉`.
///
/// The inverse of what runc before 1.3 does with OCI shares on v2, `1 + ⌊(shares − 2) · 9999 / 262142⌋`; rounding up here makes
/// [`weight_of_shares`] give back exactly the weight that went in.
pub const fn shares_of_weight(weight: u16) -> u64 {
    let weight = if weight == 0 { 1 } else { weight as u64 };
    let shares = MIN_SHARES + ((weight - 1) * (MAX_SHARES - MIN_SHARES)).div_ceil(9_999);
    if shares > MAX_SHARES { MAX_SHARES } else { shares }
}

/// The weight that `shares` stands for, by runc's formula; out-of-range shares are clamped.
pub const fn weight_of_shares(shares: u64) -> u16 {
    let shares = if shares < MIN_SHARES {
        MIN_SHARES
    } else if shares > MAX_SHARES {
        MAX_SHARES
    } else {
        shares
    };
    (1 + (shares - MIN_SHARES) * 9_999 / (MAX_SHARES - MIN_SHARES)) as u16
}

/// Quota in microseconds per [`CPU_PERIOD_US`], at least the kernel's smallest.
pub const fn quota_us(cpu: Millicores) -> u64 {
    let quota = cpu.0 as u64 * CPU_PERIOD_US / 1_000;
    if quota < MIN_QUOTA_US { MIN_QUOTA_US } else { quota }
}

/// Millicores that a quota and period stand for; `wanted` if it is what they were made from.
pub(super) fn cpu_in_force(quota: Option<u64>, period: u64, wanted: Millicores) -> Millicores {
    let Some(quota) = quota else {
        return Millicores(u32::MAX);
    };
    if period == CPU_PERIOD_US && quota == quota_us(wanted) {
        return wanted;
    }
    let milli = u128::from(quota) * 1_000 / u128::from(period.max(1));
    Millicores(u32::try_from(milli).unwrap_or(u32::MAX))
}

/// What the kernel makes of a memory limit: whole pages, rounded down.
pub(super) const fn whole_pages(bytes: u64, page: u64) -> u64 {
    bytes - bytes % page
}

/// The memory limit to report for what the kernel holds.
pub(super) const fn memory_in_force(held: u64, wanted: Bytes, page: u64) -> Bytes {
    if held == whole_pages(wanted.0, page) {
        wanted
    } else {
        Bytes(held)
    }
}

/// Processes and threads that all containers together may have: seven eighths of what the kernel can number, so that
/// the system can always still fork.
pub(super) const fn pid_ceiling(pid_max: u64) -> u64 {
    let ceiling = pid_max - pid_max / 8;
    if ceiling < 64 { 64 } else { ceiling }
}

/// Weight of berth's top group: 100, the weight of a system slice, for every allocatable core.
pub fn root_weight(allocatable: Reservation) -> u16 {
    (allocatable.cpu.0 / 10).clamp(1, 10_000) as u16
}

/// `shares` of berth's top group: 1,024, the weight of one process in the root group, for every allocatable core.
pub(super) fn root_shares(allocatable: Reservation) -> u64 {
    (u64::from(allocatable.cpu.0) * 1_024 / 1_000).clamp(MIN_SHARES, MAX_SHARES)
}

/// The throttle of `device` in a v1 file of `major:minor value` lines.
pub(super) fn throttle_of(text: &str, device: Device) -> Result<Option<u64>, String> {
    let name = format!("{}:{}", device.major, device.minor);
    for line in text.lines() {
        if let Some((key, value)) = line.split_once(' ')
            && key == name
        {
            return value.trim().parse().map(Some).map_err(|_| line.to_owned());
        }
    }
    Ok(None)
}

/// A line for v2 `io.max`.
pub(super) fn io_max_line(device: Device, io: &IoLimits) -> String {
    format!(
        "{}:{} rbps={} wbps={} riops={} wiops={}",
        device.major, device.minor, io.read_bps.0, io.write_bps.0, io.read_iops, io.write_iops
    )
}

/// The throttles of `device` in v2 `io.max`; the type's maximum where there is none.
pub(super) fn io_max_of(text: &str, device: Device) -> Result<IoLimits, String> {
    let name = format!("{}:{}", device.major, device.minor);
    let mut io = IoLimits {
        read_bps: Bytes(u64::MAX),
        write_bps: Bytes(u64::MAX),
        read_iops: u32::MAX,
        write_iops: u32::MAX,
    };
    let Some(line) = text
        .lines()
        .find(|line| line.split_once(' ').is_some_and(|(key, _)| key == name))
    else {
        return Ok(io);
    };
    for part in line.split_ascii_whitespace().skip(1) {
        let (key, value) = part.split_once('=').ok_or_else(|| line.to_owned())?;
        let value: u64 = match value {
            "max" => u64::MAX,
            number => number.parse().map_err(|_| line.to_owned())?,
        };
        let operations = u32::try_from(value).unwrap_or(u32::MAX);
        match key {
            "rbps" => io.read_bps = Bytes(value),
            "wbps" => io.write_bps = Bytes(value),
            "riops" => io.read_iops = operations,
            "wiops" => io.write_iops = operations,
            _ => {}
        }
    }
    Ok(io)
}

/// A pressure file. Its `full` line may be missing only for CPU on kernels before 5.13, where it counts as zero as
/// later kernels print it; anything else malformed gives `None`.
pub fn parse_pressure(text: &str, is_cpu: bool) -> Option<Pressure> {
    let line = |kind: &str| -> Option<u16> {
        let rest = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = rest
            .split_ascii_whitespace()
            .find_map(|part| part.strip_prefix("avg10="))?;
        let (whole, hundredths) = value.split_once('.')?;
        if hundredths.len() != 2 || !hundredths.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let whole: u16 = whole.parse().ok()?;
        let hundredths: u16 = hundredths.parse().ok()?;
        (whole <= 100).then(|| (whole * 100 + hundredths).min(10_000))
    };
    let some = line("some ")?;
    let full = match line("full ") {
        Some(full) => full,
        None if is_cpu && !text.contains("full") => 0,
        None => return None,
    };
    Some(Pressure { some, full })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_weight_survives_the_way_through_shares() {
        for weight in 1..=10_000 {
            assert_eq!(weight_of_shares(shares_of_weight(weight)), weight);
        }
        assert_eq!(shares_of_weight(1), 2);
        assert_eq!(shares_of_weight(10_000), 262_144);
        assert_eq!((weight_of_shares(0), weight_of_shares(u64::MAX)), (1, 10_000));
    }

    #[test]
    fn io_max_table() {
        let device = Device { major: 8, minor: 0 };
        let io = IoLimits {
            read_bps: Bytes(1),
            write_bps: Bytes(2),
            read_iops: 3,
            write_iops: 4,
        };
        let text = format!(
            "18:0 rbps=9 wbps=9 riops=9 wiops=9\n{}\n",
            io_max_line(device, &io)
        );
        assert_eq!(io_max_of(&text, device).unwrap(), io);
        let part = io_max_of("8:0 rbps=max wbps=5 riops=max wiops=max\n", device).unwrap();
        assert_eq!(
            (part.read_bps.0, part.write_bps.0, part.read_iops),
            (u64::MAX, 5, u32::MAX)
        );
        assert_eq!(io_max_of("", device).unwrap().write_bps.0, u64::MAX);
        assert!(io_max_of("8:0 rbps=x\n", device).is_err());
        assert_eq!(throttle_of("18:0 7\n8:0 5\n", device), Ok(Some(5)));
        assert_eq!(throttle_of("18:0 7\n", device), Ok(None));
        assert!(throttle_of("8:0 five\n", device).is_err());
    }

    #[test]
    fn pressure_table() {
        let good = "some avg10=1.25 avg60=0.00 avg300=0.00 total=5\nfull avg10=100.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(
            parse_pressure(good, false),
            Some(Pressure {
                some: 125,
                full: 10_000
            })
        );
        let only_some = "some avg10=2.00 avg60=0.00 avg300=0.00 total=5\n";
        assert_eq!(
            parse_pressure(only_some, true),
            Some(Pressure { some: 200, full: 0 })
        );
        for bad in [
            only_some,
            "",
            "some\nfull\n",
            "some avg10=-1.00 \nfull avg10=0.00 ",
            "some avg10=999.00 \nfull avg10=0.00 ",
        ] {
            assert_eq!(parse_pressure(bad, false), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_quota_that_was_written_reads_as_wanted(milli in 10u32..=1_024_000) {
            let wanted = Millicores(milli);
            prop_assert_eq!(cpu_in_force(Some(quota_us(wanted)), CPU_PERIOD_US, wanted), wanted);
            prop_assert_ne!(cpu_in_force(Some(quota_us(wanted) + 1_000), CPU_PERIOD_US, wanted), wanted);
            prop_assert_ne!(cpu_in_force(None, CPU_PERIOD_US, wanted), wanted);
        }

        #[test]
        fn only_what_a_limit_rounds_to_counts_as_it(bytes in (6u64 << 20)..(1 << 50), held in any::<u64>()) {
            prop_assert_eq!(memory_in_force(whole_pages(bytes, 4096), Bytes(bytes), 4096), Bytes(bytes));
            if held != whole_pages(bytes, 4096) {
                prop_assert_eq!(memory_in_force(held, Bytes(bytes), 4096), Bytes(held));
            }
        }

        #[test]
        fn parsers_never_panic(text in ".{0,120}") {
            let _ = parse_pressure(&text, true);
            let _ = io_max_of(&text, Device { major: 1, minor: 2 });
            let _ = throttle_of(&text, Device { major: 1, minor: 2 });
        }
    }
}
