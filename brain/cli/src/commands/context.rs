//! `context …` and `login`: what is kept in the configuration file.

use berth_common::identity;
use berth_common::model::TenantRecord;
use serde_json::json;

use super::{Session, read_secret, read_text};
use crate::args::{ContextCommand, LoginArgs};
use crate::client::{Client, ClientError, endpoint, login as fetch};
use crate::config::{self, ConfigFile, Context};
use crate::failure::Failure;
use crate::{context as contexts, render};

fn env(key: &str) -> Option<String> {
    std::env::var(key).ok()
}

/// `berth context …`.
pub fn context(session: &Session, command: ContextCommand) -> Result<(), Failure> {
    let path = config::path_from(env)?;
    let mut file = config::load(&path)?;
    match command {
        ContextCommand::Ls => {
            let shown: Vec<_> = file
                .contexts
                .iter()
                .map(|(name, c)| {
                    json!({"name": name, "server": c.server, "tenant": c.tenant,
                        "current": file.current.as_ref() == Some(name)})
                })
                .collect();
            session.list(
                &shown,
                |c| c["name"].as_str().unwrap_or_default().to_owned(),
                |style, _, _| render::cluster::contexts(style, &file),
            )
        }
        ContextCommand::Use { name } => {
            file.context(&name)?;
            file.current = Some(name.clone());
            config::save(&path, &file)?;
            session.note(&format!("{name} is used from now on"));
            Ok(())
        }
        ContextCommand::Add {
            name,
            url,
            ca,
            token_stdin,
        } => {
            endpoint(&url)?;
            let ca = read_text(&ca)?;
            identity::parse_cert("the CA certificate", &ca).map_err(ClientError::from)?;
            let token = if token_stdin {
                Some(read_secret(true, "", "--token-stdin")?)
            } else {
                None
            };
            keep(
                &mut file,
                &name,
                Context {
                    server: url,
                    ca,
                    token,
                    tenant: session.global.tenant.clone(),
                },
            );
            config::save(&path, &file)?;
            session.note(&format!("{name}: kept in {}", path.display()));
            Ok(())
        }
        ContextCommand::Rm { name } => {
            file.context(&name)?;
            file.contexts.remove(&name);
            file.current = file.current.filter(|current| *current != name);
            config::save(&path, &file)?;
            session.note(&format!("{name}: forgotten"));
            Ok(())
        }
        ContextCommand::Show => {
            let wanted = session.global.context.as_deref();
            let target = contexts::resolve(&file, wanted, session.global.tenant.as_ref(), env, |path| {
                std::fs::read_to_string(path)
            })?;
            let ca = identity::parse_cert("the CA certificate", &target.ca).map_err(ClientError::from)?;
            session.inspect(&json!({
                "context": target.origin,
                "server": target.server,
                "tenant": target.tenant,
                "ca_fingerprint": identity::fingerprint(&ca),
                "token": target.token.as_deref().map(public_part),
                "file": path,
            }))
        }
    }
}

/// The part of a token that is no secret: `berth_<id>`.
fn public_part(token: &str) -> String {
    let mut parts = token.splitn(3, '_');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(first), Some(id), Some(_)) => format!("{first}_{id}_…"),
        _ => "set".into(),
    }
}

fn keep(file: &mut ConfigFile, name: &str, context: Context) {
    file.contexts.insert(name.to_owned(), context);
    file.current.get_or_insert_with(|| name.to_owned());
}

/// `berth login`.
pub async fn login(session: &Session, args: LoginArgs) -> Result<(), Failure> {
    let (host, _) = endpoint(&args.url)?;
    let path = config::path_from(env)?;
    let mut file = config::load(&path)?;
    let ca = match (&args.ca, args.fingerprint) {
        (Some(path), _) => read_text(path)?,
        (None, Some(fingerprint)) => {
            let url = args.url.clone();
            tokio::task::spawn_blocking(move || fetch::fetch_ca(&url, &fingerprint))
                .await
                .map_err(|error| Failure::io("fetch the CA", std::io::Error::other(error)))??
        }
        (None, None) => {
            return Err(Failure::usage(
                "no CA is named",
                "add --ca FILE or --fingerprint HEX",
            ));
        }
    };
    let token = read_secret(args.token_stdin, "Token: ", "--token-stdin")?;
    let context = Context {
        server: args.url,
        ca,
        token: Some(token),
        tenant: session.global.tenant.clone(),
    };
    let target = contexts::Target {
        origin: "login".into(),
        server: context.server.clone(),
        ca: context.ca.clone(),
        token: context.token.clone(),
        tenant: context.tenant.clone().unwrap_or_else(contexts::default_tenant),
    };
    let client = Client::new(target).await?;
    // Only a request that needs the token proves it.
    let tenant: TenantRecord = client.get(client.tenant_url(&[], &[])).await?;
    let name = args.name.unwrap_or(host);
    keep(&mut file, &name, context);
    file.current = Some(name.clone());
    config::save(&path, &file)?;
    session.note(&format!(
        "signed in; context {name}, tenant {}, kept in {}",
        tenant.name,
        path.display()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_part_of_a_token_is_shown() {
        assert_eq!(public_part("berth_abc_secret_more"), "berth_abc_…");
        assert_eq!(public_part("other"), "set");
    }
}
