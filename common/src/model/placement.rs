//! Where a service's containers may be, beyond the labels of nodes: what of it a spec must satisfy.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::validate::SpecError;
use crate::id::{Name, clip};
use crate::model::{MAX_TAINTS, ServiceSpec};

/// The lowest and the highest priority.
pub const PRIORITIES: std::ops::RangeInclusive<i32> = -1_000..=1_000;

/// Most ways in which one service is spread, and most others that it keeps near.
const MOST: usize = 8;

/// Replicas are to be spread evenly over the values that a label has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// The node label: nodes with the same value of it are one domain.
    pub by: String,
    /// Never more uneven than `max_skew`, and not on nodes without the label; else as even as there is room.
    #[serde(default)]
    pub hard: bool,
    /// By how many replicas a domain may exceed the emptiest one where it is hard, 1 to 1,000; default 1.
    #[serde(default = "one")]
    pub max_skew: u32,
}

const fn one() -> u32 {
    1
}

/// Containers are to be near those of another service of the tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Together {
    /// The other service.
    pub with: Name,
    /// The node label that makes near: nodes with the same value of it; none: the same node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Nowhere else at all; else where there is room near it.
    #[serde(default)]
    pub hard: bool,
}

/// The options after the first word: `hard` and those of the form `key=value`.
fn options<'t>(
    text: &'t str,
    form: &str,
    mut take: impl FnMut(&'t str, &'t str) -> Result<bool, String>,
) -> Result<(&'t str, bool), String> {
    let mut parts = text.split(',');
    let (first, mut hard) = (parts.next().unwrap_or_default(), false);
    for part in parts {
        let known = match part.split_once('=') {
            None => {
                hard |= part == "hard";
                part == "hard"
            }
            Some((key, value)) => take(key, value)?,
        };
        if !known {
            return Err(format!(
                "{:?} is not {form}: {:?} is no option",
                clip(text, 60),
                clip(part, 40)
            ));
        }
    }
    Ok((first, hard))
}

impl FromStr for Spread {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut max_skew = one();
        let (by, hard) = options(text, "LABEL[,hard][,max-skew=N]", |key, value| {
            if key == "max-skew" {
                max_skew = value
                    .parse()
                    .map_err(|_| format!("max-skew={:?} is no number", clip(value, 20)))?;
            }
            Ok(key == "max-skew")
        })?;
        Ok(Self {
            by: by.to_owned(),
            hard,
            max_skew,
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.by)?;
        if self.hard {
            f.write_str(",hard")?;
        }
        match self.max_skew {
            1 => Ok(()),
            more => write!(f, ",max-skew={more}"),
        }
    }
}

impl FromStr for Together {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut by = None;
        let (with, hard) = options(text, "SERVICE[,by=LABEL][,hard]", |key, value| {
            if key == "by" {
                by = Some(value.to_owned());
            }
            Ok(key == "by")
        })?;
        let with = with
            .parse()
            .map_err(|error| format!("{:?}: {error}", clip(with, 40)))?;
        Ok(Self { with, by, hard })
    }
}

impl fmt::Display for Together {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with.fmt(f)?;
        if let Some(by) = &self.by {
            write!(f, ",by={by}")?;
        }
        f.write_str(if self.hard { ",hard" } else { "" })
    }
}

impl ServiceSpec {
    /// Checks what its spec says about places.
    pub(super) fn check_placement(&self) -> Result<(), SpecError> {
        self.check_class()?;
        self.check_tolerations()?;
        self.check_spread()?;
        self.check_together()?;
        if !PRIORITIES.contains(&self.priority) {
            return Err(SpecError::new(
                "/priority",
                format!("{} is out of range: -1000 to 1000", self.priority),
            ));
        }
        match self.max_per_node {
            Some(most) if !(1..=10_000).contains(&most) => Err(SpecError::new(
                "/max_per_node",
                format!("{most} is out of range: 1 to 10000; leave it out for no limit"),
            )),
            _ => Ok(()),
        }
    }

    fn check_spread(&self) -> Result<(), SpecError> {
        let refused = |why: String| Err(SpecError::new("/spread", why));
        if self.spread.len() > MOST {
            return refused(format!("{} ways; at most {MOST}", self.spread.len()));
        }
        if let Some(bad) = self.spread.iter().find(|one| !is_label(&one.by)) {
            return refused(format!("by {:?}: {LABEL}", clip(&bad.by, 40)));
        }
        if let Some(bad) = self
            .spread
            .iter()
            .find(|one| !(1..=1_000).contains(&one.max_skew))
        {
            return refused(format!(
                "a max_skew of {} is out of range: 1 to 1000",
                bad.max_skew
            ));
        }
        let by: Vec<&String> = self.spread.iter().map(|one| &one.by).collect();
        match twice(&by) {
            Some(by) => refused(format!("the label {by} is named twice")),
            None => Ok(()),
        }
    }

    fn check_together(&self) -> Result<(), SpecError> {
        let refused = |why: String| Err(SpecError::new("/together", why));
        if self.together.len() > MOST {
            return refused(format!("{} services; at most {MOST}", self.together.len()));
        }
        let mut labels = self.together.iter().filter_map(|one| one.by.as_ref());
        if let Some(bad) = labels.find(|by| !is_label(by)) {
            return refused(format!("by {:?}: {LABEL}", clip(bad, 40)));
        }
        if self.together.iter().any(|one| one.with == self.name) {
            return refused("a service can't wait for itself; name another one".to_owned());
        }
        let with: Vec<_> = self.together.iter().map(|one| (&one.with, &one.by)).collect();
        match twice(&with) {
            Some((with, _)) => refused(format!("service {with} is named twice")),
            None => Ok(()),
        }
    }

    fn check_tolerations(&self) -> Result<(), SpecError> {
        const FIELD: &str = "/tolerations";
        let count = self.tolerations.len();
        if count > MAX_TAINTS {
            return Err(SpecError::new(FIELD, format!("{count}; at most {MAX_TAINTS}")));
        }
        match twice(&self.tolerations) {
            Some(twice) => Err(SpecError::new(FIELD, format!("{twice} is named twice"))),
            None => Ok(()),
        }
    }
}

const LABEL: &str = "a label has 1 to 128 printable characters";

/// Whether a node can carry a label of this name.
fn is_label(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// The first that is there twice.
fn twice<T: PartialEq>(list: &[T]) -> Option<&T> {
    list.iter()
        .enumerate()
        .find_map(|(at, one)| list[..at].contains(one).then_some(one))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ServiceSpec {
        ServiceSpec::new("web".parse().unwrap(), "nginx".parse().unwrap())
    }

    #[test]
    fn what_is_wrong_names_its_field() {
        let mut one = spec();
        one.tolerations = vec!["gpu".parse().unwrap(), "gpu=a".parse().unwrap()];
        assert_eq!(one.check_placement(), Ok(()));
        one.tolerations.push("gpu".parse().unwrap());
        let error = one.check_placement().unwrap_err();
        assert_eq!(
            (error.field, error.why.as_str()),
            ("/tolerations", "gpu is named twice")
        );
        for (field, text) in [
            ("/spread", r#""spread":[{"by":"zone"},{"by":"zone","hard":true}]"#),
            ("/spread", r#""spread":[{"by":""}]"#),
            ("/spread", r#""spread":[{"by":"zone","max_skew":0}]"#),
            ("/together", r#""together":[{"with":"web"}]"#),
            ("/together", r#""together":[{"with":"db","by":""}]"#),
            (
                "/together",
                r#""together":[{"with":"db"},{"with":"db","hard":true}]"#,
            ),
            ("/max_per_node", r#""max_per_node":0"#),
            ("/priority", r#""priority":1001"#),
        ] {
            let text = format!(r#"{{"name":"web","image":"nginx",{text}}}"#);
            let spec: ServiceSpec = serde_json::from_str(&text).unwrap();
            assert_eq!(spec.validate().unwrap_err().field, field, "{text}");
        }
        let text = r#"{"name":"web","image":"nginx","tolerations":["gpu:NoSchedule"]}"#;
        let error = serde_json::from_str::<ServiceSpec>(text).unwrap_err();
        assert!(error.to_string().contains("write no-schedule"), "{error}");
    }

    #[test]
    fn short_forms_are_read_and_written() {
        for text in ["zone", "zone,hard", "zone,hard,max-skew=3"] {
            assert_eq!(text.parse::<Spread>().unwrap().to_string(), text);
        }
        for text in ["db", "db,by=zone", "db,by=zone,hard"] {
            assert_eq!(text.parse::<Together>().unwrap().to_string(), text);
        }
        for (bad, named) in [
            ("zone,soft", "soft"),
            ("zone,max-skew=x", "no number"),
            ("zone,by=a", "by=a"),
        ] {
            assert!(bad.parse::<Spread>().unwrap_err().contains(named), "{bad}");
        }
        for bad in ["", "db,zone", "DB"] {
            assert!(bad.parse::<Together>().is_err(), "{bad}");
        }
    }
}
