//! `image …`.

use std::path::Path;

use berth_common::api::{ImageView, PullEvent, PullImage, PutRegistry, RegistryView, RemovedImage};
use berth_common::model::LoadedImage;
use futures::{StreamExt as _, TryStreamExt as _};
use reqwest::{Body, Method};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::progress::{Board, byte_bar};
use super::{Session, read_secret};
use crate::args::ImageCommand;
use crate::client::{Client, ClientError, lines};
use crate::failure::Failure;
use crate::render;

/// `berth image …`.
pub async fn image(session: &Session, command: ImageCommand) -> Result<(), Failure> {
    let client = session.client().await?;
    match command {
        ImageCommand::Load { file, name } => {
            let loaded = load(session, &client, &file, name.map(|n| n.to_string())).await?;
            session.list(
                &loaded,
                |i| i.reference.to_string(),
                |_, _, items| {
                    items
                        .iter()
                        .map(|i| format!("loaded {} ({})\n", i.reference.familiar(), i.manifest))
                        .collect()
                },
            )
        }
        ImageCommand::Pull { reference, node } => {
            pull(
                session,
                &client,
                PullImage {
                    reference,
                    nodes: node,
                },
            )
            .await
        }
        ImageCommand::Ls => {
            let (items, _) = client
                .list::<ImageView>(client.tenant_url(&["images"], &[]))
                .await?;
            session.list(&items, |i| i.reference.to_string(), render::service::images)
        }
        ImageCommand::Rm { reference } => {
            let url = client.tenant_url(&["images"], &[("reference", reference.to_string())]);
            let removed: RemovedImage = client.call::<(), _>(Method::DELETE, url, None).await?;
            let kept = removed
                .kept
                .iter()
                .map(|(node, why)| format!("; {node} keeps it: {why}"))
                .collect::<String>();
            let from = removed.nodes.len();
            session.done(
                &removed,
                &format!("{}: removed from {from} nodes{kept}", reference.familiar()),
            )?;
            if removed.kept.is_empty() {
                return Ok(());
            }
            Err(Failure::refused(
                format!("{} nodes keep {}", removed.kept.len(), reference.familiar()),
                "remove the services that use it, or wait until the nodes are back",
            ))
        }
        ImageCommand::Login {
            registry,
            username,
            password_stdin,
        } => {
            let username = username.ok_or_else(|| Failure::usage("no user is named", "add -u USER"))?;
            let password = read_secret(password_stdin, "Password: ", "--password-stdin")?;
            let url = client.tenant_url(&["registries", &registry], &[]);
            let body = PutRegistry {
                username: username.clone(),
                password,
            };
            client
                .call::<_, serde::de::IgnoredAny>(Method::PUT, url, Some(&body))
                .await?;
            let (items, _) = registries(&client).await?;
            session.show(&items, |style, _| render::cluster::registries(style, &items))
        }
        ImageCommand::Logout { registry } => {
            let url = client.tenant_url(&["registries", &registry], &[]);
            client
                .call::<(), serde::de::IgnoredAny>(Method::DELETE, url, None)
                .await?;
            session.note(&format!("{registry}: credentials forgotten"));
            Ok(())
        }
    }
}

/// The list is short; the API may give it with or without paging.
async fn registries(client: &Client) -> Result<(Vec<RegistryView>, ()), Failure> {
    let url = client.tenant_url(&["registries"], &[]);
    Ok((super::tenant::plain_or_listing(client, url).await?, ()))
}

async fn load(
    session: &Session,
    client: &Client,
    file: &Path,
    name: Option<String>,
) -> Result<Vec<LoadedImage>, Failure> {
    let fail = |source| Failure::io(format!("read {}", file.display()), source);
    let (reader, size): (Box<dyn AsyncRead + Send + Sync + Unpin>, Option<u64>) = if file == Path::new("-") {
        (Box::new(tokio::io::stdin()), None)
    } else {
        let file = tokio::fs::File::open(file).await.map_err(fail)?;
        let meta = file.metadata().await.map_err(fail)?;
        if !meta.is_file() {
            return Err(fail(std::io::Error::other(
                "it is not a file; write `tar c . | berth image load -`",
            )));
        }
        (Box::new(file), Some(meta.len()))
    };
    let bar = byte_bar(session.global.quiet, size);
    bar.set_message("uploading");
    let counter = bar.clone();
    let body = ReaderStream::with_capacity(reader, 256 * 1024)
        .inspect_ok(move |piece| counter.inc(piece.len() as u64));
    let query: Vec<_> = name.map(|name| ("name", name)).into_iter().collect();
    let mut request = client
        .request(Method::POST, client.tenant_url(&["images"], &query))
        .header("content-type", "application/octet-stream")
        .body(Body::wrap_stream(body));
    if let Some(size) = size {
        request = request.header("content-length", size);
    }
    let response = client.send(request, false).await?;
    bar.finish_and_clear();
    let text = response.bytes().await.map_err(|error| client.broken(&error))?;
    serde_json::from_slice(&text).map_err(|error| {
        ClientError::Nonsense {
            what: "loading an image".into(),
            why: error.to_string(),
        }
        .into()
    })
}

async fn pull(session: &Session, client: &Client, body: PullImage) -> Result<(), Failure> {
    let url = client.tenant_url(&["images", "pull"], &[]);
    let response = client
        .send(client.request(Method::POST, url).json(&body), false)
        .await?;
    let mut events = lines::ndjson::<PullEvent>(client.clone(), response);
    let mut board = Board::new(session.global.quiet);
    let mut results = Vec::new();
    while let Some(event) = events.next().await {
        match event? {
            PullEvent::Progress { node, progress } => {
                let name = format!("{node} {}", progress.item);
                board.update(name.trim_end(), &progress.step, progress.done, progress.total);
            }
            end => results.push(end),
        }
    }
    drop(board);
    session.show(&results, |_, _| {
        results
            .iter()
            .filter_map(|event| match event {
                PullEvent::Done { node, digest } => Some(format!("{node}: {digest}\n")),
                _ => None,
            })
            .collect()
    })?;
    let failed: Vec<String> = results
        .iter()
        .filter_map(|event| match event {
            PullEvent::Failed { node, problem } => Some(format!("{node}: {problem}")),
            _ => None,
        })
        .collect();
    if !failed.is_empty() {
        return Err(Failure::refused(
            format!(
                "{} could not be pulled: {}",
                body.reference.familiar(),
                failed.join("; ")
            ),
            "check its name, and the credentials with `berth image login`",
        ));
    }
    if results.is_empty() {
        return Err(Failure::refused(
            "no node took the image",
            "`berth node ls` shows which are ready",
        ));
    }
    Ok(())
}
