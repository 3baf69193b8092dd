//! Quantities with their units: bytes and millicores.
//!
//! Owns parsing and printing of resource amounts. Refuses amounts without a unit where people type them (`512` of
//! what?), negative, fractional-byte and overflowing ones. Numbers in JSON are bytes and millicores, as the field names say.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::clip;

/// Why an amount was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Text that is no amount at all.
    #[error("{value:?} is not an amount: {expected}")]
    Malformed {
        /// The text, cut to 40 characters.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A bare number where bytes are meant.
    #[error("{value:?} has no unit: write {value}MiB, {value}GiB or {value}B")]
    NoUnit {
        /// The text, cut to 40 characters.
        value: String,
    },
    /// More than the type holds.
    #[error("{value:?} is too large: {max}")]
    TooLarge {
        /// The text, cut to 40 characters.
        value: String,
        /// The bound.
        max: &'static str,
    },
}

const BYTES_EXPECTED: &str = "write a number and a unit, such as 256MiB, 1.5GiB, 10GB or 4096B";
const CPU_EXPECTED: &str = "write cores such as 0.5 or 2, or millicores such as 500m";

/// An amount of memory or disk, in bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);
    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    /// `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
    /// Sum that stops at the maximum instead of wrapping.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
    /// Difference that stops at zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let malformed = || UnitError::Malformed {
            value: clip(text, 40),
            expected: BYTES_EXPECTED,
        };
        let factor: u64 = match unit.trim() {
            "" if !number.is_empty() => {
                return Err(UnitError::NoUnit {
                    value: clip(number, 40),
                });
            }
            "B" => 1,
            "k" | "kB" | "KB" => 1_000,
            "M" | "MB" => 1_000_000,
            "G" | "GB" => 1_000_000_000,
            "T" | "TB" => 1_000_000_000_000,
            "K" | "Ki" | "KiB" => 1 << 10,
            "Mi" | "MiB" => 1 << 20,
            "Gi" | "GiB" => 1 << 30,
            "Ti" | "TiB" => 1 << 40,
            _ => return Err(malformed()),
        };
        let too_large = || UnitError::TooLarge {
            value: clip(text, 40),
            max: "at most 8 EiB can be expressed",
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 {
            return Err(malformed());
        }
        let whole: u64 = if whole.is_empty() {
            0
        } else {
            whole.parse().map_err(|_| too_large())?
        };
        let mut bytes = u128::from(whole) * u128::from(factor);
        if !fraction.is_empty() {
            let scale = 10u128.pow(fraction.len() as u32);
            let part: u128 = fraction.parse().map_err(|_| malformed())?;
            bytes += part * u128::from(factor) / scale;
        }
        if bytes > i64::MAX as u128 {
            return Err(too_large());
        }
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] = [
            ("TiB", 1 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("KiB", 1 << 10),
        ];
        for (unit, size) in UNITS {
            if self.0 >= size {
                let text = if self.0.is_multiple_of(size) {
                    format!("{}{unit}", self.0 / size)
                } else {
                    format!("{:.1}{unit}", self.0 as f64 / size as f64)
                };
                return f.pad(&text);
            }
        }
        f.pad(&format!("{}B", self.0))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An amount of CPU, in thousandths of a core.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Millicores(pub u32);

impl Millicores {
    /// No CPU.
    pub const ZERO: Self = Self(0);
    /// Sum that stops at the maximum instead of wrapping.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
    /// Difference that stops at zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
    /// As cores.
    pub fn cores(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl FromStr for Millicores {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let trimmed = text.trim();
        let malformed = || UnitError::Malformed {
            value: clip(text, 40),
            expected: CPU_EXPECTED,
        };
        let too_large = || UnitError::TooLarge {
            value: clip(text, 40),
            max: "at most 4,000,000 cores",
        };
        let plain = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if let Some(milli) = trimmed.strip_suffix('m') {
            if !plain(milli) {
                return Err(malformed());
            }
            return milli.parse().map(Self).map_err(|_| too_large());
        }
        let (whole, fraction) = trimmed.split_once('.').unwrap_or((trimmed, "0"));
        if !plain(whole) || !plain(fraction) || fraction.len() > 3 {
            return Err(malformed());
        }
        let whole: u64 = whole.parse().map_err(|_| too_large())?;
        let fraction: u64 = format!("{fraction:0<3}").parse().map_err(|_| malformed())?;
        whole
            .checked_mul(1000)
            .and_then(|milli| milli.checked_add(fraction))
            .and_then(|milli| u32::try_from(milli).ok())
            .map(Self)
            .ok_or_else(too_large)
    }
}

impl fmt::Display for Millicores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.0.is_multiple_of(1000) {
            format!("{}", self.0 / 1000)
        } else {
            let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
            text.trim_end_matches('0').to_owned()
        };
        f.pad(&text)
    }
}

impl fmt::Debug for Millicores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}m", self.0)
    }
}

macro_rules! number_or_text {
    ($name:ident, $inner:ty, $what:literal) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl serde::de::Visitor<'_> for Visitor {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<$name, E> {
                        <$inner>::try_from(v)
                            .map($name)
                            .map_err(|_| E::custom(format_args!("{v} is too large for {}", $what)))
                    }
                    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<$name, E> {
                        match u64::try_from(v) {
                            Ok(v) => self.visit_u64(v),
                            Err(_) => Err(E::custom(format_args!(
                                "{v} is negative; expected {}",
                                $what
                            ))),
                        }
                    }
                    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<$name, E> {
                        v.parse().map_err(E::custom)
                    }
                }
                d.deserialize_any(Visitor)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                crate::openapi::number_or_string_schema($what)
            }
        }
        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    };
}

number_or_text!(
    Bytes,
    u64,
    "bytes as a whole number, or text with a unit such as \"256MiB\""
);
number_or_text!(
    Millicores,
    u32,
    "millicores as a whole number, or text such as \"0.5\" (cores) or \"500m\""
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_table() {
        let good = [
            ("256MiB", 256 << 20),
            ("1.5GiB", 3 << 29),
            ("10GB", 10_000_000_000),
            ("0B", 0),
            ("64Mi", 64 << 20),
        ];
        for (text, want) in good {
            assert_eq!(text.parse::<Bytes>().unwrap().0, want, "{text}");
        }
        for bad in [
            "",
            "-1MiB",
            "512",
            "1.2.3GiB",
            "MiB",
            "12 parsecs",
            "1e9B",
            "99999999999TiB",
            "0x10B",
            "NaN",
        ] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        assert!("512".parse::<Bytes>().unwrap_err().to_string().contains("512MiB"));
    }

    #[test]
    fn cpu_table() {
        for (text, want) in [("0.5", 500), ("2", 2000), ("250m", 250), ("1.25", 1250), ("0", 0)] {
            assert_eq!(text.parse::<Millicores>().unwrap().0, want, "{text}");
        }
        for bad in ["", "-1", "0.0001", "1.", ".5", "m", "1e3", "5000000", "∞", "+1"] {
            assert!(bad.parse::<Millicores>().is_err(), "{bad}");
        }
    }

    #[test]
    fn json_takes_numbers_and_text_but_not_text_without_unit() {
        assert_eq!(serde_json::from_str::<Bytes>("1024").unwrap(), Bytes(1024));
        assert_eq!(serde_json::from_str::<Bytes>("\"1KiB\"").unwrap(), Bytes(1024));
        for bad in ["-1", "1.5", "\"1024\"", "null", "1e400", "{}"] {
            assert!(serde_json::from_str::<Bytes>(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Millicores>("4294967296").is_err());
    }

    proptest! {
        #[test]
        fn printed_cpu_parses_back(milli in any::<u32>()) {
            prop_assert_eq!(Millicores(milli).to_string().parse::<Millicores>().unwrap(), Millicores(milli));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,60}") {
            let _ = text.parse::<Bytes>();
            let _ = text.parse::<Millicores>();
        }
    }
}
