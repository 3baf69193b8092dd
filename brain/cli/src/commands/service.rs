//! `run`, `service …`, `ps`, and `stop`, `start`, `restart`.

use std::path::Path;

use berth_common::api::{ContainerView, Scale, ServiceView};
use berth_common::id::{ContainerId, Name};
use berth_common::model::ServiceSpec;
use reqwest::Method;

use super::{Session, print, read_text, wait};
use crate::args::{RunArgs, ServiceCommand, SpecArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::{render, spec};

/// `berth run`.
pub async fn run(session: &Session, args: RunArgs) -> Result<(), Failure> {
    let name = args.name.unwrap_or_else(|| {
        let random = ContainerId::random().to_string();
        spec::generated_name(&args.image, &random[..4])
    });
    let mut wanted = ServiceSpec::new(name, args.image);
    with_flags(&mut wanted, &args.spec, &args.args)?;
    let client = session.client().await?;
    let url = client.tenant_url(&["services"], &[]);
    let made: ServiceView = client.call(Method::POST, url, Some(&wanted)).await?;
    settle(session, &client, made, args.detach, args.wait).await
}

async fn settle(
    session: &Session,
    client: &Client,
    mut view: ServiceView,
    detach: bool,
    limit: u64,
) -> Result<(), Failure> {
    let name = view.record.spec.name.clone();
    if !detach {
        view = wait::until_running(session, client, &name, limit).await?;
    }
    if session.global.quiet {
        return print(&format!("{name}\n"));
    }
    let sentence = if detach {
        format!("{name}: accepted; `berth ps {name}` shows how it goes")
    } else {
        format!(
            "{name}: {} of {} running",
            view.running, view.record.spec.replicas
        )
    };
    session.done(&view, &sentence)
}

fn with_flags(wanted: &mut ServiceSpec, args: &SpecArgs, command: &[String]) -> Result<(), Failure> {
    let files = args
        .env_file
        .iter()
        .map(|path| read_text(path))
        .collect::<Result<Vec<_>, _>>()?;
    spec::apply(wanted, args, command, &files, |key| std::env::var(key).ok())
        .map_err(|detail| Failure::usage(detail, "`berth run --help` lists the options with their units"))
}

/// The services of a file.
///
/// # Errors
/// What is wrong with it.
pub fn specs_of(path: &Path) -> Result<Vec<ServiceSpec>, Failure> {
    spec::parse(&read_text(path)?).map_err(|why| {
        Failure::usage(
            format!("{}: {why}", path.display()),
            "`berth service inspect NAME -o yaml` shows the form, below `spec`",
        )
    })
}

/// `berth service …`.
pub async fn service(session: &Session, command: ServiceCommand) -> Result<(), Failure> {
    let client = session.client().await?;
    let one = |name: &Name| client.tenant_url(&["services", name.as_str()], &[]);
    match command {
        ServiceCommand::Ls => {
            let (items, _) = client
                .list::<ServiceView>(client.tenant_url(&["services"], &[]))
                .await?;
            session.list(
                &items,
                |s| s.record.spec.name.to_string(),
                render::service::services,
            )
        }
        ServiceCommand::Inspect { name } => session.inspect(&client.get::<ServiceView>(one(&name)).await?),
        ServiceCommand::Update {
            name,
            image,
            file,
            spec,
            remove,
            detach,
            wait,
            args,
        } => {
            let current: ServiceView = client.get(one(&name)).await?;
            let mut wanted = match file {
                Some(path) => only(specs_of(&path)?, &name, &path)?,
                None => current.record.spec.clone(),
            };
            if let Some(image) = image {
                wanted.image = image;
            }
            crate::spec::remove(&mut wanted, &remove).map_err(|why| {
                Failure::usage(why, format!("`berth service inspect {name}` shows what it has"))
            })?;
            with_flags(&mut wanted, &spec, &args)?;
            let changed = put(&client, &wanted, Some(current.record.generation)).await?;
            settle(session, &client, changed, detach, wait).await
        }
        ServiceCommand::Apply { file } => {
            let mut views = Vec::new();
            for wanted in specs_of(&file)? {
                let name = wanted.name.clone();
                let (view, what) = apply_one(&client, &wanted).await?;
                session.note(&format!("{name}: {what}"));
                views.push(view);
            }
            session.show(&views, |_, _| String::new())
        }
        ServiceCommand::Scale { name, replicas } => {
            let url = client.tenant_url(&["services", name.as_str(), "scale"], &[]);
            let view: ServiceView = client.call(Method::POST, url, Some(&Scale { replicas })).await?;
            session.done(
                &view,
                &format!("{name}: {replicas} wanted, {} running", view.running),
            )
        }
        ServiceCommand::Rm { names } => {
            for name in names {
                session.remove(&client, one(&name), name.as_str()).await?;
            }
            Ok(())
        }
    }
}

fn only(mut specs: Vec<ServiceSpec>, name: &Name, path: &Path) -> Result<ServiceSpec, Failure> {
    match (specs.pop(), specs.is_empty()) {
        (Some(spec), true) if spec.name == *name => Ok(spec),
        _ => Err(Failure::usage(
            format!("{} does not hold exactly the service {name}", path.display()),
            "use `berth service apply -f` for other or several services",
        )),
    }
}

async fn put(client: &Client, wanted: &ServiceSpec, generation: Option<u64>) -> Result<ServiceView, Failure> {
    let query: Vec<_> = generation
        .map(|g| ("generation", g.to_string()))
        .into_iter()
        .collect();
    let url = client.tenant_url(&["services", wanted.name.as_str()], &query);
    Ok(client.call(Method::PUT, url, Some(wanted)).await?)
}

async fn apply_one(client: &Client, wanted: &ServiceSpec) -> Result<(ServiceView, &'static str), Failure> {
    let url = client.tenant_url(&["services", wanted.name.as_str()], &[]);
    match client.get::<ServiceView>(url).await.map_err(Failure::from) {
        Ok(current) if current.record.spec == *wanted => Ok((current, "unchanged")),
        Ok(current) => {
            let view = put(client, wanted, Some(current.record.generation)).await?;
            Ok((view, "changed"))
        }
        Err(failure) if failure.is_not_found() => {
            let url = client.tenant_url(&["services"], &[]);
            Ok((client.call(Method::POST, url, Some(wanted)).await?, "made"))
        }
        Err(failure) => Err(failure),
    }
}

/// `berth ps`.
pub async fn ps(session: &Session, service: Option<&Name>, node: Option<String>) -> Result<(), Failure> {
    let client = session.client().await?;
    let mut query = Vec::new();
    if let Some(name) = service {
        // An unknown service must be an error and not an empty table.
        client
            .get::<ServiceView>(client.tenant_url(&["services", name.as_str()], &[]))
            .await?;
        query.push(("service", name.to_string()));
    }
    query.extend(node.map(|node| ("node", node)));
    let (items, _) = client
        .list::<ContainerView>(client.tenant_url(&["containers"], &query))
        .await?;
    session.list(&items, |c| c.record.id.to_string(), render::service::containers)
}

/// What a person's word for a target turned out to be.
pub enum Target {
    /// A service of this name.
    Service(Box<ServiceView>),
    /// Something only the brain can resolve to a container.
    Container(String),
}

/// A service if there is one of this name, else whatever the brain takes for a container.
pub async fn target(client: &Client, text: &str) -> Result<Target, Failure> {
    let Ok(name) = text.parse::<Name>() else {
        return Ok(Target::Container(text.to_owned()));
    };
    let url = client.tenant_url(&["services", name.as_str()], &[]);
    match client.get::<ServiceView>(url).await.map_err(Failure::from) {
        Ok(view) => Ok(Target::Service(Box::new(view))),
        Err(failure) if failure.is_not_found() => Ok(Target::Container(text.to_owned())),
        Err(failure) => Err(failure),
    }
}

/// `berth stop|start|restart`.
pub async fn act(session: &Session, text: &str, verb: &str, does: &str) -> Result<(), Failure> {
    let client = session.client().await?;
    match target(&client, text).await? {
        Target::Service(_) => {
            let view: ServiceView = client
                .post(client.tenant_url(&["services", text, verb], &[]))
                .await?;
            session.done(&view, &format!("{text}: {does}"))
        }
        Target::Container(id) => {
            let view: ContainerView = client
                .post(client.tenant_url(&["containers", &id, verb], &[]))
                .await?;
            session.done(&view, &format!("{}: {does}", view.name))
        }
    }
}
