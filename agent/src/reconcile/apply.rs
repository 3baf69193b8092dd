//! Carries steps out. Thin: every parameter comes with the step, and "already so" is success.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::outcome::Outcome;
use super::plan::Step;
use crate::cgroup::{CgroupError, Cgroups};
use crate::container::runtime::{CreateRequest, Runtime, RuntimeError};
use crate::health::Prober;
use crate::image::{ImageError, Images};

/// The host's facilities.
#[derive(Clone)]
pub struct Facilities {
    /// Containers.
    pub runtime: Arc<dyn Runtime>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// Control groups.
    pub cgroups: Arc<dyn Cgroups>,
    /// Health checks.
    pub prober: Arc<dyn Prober>,
}

/// Bounds on work at the same time.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    pub starts: Arc<Semaphore>,
    pub pulls: Arc<Semaphore>,
}

/// Carries one step out. `progress` hears of a pull that takes more than a lookup.
pub(super) async fn apply(
    facilities: &Facilities,
    bounds: &Bounds,
    nameservers: &[std::net::IpAddr],
    step: &Step,
    progress: mpsc::Sender<berth_common::protocol::Progress>,
) -> Outcome {
    let runtime = &facilities.runtime;
    match step {
        Step::EnsureTenant { tenant, cpu_weight } => {
            let (tenant, weight) = (*tenant, *cpu_weight);
            blocking(facilities, move |cgroups| cgroups.ensure_tenant(tenant, weight)).await
        }
        Step::RemoveTenant { tenant } => {
            let tenant = *tenant;
            blocking(facilities, move |cgroups| cgroups.remove_tenant(tenant)).await
        }
        Step::Pull {
            tenant,
            reference,
            credential,
            ..
        } => {
            match facilities.images.lookup(*tenant, reference).await {
                Ok(Some(image)) => return Outcome::Image(Arc::new(image)),
                Ok(None) => {}
                Err(error) => return image_failed(&error),
            }
            // Only real pulls queue: a container whose image is here never waits for another's download.
            let _permit = bounds.pulls.acquire().await;
            let pull = facilities
                .images
                .pull(*tenant, reference, credential.as_ref(), progress);
            match pull.await {
                Ok(image) => Outcome::Image(Arc::new(image)),
                Err(error) => image_failed(&error),
            }
        }
        Step::Create { meta, spec, image } => {
            let _permit = bounds.starts.acquire().await;
            let request = CreateRequest {
                meta: meta.clone(),
                spec: (**spec).clone(),
                image: (**image).clone(),
                nameservers: nameservers.to_vec(),
            };
            done(runtime.create(&request).await)
        }
        Step::Start { id, .. } => {
            if let Err(error) = runtime.await_volumes(*id).await {
                return runtime_failed(&error);
            }
            let _permit = bounds.starts.acquire().await;
            match runtime.start(*id).await {
                Ok(started) => Outcome::Started(started),
                Err(error) => runtime_failed(&error),
            }
        }
        Step::Stop { id, leave_ms, .. } => {
            // From here on it is shown as stopping, and what balances requests goes by that.
            tokio::time::sleep(Duration::from_millis(*leave_ms)).await;
            match runtime.stop_signal(*id).await {
                Ok(signal) => done(runtime.signal(*id, signal, false).await),
                Err(error) => runtime_failed(&error),
            }
        }
        Step::Kill { id } => done(runtime.signal(*id, nix::libc::SIGKILL, true).await),
        Step::Collect { id } => match runtime.collect(*id).await {
            Ok(exit) => Outcome::Exit(exit),
            Err(RuntimeError::Missing(_)) => Outcome::Exit(None),
            Err(error) => runtime_failed(&error),
        },
        Step::Update { id, spec } => done(runtime.update(*id, spec).await),
        Step::ReadLimits { id } => match runtime.read_limits(*id).await {
            Ok(limits) => Outcome::Limits(limits),
            Err(error) => runtime_failed(&error),
        },
        Step::Delete { id, tenant } => {
            let _permit = bounds.starts.acquire().await;
            match runtime.delete(*id).await {
                Ok(()) | Err(RuntimeError::Missing(_)) => {}
                Err(error) => return runtime_failed(&error),
            }
            let (tenant, id) = (*tenant, *id);
            blocking(facilities, move |cgroups| cgroups.clear_container(tenant, id)).await
        }
        Step::Forget { .. } => Outcome::Done,
    }
}

async fn blocking(
    facilities: &Facilities,
    work: impl FnOnce(&dyn Cgroups) -> Result<(), CgroupError> + Send + 'static,
) -> Outcome {
    let cgroups = facilities.cgroups.clone();
    match tokio::task::spawn_blocking(move || work(&*cgroups)).await {
        Ok(Ok(())) => Outcome::Done,
        Ok(Err(error)) => failed(&error, true, false),
        Err(error) => failed(&error, true, false),
    }
}

fn done(result: Result<(), RuntimeError>) -> Outcome {
    result.map_or_else(|error| runtime_failed(&error), |()| Outcome::Done)
}

fn runtime_failed(error: &RuntimeError) -> Outcome {
    let missing = matches!(error, RuntimeError::Missing(_));
    failed(error, error.retryable() || missing, true)
}

fn image_failed(error: &ImageError) -> Outcome {
    failed(error, error.retryable(), false)
}

fn failed(error: &dyn std::error::Error, retryable: bool, relist: bool) -> Outcome {
    Outcome::Failed {
        message: chain(error),
        retryable,
        relist,
    }
}

/// An error with its causes, for people (R9).
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    berth_common::id::clip(&text, 600)
}
