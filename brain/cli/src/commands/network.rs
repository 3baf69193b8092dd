//! `network …`.

use berth_common::api::{CreateNetwork, NetworkView};
use reqwest::Method;

use super::Session;
use crate::args::NetworkCommand;
use crate::failure::Failure;
use crate::render;

/// `berth network …`.
pub async fn network(session: &Session, command: NetworkCommand) -> Result<(), Failure> {
    let client = session.client().await?;
    match command {
        NetworkCommand::Create { name, cidr } => {
            let body = CreateNetwork { name, cidr };
            let url = client.tenant_url(&["networks"], &[]);
            let made: NetworkView = client.call(Method::POST, url, Some(&body)).await?;
            let sentence = format!("{}: made, {} and {}", made.name, made.cidr, made.cidr6);
            session.done(&made, &sentence)
        }
        NetworkCommand::Ls => {
            let (items, _) = client
                .list::<NetworkView>(client.tenant_url(&["networks"], &[]))
                .await?;
            session.list(&items, |n| n.name.to_string(), render::cluster::networks)
        }
        NetworkCommand::Inspect { name } => {
            let url = client.tenant_url(&["networks", name.as_str()], &[]);
            session.inspect(&client.get::<NetworkView>(url).await?)
        }
        NetworkCommand::Rm { name } => {
            let url = client.tenant_url(&["networks", name.as_str()], &[]);
            session.remove(&client, url, name.as_str()).await
        }
    }
}
