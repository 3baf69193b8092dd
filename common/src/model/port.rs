//! Published ports: what of a service the world reaches at its nodes' addresses.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::clip;

/// How packets are carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// One of a newer version; nothing is done about it, and users can't write it.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unknown => "unknown",
        })
    }
}

/// At which nodes a port is open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PublishMode {
    /// At every node; each passes on to all replicas alike. A replica on another node sees the address of the node that was asked.
    #[default]
    Cluster,
    /// At nodes that have a replica, which is the one that answers and sees the client's address.
    Node,
}

/// A port, or some in a row, at which a service is reached from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// At the nodes, 1 to 65535: the first. Unique in the cluster.
    pub published: u16,
    /// In the containers: the first. Default: as published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u16>,
    /// How many in a row, 1 to 1,000; default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u16,
    /// Default tcp.
    #[serde(default)]
    pub protocol: Protocol,
    /// Default cluster.
    #[serde(default)]
    pub mode: PublishMode,
}

const fn one() -> u16 {
    1
}
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_one(count: &u16) -> bool {
    *count == 1
}

/// Most ports of one service.
pub const MAX_PORTS: u32 = 1_000;

impl PublishedPort {
    /// The first port in the containers.
    pub fn first_target(&self) -> u16 {
        self.target.unwrap_or(self.published)
    }

    /// The ports at the nodes; none where they would go beyond the last.
    pub fn range(&self) -> Option<RangeInclusive<u16>> {
        span(self.published, self.count)
    }

    /// What is wrong with it; none if nothing is.
    pub fn fault(&self) -> Option<String> {
        let what = if self.protocol == Protocol::Unknown {
            "the protocol is tcp or udp"
        } else if self.published == 0 || self.target == Some(0) {
            "a port is between 1 and 65535"
        } else if self.count == 0 || u32::from(self.count) > MAX_PORTS {
            "a range has 1 to 1000 ports"
        } else if self.range().is_none() || span(self.first_target(), self.count).is_none() {
            "the range goes beyond port 65535"
        } else {
            return None;
        };
        Some(format!("{self}: {what}"))
    }

    /// A port at the nodes that both have; none if they have none in common.
    pub fn clash(&self, other: &Self) -> Option<u16> {
        if self.protocol != other.protocol {
            return None;
        }
        let (a, b) = (self.range()?, other.range()?);
        let first = *a.start().max(b.start());
        (first <= *a.end().min(b.end())).then_some(first)
    }
}

fn span(first: u16, count: u16) -> Option<RangeInclusive<u16>> {
    Some(first..=first.checked_add(count.checked_sub(1)?)?)
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |f: &mut fmt::Formatter<'_>, first: u16| match self.count {
            0 | 1 => write!(f, "{first}"),
            count => write!(f, "{first}-{}", u32::from(first) + u32::from(count) - 1),
        };
        side(f, self.published)?;
        if self.first_target() != self.published {
            f.write_str(":")?;
            side(f, self.first_target())?;
        }
        write!(f, "/{}", self.protocol)?;
        if self.mode == PublishMode::Node {
            f.write_str(",mode=node")?;
        }
        Ok(())
    }
}

/// Why a text is no published port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a port to publish: write 8080:80, 8080:80/udp, 8000-8010:9000-9010 or 8080:80,mode=node ({1})"
)]
pub struct PortError(String, String);

impl FromStr for PublishedPort {
    type Err = PortError;
    fn from_str(text: &str) -> Result<Self, PortError> {
        let no = |why: &str| PortError(clip(text, 60), why.to_owned());
        let (ports, mode) = match text.split_once(',') {
            None => (text, PublishMode::Cluster),
            Some((ports, "mode=cluster")) => (ports, PublishMode::Cluster),
            Some((ports, "mode=node")) => (ports, PublishMode::Node),
            Some(_) => return Err(no("the mode is cluster or node")),
        };
        let (ports, protocol) = match ports.split_once('/') {
            None | Some((_, "tcp")) => (ports.trim_end_matches("/tcp"), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(no("the protocol is tcp or udp")),
        };
        let number = |text: &str| {
            text.parse::<u16>()
                .map_err(|_| no("a port is between 1 and 65535"))
        };
        let side = |text: &str| match text.split_once('-') {
            None => Ok((number(text)?, 1)),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                let count = last.checked_sub(first).and_then(|more| more.checked_add(1));
                Ok((
                    first,
                    count.ok_or_else(|| no("a range goes from the lower to the higher port"))?,
                ))
            }
        };
        let (published, target) = match ports.split_once(':') {
            None => (side(ports)?, None),
            Some((published, target)) => (side(published)?, Some(side(target)?)),
        };
        if target.is_some_and(|(_, count)| count != published.1) {
            return Err(no("both ranges have as many ports"));
        }
        let port = Self {
            published: published.0,
            target: target
                .map(|(first, _)| first)
                .filter(|first| *first != published.0),
            count: published.1,
            protocol,
            mode,
        };
        match port.fault() {
            Some(why) => Err(no(&why)),
            None => Ok(port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_back() {
        for (text, shown) in [
            ("8080:80", "8080:80/tcp"),
            ("80", "80/tcp"),
            ("80:80/tcp", "80/tcp"),
            ("53:5353/udp", "53:5353/udp"),
            ("8000-8010:9000-9010", "8000-8010:9000-9010/tcp"),
            ("8080:80,mode=node", "8080:80/tcp,mode=node"),
            ("1-2/udp,mode=node", "1-2/udp,mode=node"),
        ] {
            let port: PublishedPort = text.parse().unwrap();
            assert_eq!(port.to_string(), shown);
            assert_eq!(shown.parse::<PublishedPort>().unwrap(), port);
            let json = serde_json::to_string(&port).unwrap();
            assert_eq!(
                serde_json::from_str::<PublishedPort>(&json).unwrap(),
                port,
                "{json}"
            );
        }
        for (text, why) in [
            ("", "between 1 and 65535"),
            ("0", "between 1 and 65535"),
            ("80:0", "between 1 and 65535"),
            ("70000", "between 1 and 65535"),
            ("80/sctp", "tcp or udp"),
            ("80,mode=both", "cluster or node"),
            ("10-5", "lower to the higher"),
            ("10-12:10-11", "as many ports"),
            ("1-2000", "1 to 1000"),
            ("65530-65535:65534-65539", "between 1 and 65535"),
            ("1:2:3", "between 1 and 65535"),
        ] {
            let error = text.parse::<PublishedPort>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let beyond = PublishedPort {
            published: 65_000,
            target: None,
            count: 600,
            .."1".parse().unwrap()
        };
        assert!(beyond.fault().unwrap().contains("beyond port 65535"));
    }

    #[test]
    fn clashes_table() {
        let clash = |a: &str, b: &str| a.parse::<PublishedPort>().unwrap().clash(&b.parse().unwrap());
        assert_eq!(clash("80", "80:8080"), Some(80));
        assert_eq!(clash("80", "80/udp"), None);
        assert_eq!(clash("8000-8010", "8010-8020:10-20"), Some(8010));
        assert_eq!(clash("8000-8009", "8010-8020"), None);
        assert_eq!(clash("1-1000", "500:80"), Some(500));
    }
}
