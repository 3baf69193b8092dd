//! The packet filters of one namespace, kept as they should be.

use super::generation::generation;
use super::namespace::Namespace;
use super::nft::Tables;
use super::ruleset::Table;
use crate::reconcile::apply::chain;

/// The tables as they were loaded, and the namespace's count of changes since when nobody touched them.
#[derive(Debug, Default)]
pub(super) struct Filters {
    tables: Tables,
    generation: Option<u32>,
}

impl Filters {
    /// Whether these were the last that were loaded.
    pub(super) fn are(&self, scripts: &[(Table, String)]) -> bool {
        let mut all = scripts.iter();
        all.all(|(table, script)| self.tables.script(*table) == Some(script))
    }

    /// Loads tables unless they are in force and nobody touched any since.
    pub(super) async fn keep(
        &mut self,
        namespace: Namespace,
        scripts: Vec<(Table, String)>,
    ) -> Result<(), String> {
        let same = self.are(&scripts);
        let (mut tables, known) = (std::mem::take(&mut self.tables), self.generation.take());
        let work = tokio::task::spawn_blocking(move || {
            let now = generation(&namespace).ok();
            if same && now.is_some() && now == known {
                return (tables, now, Ok(()));
            }
            for (table, script) in &scripts {
                if let Err(error) = tables.ensure(&namespace, *table, script) {
                    return (tables, None, Err(chain(&error)));
                }
            }
            let now = generation(&namespace).ok();
            (tables, now, Ok(()))
        });
        let (tables, now, done) = work.await.map_err(|error| error.to_string())?;
        (self.tables, self.generation) = (tables, now);
        done
    }
}
