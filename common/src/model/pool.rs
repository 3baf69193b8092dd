//! Pools: nodes that are meant for the same, with one overcommit.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{Name, Revision};
use crate::model::{Overcommit, UnixMillis};

/// The pool of nodes and services that name none.
pub const DEFAULT_POOL: &str = "default";

/// [`DEFAULT_POOL`] as a name.
pub fn default_pool() -> Name {
    DEFAULT_POOL.parse().expect("a DNS label")
}

/// A pool as the brain keeps it. The pool `default` is there without a record, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolRecord {
    /// Unique name.
    pub name: Name,
    /// By how much reservations may exceed capacity on its nodes that have no overcommit of their own.
    #[serde(default)]
    pub overcommit: Overcommit,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}

/// How a node's own overcommit is stored. Brains before pools wrote one of 100 percent into every record, which meant that nothing was
/// said; `own` tells it from one that somebody set to 100 to have less than the pool.
#[derive(Serialize, Deserialize)]
struct Kept {
    cpu_percent: u32,
    memory_percent: u32,
    #[serde(default)]
    own: bool,
}

pub(super) mod own_overcommit {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<Overcommit>, to: S) -> Result<S::Ok, S::Error> {
        let kept = value.map(|own| Kept {
            cpu_percent: own.cpu_percent,
            memory_percent: own.memory_percent,
            own: true,
        });
        kept.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Overcommit>, D::Error> {
        let kept = Option::<Kept>::deserialize(from)?.map(|kept| {
            let value = Overcommit {
                cpu_percent: kept.cpu_percent,
                memory_percent: kept.memory_percent,
            };
            (kept.own || value != Overcommit::default()).then_some(value)
        });
        Ok(kept.flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Node {
        #[serde(default, with = "own_overcommit", skip_serializing_if = "Option::is_none")]
        overcommit: Option<Overcommit>,
    }

    #[test]
    fn what_older_brains_wrote_into_every_record_says_nothing() {
        let read = |text: &str| serde_json::from_str::<Node>(text).unwrap().overcommit;
        let of = |cpu_percent, memory_percent| {
            Some(Overcommit {
                cpu_percent,
                memory_percent,
            })
        };
        assert_eq!(read("{}"), None);
        assert_eq!(
            read(r#"{"overcommit":{"cpu_percent":100,"memory_percent":100}}"#),
            None
        );
        assert_eq!(
            read(r#"{"overcommit":{"cpu_percent":150,"memory_percent":100}}"#),
            of(150, 100)
        );
        for overcommit in [None, of(100, 100), of(150, 120)] {
            let text = serde_json::to_string(&Node { overcommit }).unwrap();
            assert_eq!(read(&text), overcommit, "{text}");
            // An older brain reads the numbers where there are some, and its default where not.
            assert_eq!(text.contains("cpu_percent"), overcommit.is_some());
        }
    }
}
