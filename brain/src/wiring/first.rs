//! The first start: a tenant to begin with, and the administrator's token.
//!
//! The token's file is written before the record of the token: after a crash between the two there is no administrator
//! in the store yet, so the next start makes another token and another file. A brain that lost its last administrator's
//! token gets one in the same way.

use std::path::Path;

use berth_common::id::{Name, TenantId};
use berth_common::model::{Quota, Role, TenantRecord};

use super::{BrainError, file};
use crate::api::auth::new_token;
use crate::ca::write_private;
use crate::cluster::{Change, Cluster, State};

/// File of the administrator's first token.
pub const TOKEN_FILE: &str = "admin.token";
const DEFAULT_TENANT: &str = "default";

/// Makes what is missing.
pub(super) async fn prepare(cluster: &Cluster, dir: &Path) -> Result<(), BrainError> {
    let state = cluster.snapshot();
    if has_admin(&state, cluster.now().wall) {
        return Ok(());
    }
    let note = "made by the brain; in admin.token".to_owned();
    let (token, record) = new_token(Role::Admin, note, None, cluster.now().wall);
    let path = dir.join(TOKEN_FILE);
    write_private(&path, &format!("{token}\n")).map_err(file("writing", &path))?;
    let propose = move |state: &State, now: crate::controllers::Now| {
        let mut changes = vec![Change::PutToken(record)];
        if state.tenants.is_empty()
            && let Ok(name) = DEFAULT_TENANT.parse::<Name>()
        {
            changes.push(Change::PutTenant(TenantRecord {
                id: TenantId::random(),
                name,
                quota: Quota::default(),
                cpu_weight: 100,
                privileged: false,
                max_priority: 0,
                created_at: now.wall,
                revision: Default::default(),
            }));
        }
        Ok((changes, Vec::new(), ()))
    };
    cluster
        .write(propose)
        .await
        .map_err(|problem| BrainError::First(Box::new(problem)))?;
    tracing::info!(path = %path.display(), "an administrator's token was written");
    Ok(())
}

fn has_admin(state: &State, now: berth_common::model::UnixMillis) -> bool {
    state
        .tokens
        .values()
        .any(|token| token.role == Role::Admin && token.expires_at.is_none_or(|end| end > now))
}
