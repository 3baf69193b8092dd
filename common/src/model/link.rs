//! What a service has to do with others on its networks: links to them, and which of them may come in.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::validate::SpecError;
use crate::id::{Name, clip};
use crate::model::ServiceSpec;
use crate::units::Bytes;

/// Most links of one service, and most services that it lets in.
const MOST: usize = 64;

/// Another service that a service needs: `db` or `db:5432`. Its containers start once the other one takes requests, and find it
/// in their environment: `BERTH_LINK_DB_HOST` and, with a port, `BERTH_LINK_DB_PORT` and `BERTH_LINK_DB_ADDR`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// The other service.
    pub service: Name,
    /// The port at which it is asked.
    pub port: Option<u16>,
}

impl FromStr for Link {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("{:?} is not SERVICE or SERVICE:PORT: {why}", clip(text, 60));
        let (service, port) = match text.split_once(':') {
            None => (text, None),
            Some((service, port)) => {
                let port = port.parse().ok().filter(|port: &u16| *port > 0);
                let port = port.ok_or_else(|| wrong("a port is between 1 and 65535".to_owned()))?;
                (service, Some(port))
            }
        };
        let service = service.parse().map_err(|error| wrong(format!("{error}")))?;
        Ok(Self { service, port })
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.service),
            None => self.service.fmt(f),
        }
    }
}

impl Serialize for Link {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Link {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Link {
    /// What it adds to an environment. It follows from the link alone, so it stays the same whatever becomes of the other service.
    fn variables(&self) -> impl Iterator<Item = (String, String)> {
        let name = self.service.as_str().to_ascii_uppercase().replace('-', "_");
        let host = self.service.to_string();
        let own = |what: &str| format!("BERTH_LINK_{name}_{what}");
        let mut all = vec![(own("HOST"), host.clone())];
        if let Some(port) = self.port {
            all.push((own("PORT"), port.to_string()));
            all.push((own("ADDR"), format!("{host}:{port}")));
        }
        all.into_iter()
    }
}

/// Most that goes over the network, bytes a second, in each direction and on each of a container's networks; none: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Bandwidth {
    /// Into the container, 16KiB to 100GiB.
    #[serde(default, rename = "in", skip_serializing_if = "Option::is_none")]
    pub inward: Option<Bytes>,
    /// Out of it, 16KiB to 100GiB.
    #[serde(default, rename = "out", skip_serializing_if = "Option::is_none")]
    pub outward: Option<Bytes>,
}

impl Bandwidth {
    /// Nothing is limited.
    pub const fn is_free(&self) -> bool {
        self.inward.is_none() && self.outward.is_none()
    }
}

impl ServiceSpec {
    /// Its environment with what its links add; a variable that the user set stays.
    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        let mut all: BTreeMap<_, _> = self.links.iter().flat_map(Link::variables).collect();
        all.extend(self.env.iter().map(|(key, value)| (key.clone(), value.clone())));
        all
    }

    pub(super) fn check_relations(&self) -> Result<(), SpecError> {
        let twice = |names: Vec<&Name>| {
            let mut names = names;
            names.sort_unstable();
            names
                .windows(2)
                .find(|two| two[0] == two[1])
                .map(|two| two[0].to_string())
        };
        let err = |field: &'static str, why: String| Err(SpecError::new(field, why));
        let lists = [
            (
                "/links",
                self.links.iter().map(|link| &link.service).collect::<Vec<_>>(),
            ),
            ("/ingress_from", self.ingress_from.iter().flatten().collect()),
        ];
        for (field, names) in lists {
            if names.len() > MOST {
                return err(field, format!("{} services; at most {MOST}", names.len()));
            }
            if self.networks.is_empty() && !names.is_empty() {
                return err(
                    field,
                    "a service that is on no network reaches nobody; give it one".to_owned(),
                );
            }
            if let Some(name) = twice(names) {
                return err(field, format!("service {name} is named twice"));
            }
        }
        if self.links.iter().any(|link| link.service == self.name) {
            return err("/links", "a service can't wait for itself".to_owned());
        }
        let range = Bytes(16 << 10)..=Bytes::gib(100);
        let rates = [self.bandwidth.inward, self.bandwidth.outward];
        if let Some(rate) = rates.iter().flatten().find(|rate| !range.contains(rate)) {
            return err(
                "/bandwidth",
                format!("{rate} a second is out of range: 16KiB to 100GiB"),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(links: &[&str]) -> ServiceSpec {
        let mut spec = ServiceSpec::new("web".parse().unwrap(), "nginx".parse().unwrap());
        spec.links = links.iter().map(|link| link.parse().unwrap()).collect();
        spec
    }

    #[test]
    fn links_are_variables_that_the_user_may_override() {
        let mut one = spec(&["my-db:5432", "cache"]);
        one.env.insert("BERTH_LINK_CACHE_HOST".into(), "mine".into());
        let env: Vec<String> = one
            .environment()
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(
            env,
            [
                "BERTH_LINK_CACHE_HOST=mine",
                "BERTH_LINK_MY_DB_ADDR=my-db:5432",
                "BERTH_LINK_MY_DB_HOST=my-db",
                "BERTH_LINK_MY_DB_PORT=5432"
            ]
        );
        let text = serde_json::to_string(&one.links).unwrap();
        assert_eq!(text, r#"["my-db:5432","cache"]"#);
        for bad in ["", "db:", "db:0", "db:65536", "db:x", "DB", ":80", "db:80:80"] {
            assert!(bad.parse::<Link>().is_err(), "{bad}");
        }
    }

    #[test]
    fn relations_that_make_no_sense_are_refused() {
        assert_eq!(spec(&["db", "cache:1"]).check_relations(), Ok(()));
        let refused = |spec: ServiceSpec| spec.check_relations().unwrap_err().field;
        assert_eq!(refused(spec(&["web"])), "/links");
        assert_eq!(refused(spec(&["db:1", "db:2"])), "/links");
        let mut alone = spec(&["db"]);
        alone.networks.clear();
        assert_eq!(refused(alone), "/links");
        let mut shut = spec(&[]);
        shut.ingress_from = Some(vec![]);
        assert_eq!(shut.check_relations(), Ok(()), "nobody comes in");
        shut.ingress_from = Some(vec!["a".parse().unwrap(); 2]);
        assert_eq!(refused(shut), "/ingress_from");
        let mut slow = spec(&[]);
        slow.bandwidth.outward = Some(Bytes(1));
        assert_eq!(refused(slow), "/bandwidth");
    }
}
