//! Taints, which keep containers off a node, and tolerations, which let some on all the same. Both are written as operators know
//! them from Kubernetes: `key=value:no-schedule`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::clip;

/// Most taints of one node, and most tolerations of one service.
pub const MAX_TAINTS: usize = 64;
/// Most characters of a key, and of a value.
const MAX_WORD: usize = 128;

/// What a taint does to containers that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaintEffect {
    /// No new ones come; those that are there stay.
    NoSchedule,
    /// New ones come only where no other node would take them as well.
    PreferNoSchedule,
    /// No new ones come, and those that are there move away as from a draining node.
    NoExecute,
}

impl TaintEffect {
    const ALL: [Self; 3] = [Self::NoSchedule, Self::PreferNoSchedule, Self::NoExecute];

    const fn word(self) -> &'static str {
        match self {
            Self::NoSchedule => "no-schedule",
            Self::PreferNoSchedule => "prefer-no-schedule",
            Self::NoExecute => "no-execute",
        }
    }
}

impl fmt::Display for TaintEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for TaintEffect {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|effect| effect.word() == text);
        found.ok_or_else(|| {
            format!(
                "{:?} is no effect: write no-schedule, prefer-no-schedule or no-execute",
                clip(text, 40)
            )
        })
    }
}

/// A node's taint: `key:effect` or `key=value:effect`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    /// What it is about.
    pub key: String,
    /// Which of several, if that matters.
    pub value: Option<String>,
    /// What it does.
    pub effect: TaintEffect,
}

/// What a service puts up with: `key`, `key=value`, either with `:effect`, or `*` for everything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Toleration {
    /// The taint's key; none: any.
    pub key: Option<String>,
    /// The taint's value; none: any, and none at all.
    pub value: Option<String>,
    /// The taint's effect; none: any.
    pub effect: Option<TaintEffect>,
}

impl Toleration {
    /// Whether it puts up with `taint`.
    pub fn covers(&self, taint: &Taint) -> bool {
        self.key.as_ref().is_none_or(|key| *key == taint.key)
            && (self.value.is_none() || self.value == taint.value)
            && self.effect.is_none_or(|effect| effect == taint.effect)
    }
}

fn word(what: &str, text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/');
    if (1..=MAX_WORD).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "the {what} {:?} must be 1 to {MAX_WORD} letters, digits and . - _ /",
        clip(text, 40)
    ))
}

fn pair(text: &str) -> Result<(String, Option<String>), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((word("key", key)?, Some(word("value", value)?))),
        None => Ok((word("key", text)?, None)),
    }
}

impl FromStr for Taint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let Some((pairs, effect)) = text.rsplit_once(':') else {
            return Err(format!(
                "{:?} lacks its effect: write KEY[=VALUE]:no-schedule, :prefer-no-schedule or :no-execute",
                clip(text, 60)
            ));
        };
        let effect = effect.parse()?;
        let (key, value) = pair(pairs)?;
        Ok(Self { key, value, effect })
    }
}

impl FromStr for Toleration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (pairs, effect) = match text.rsplit_once(':') {
            Some((pairs, effect)) => (pairs, Some(effect.parse()?)),
            None => (text, None),
        };
        let (key, value) = match pairs {
            "*" => (None, None),
            pairs => {
                let (key, value) = pair(pairs)?;
                (Some(key), value)
            }
        };
        Ok(Self { key, value, effect })
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, "={value}")?;
        }
        write!(f, ":{}", self.effect)
    }
}

impl fmt::Display for Toleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key.as_deref().unwrap_or("*"))?;
        if let Some(value) = &self.value {
            write!(f, "={value}")?;
        }
        match self.effect {
            Some(effect) => write!(f, ":{effect}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Taint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Taint {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl Serialize for Toleration {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Toleration {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taint(text: &str) -> Taint {
        text.parse().unwrap()
    }

    #[test]
    fn what_a_toleration_covers() {
        let table = [
            ("gpu", "gpu:no-schedule", true),
            ("gpu", "gpu=a100:no-execute", true),
            ("gpu=a100", "gpu=a100:no-schedule", true),
            ("gpu=a100", "gpu=h100:no-schedule", false),
            ("gpu=a100", "gpu:no-schedule", false),
            ("gpu:no-schedule", "gpu:no-execute", false),
            ("gpu:no-execute", "gpu:no-execute", true),
            ("*", "any/thing=x:no-execute", true),
            ("*:no-schedule", "any:no-execute", false),
            ("other", "gpu:no-schedule", false),
        ];
        for (toleration, on, covered) in table {
            let toleration: Toleration = toleration.parse().unwrap();
            assert_eq!(toleration.covers(&taint(on)), covered, "{toleration} {on}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (bad, named) in [
            ("gpu", "lacks its effect"),
            ("gpu:NoSchedule", "write no-schedule"),
            (":no-schedule", "key"),
            ("gpu=:no-schedule", "value"),
            ("a b:no-schedule", "a b"),
        ] {
            let error = bad.parse::<Taint>().unwrap_err();
            assert!(error.contains(named), "{bad}: {error}");
        }
        for bad in ["", "*=x", "gpu:sometimes", "a:b:no-schedule"] {
            assert!(bad.parse::<Toleration>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn texts_come_back(key in "[a-z./-]{1,9}", value in proptest::option::of("[a-z0-9]{1,9}"), effect in 0usize..3) {
            let effect = TaintEffect::ALL[effect];
            let one = Taint { key: key.clone(), value: value.clone(), effect };
            prop_assert_eq!(&one.to_string().parse::<Taint>().unwrap(), &one);
            let lenient = Toleration { key: Some(key), value, effect: Some(effect) };
            prop_assert!(lenient.covers(&one));
            prop_assert_eq!(lenient.to_string().parse::<Toleration>().unwrap(), lenient);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,40}") {
            let _ = (text.parse::<Taint>(), text.parse::<Toleration>());
        }
    }
}
