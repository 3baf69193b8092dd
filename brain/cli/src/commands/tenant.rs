//! `tenant …`.

use berth_common::api::{CreateTenant, CreateToken, CreatedToken, Listing, TokenView, UpdateTenant};
use berth_common::model::{Quota, TenantRecord};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Session;
use crate::args::{QuotaArgs, TenantCommand};
use crate::client::Client;
use crate::failure::Failure;
use crate::render;

/// A quota with the changes of the command line.
fn changed(mut quota: Quota, args: &QuotaArgs) -> Quota {
    quota.cpu = args.cpus.unwrap_or(quota.cpu);
    quota.memory = args.memory.unwrap_or(quota.memory);
    quota.disk = args.disk.unwrap_or(quota.disk);
    quota.containers = args.containers.unwrap_or(quota.containers);
    quota
}

/// A short list that the API may give as it is or as a page.
pub async fn plain_or_listing<T: DeserializeOwned>(client: &Client, url: Url) -> Result<Vec<T>, Failure> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        Plain(Vec<T>),
        Page(Listing<T>),
    }
    Ok(match client.get::<Either<T>>(url).await? {
        Either::Plain(items) => items,
        Either::Page(page) => page.items,
    })
}

/// `berth tenant …`.
pub async fn tenant(session: &Session, command: TenantCommand) -> Result<(), Failure> {
    let client = session.client().await?;
    match command {
        TenantCommand::Create { name, quota } => {
            let body = CreateTenant {
                name: name.clone(),
                quota: changed(Quota::default(), &quota),
            };
            let made: TenantRecord = client
                .call(Method::POST, client.url(&["tenants"], &[]), Some(&body))
                .await?;
            session.done(
                &made,
                &format!("{name}: made; `berth tenant token {name}` lets someone use it"),
            )
        }
        TenantCommand::Ls => {
            let (items, _) = client.list::<TenantRecord>(client.url(&["tenants"], &[])).await?;
            session.list(&items, |t| t.name.to_string(), render::cluster::tenants)
        }
        TenantCommand::Inspect { name } => {
            let url = client.url(&["tenants", name.as_str()], &[]);
            session.inspect(&client.get::<TenantRecord>(url).await?)
        }
        TenantCommand::Quota {
            name,
            quota,
            cpu_weight,
            privileged,
            max_priority,
        } => {
            let url = client.url(&["tenants", name.as_str()], &[]);
            let current: TenantRecord = client.get(url.clone()).await?;
            let wanted = changed(current.quota, &quota);
            let body = UpdateTenant {
                quota: (wanted != current.quota).then_some(wanted),
                cpu_weight,
                privileged,
                max_priority,
            };
            let now: TenantRecord = client.call(Method::PATCH, url, Some(&body)).await?;
            session.show(&now, |style, at| {
                render::cluster::tenants(style, at, std::slice::from_ref(&now))
            })
        }
        TenantCommand::Token { name, ls: true, .. } => {
            let url = client.url(&["tenants", name.as_str(), "tokens"], &[]);
            let items: Vec<TokenView> = plain_or_listing(&client, url).await?;
            session.list(&items, |t| t.id.to_string(), render::cluster::tokens)
        }
        TenantCommand::Token {
            name,
            revoke: Some(id),
            ..
        } => {
            let url = client.url(&["tenants", name.as_str(), "tokens", &id.to_string()], &[]);
            client
                .call::<(), serde::de::IgnoredAny>(Method::DELETE, url, None)
                .await?;
            session.note(&format!("{id}: revoked"));
            Ok(())
        }
        TenantCommand::Token {
            name,
            note,
            ttl,
            admin,
            metrics,
            ..
        } => {
            let url = client.url(&["tenants", name.as_str(), "tokens"], &[]);
            let body = CreateToken {
                note,
                ttl_secs: ttl,
                admin,
                metrics,
            };
            let made: CreatedToken = client.call(Method::POST, url, Some(&body)).await?;
            session.note("this is shown once; keep it, for `berth login URL --token-stdin`");
            session.show(&made, |_, _| format!("{}\n", made.token))
        }
        TenantCommand::Rm { name } => {
            let url = client.url(&["tenants", name.as_str()], &[]);
            session.remove(&client, url, name.as_str()).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::units::Bytes;

    #[test]
    fn a_quota_changes_only_where_asked() {
        let quota = Quota {
            containers: 5,
            memory: Bytes::gib(1),
            ..Default::default()
        };
        let args = QuotaArgs {
            memory: Some(Bytes::ZERO),
            ..Default::default()
        };
        assert_eq!(
            changed(quota, &args),
            Quota {
                memory: Bytes::ZERO,
                ..quota
            }
        );
    }
}
