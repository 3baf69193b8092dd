//! `pool …`.

use berth_common::api::{PoolView, PutPool};
use berth_common::id::Name;
use berth_common::model::Overcommit;
use reqwest::Method;

use super::Session;
use crate::args::{OvercommitArgs, PoolCommand};
use crate::failure::Failure;
use crate::render;

/// An overcommit with the changes of the command line.
pub fn changed(old: Overcommit, args: &OvercommitArgs) -> Overcommit {
    Overcommit {
        cpu_percent: args.overcommit_cpu.unwrap_or(old.cpu_percent),
        memory_percent: args.overcommit_memory.unwrap_or(old.memory_percent),
    }
}

/// `berth pool …`.
pub async fn pool(session: &Session, command: PoolCommand) -> Result<(), Failure> {
    let client = session.client().await?;
    let one = |name: &Name| client.url(&["pools", name.as_str()], &[]);
    match command {
        PoolCommand::Ls => {
            let (items, _) = client.list::<PoolView>(client.url(&["pools"], &[])).await?;
            session.list(
                &items,
                |pool| pool.name.to_string(),
                |style, _, items| render::cluster::pools(style, items),
            )
        }
        PoolCommand::Set { name, overcommit } => {
            let old = match client.get::<PoolView>(one(&name)).await.map_err(Failure::from) {
                Ok(view) => view.overcommit,
                Err(failure) if failure.is_not_found() => Overcommit::default(),
                Err(failure) => return Err(failure),
            };
            let body = PutPool {
                overcommit: changed(old, &overcommit),
            };
            let view: PoolView = client.call(Method::PUT, one(&name), Some(&body)).await?;
            let Overcommit {
                cpu_percent,
                memory_percent,
            } = view.overcommit;
            session.done(
                &view,
                &format!("{name}: overcommit of CPU {cpu_percent} %, of memory {memory_percent} %"),
            )
        }
        PoolCommand::Rm { name } => session.remove(&client, one(&name), name.as_str()).await,
    }
}
