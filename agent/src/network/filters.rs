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
    /// Nobody else loads tables there, so that a change by somebody is answered by loading ours, without a look at what it was.
    alone: bool,
}

impl Filters {
    /// Those of a namespace in which nobody else has tables.
    pub(super) fn alone() -> Self {
        Self {
            alone: true,
            ..Self::default()
        }
    }

    /// Whether this was the last that was loaded into a table.
    pub(super) fn has(&self, table: Table, script: &str) -> bool {
        self.tables.script(table).is_some_and(|held| held == script)
    }

    /// Whether nobody touched any table since ours were loaded.
    pub(super) fn untouched(&self, namespace: &Namespace) -> bool {
        self.generation.is_some() && generation(namespace).ok() == self.generation
    }

    /// Loads tables unless they are in force and nobody touched any since.
    pub(super) async fn keep(
        &mut self,
        namespace: Namespace,
        scripts: Vec<(Table, String)>,
    ) -> Result<(), String> {
        let same = scripts.iter().all(|(table, script)| self.has(*table, script));
        let (mut tables, known, alone) = (
            std::mem::take(&mut self.tables),
            self.generation.take(),
            self.alone,
        );
        let work = tokio::task::spawn_blocking(move || {
            let now = generation(&namespace).ok();
            if same && now.is_some() && now == known {
                return (tables, now, Ok(()));
            }
            for (table, script) in &scripts {
                let loaded = match alone {
                    true => tables.load(&namespace, *table, script),
                    false => tables.ensure(&namespace, *table, script).map(drop),
                };
                if let Err(error) = loaded {
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
