//! `schedule …`.

use berth_common::api::{ForeseenView, PlacementView};
use reqwest::Method;

use super::Session;
use super::service::specs_of;
use crate::args::{ScheduleCommand, WhatIfArgs};
use crate::failure::Failure;
use crate::render;

/// `berth schedule …`.
pub async fn schedule(session: &Session, command: ScheduleCommand) -> Result<(), Failure> {
    match command {
        ScheduleCommand::Explain { container } => {
            let client = session.client().await?;
            let url = client.tenant_url(&["containers", &container, "schedule"], &[]);
            let view: PlacementView = client.get(url).await?;
            session.show(&view, |style, _| render::schedule::placement(style, &view))
        }
        ScheduleCommand::WhatIf(args) => what_if(session, args).await,
    }
}

async fn what_if(session: &Session, args: WhatIfArgs) -> Result<(), Failure> {
    if let Some(node) = &args.without {
        let client = session.client().await?;
        let view: ForeseenView = client.get(client.url(&["nodes", node, "loss"], &[])).await?;
        session.show(&view, |style, _| render::schedule::foreseen(style, &view))?;
        return judged(std::slice::from_ref(&view), "make room first, or add a node");
    }
    let mut specs = match &args.file {
        Some(path) => specs_of(path)?,
        None => Vec::new(),
    };
    let client = session.client().await?;
    let mut views: Vec<ForeseenView> = Vec::new();
    for spec in &mut specs {
        spec.replicas = args.replicas.unwrap_or(spec.replicas);
        let url = client.tenant_url(&["schedule"], &[]);
        views.push(client.call(Method::POST, url, Some(&*spec)).await?);
    }
    session.show(&views, |style, _| {
        let told = specs.iter().zip(&views).map(|(spec, view)| {
            let text = render::schedule::foreseen(style, view);
            if specs.len() > 1 {
                format!("{}\n{text}", spec.name)
            } else {
                text
            }
        });
        told.collect::<Vec<_>>().join("\n")
    })?;
    judged(&views, "ask for less, make room, or add a node")
}

/// A refusal unless all would have a place.
fn judged(views: &[ForeseenView], cure: &str) -> Result<(), Failure> {
    match views.iter().find(|view| !view.fits) {
        Some(view) => Err(Failure::refused(view.verdict.clone(), cure)),
        None => Ok(()),
    }
}
