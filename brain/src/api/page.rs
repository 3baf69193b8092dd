//! Pages of lists: `?limit=` and `?after=`.
//!
//! Lists are ordered by a key that is unique in the list (names, or names with ids), and a page begins after a key. So
//! pages neither skip nor repeat what exists throughout, however much comes and goes between two of them.

use berth_common::api::Listing;
use berth_common::error::Problem;
use berth_common::id::{Revision, clip};
use serde::Deserialize;
use utoipa::IntoParams;

const DEFAULT: usize = 100;
const MOST: usize = 1_000;
const MAX_KEY: usize = 256;

/// Query parameters of every list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// Objects on a page, 1 to 1,000; default 100.
    #[serde(default)]
    pub limit: Option<String>,
    /// The `next` of the page before.
    #[serde(default)]
    pub after: Option<String>,
}

impl Page {
    /// The number of objects asked for.
    ///
    /// # Errors
    /// `invalid` outside 1 to 1,000.
    pub fn limit(&self) -> Result<usize, Problem> {
        let Some(text) = &self.limit else {
            return Ok(DEFAULT);
        };
        text.parse()
            .ok()
            .filter(|limit| (1..=MOST).contains(limit))
            .ok_or_else(|| {
                Problem::invalid(format!("limit={} is out of range: 1 to {MOST}", clip(text, 40)))
                    .field("limit")
            })
    }

    /// One page of `all`, which must be ascending by its keys; only what is on the page is turned into a view.
    ///
    /// # Errors
    /// `invalid` for a limit out of range or an `after` that no page can have named.
    pub fn of<K: Ord + AsRef<str>, I, V>(
        &self,
        all: impl Iterator<Item = (K, I)>,
        revision: Revision,
        view: impl Fn(I) -> V,
    ) -> Result<Listing<V>, Problem> {
        let limit = self.limit()?;
        if self.after.as_ref().is_some_and(|after| after.len() > MAX_KEY) {
            return Err(Problem::invalid("after is no `next` of an earlier page").field("after"));
        }
        let after = self.after.as_deref();
        let mut rest = all.filter(|(key, _)| after.is_none_or(|after| key.as_ref() > after));
        let mut items = Vec::new();
        let mut last = None;
        for (key, item) in rest.by_ref().take(limit) {
            items.push(view(item));
            last = Some(key);
        }
        let next = match rest.next() {
            Some(_) => last.map(|key| key.as_ref().to_owned()),
            None => None,
        };
        Ok(Listing {
            items,
            next,
            revision,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(limit: &str, after: Option<&str>) -> Page {
        Page {
            limit: Some(limit.to_owned()),
            after: after.map(str::to_owned),
        }
    }

    #[test]
    fn pages_add_up_to_the_whole() {
        let all = ["a", "b", "c", "d", "e"];
        for limit in 1..7 {
            let (mut seen, mut after) = (Vec::new(), None::<String>);
            loop {
                let keys = all.iter().map(|k| (*k, *k));
                let listing = page(&limit.to_string(), after.as_deref())
                    .of(keys, Revision(1), |k| k)
                    .unwrap();
                assert!(listing.items.len() <= limit && !listing.items.is_empty());
                seen.extend(listing.items);
                after = listing.next;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(seen, all);
        }
    }

    #[test]
    fn absurd_limits_are_refused() {
        for limit in ["0", "-1", "1001", "x", "", "18446744073709551616", "1e3"] {
            assert!(page(limit, None).limit().is_err(), "{limit}");
        }
        assert_eq!(Page::default().limit().unwrap(), 100);
    }
}
