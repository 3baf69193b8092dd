//! What this brain is. Open to everyone, so that a client can tell why it can't sign in.

use berth_common::api::VersionInfo;
use berth_common::protocol::{PROTOCOL, PROTOCOL_MIN};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ApiState;
use super::problem::Json;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(version))
}

/// Versions of the brain
#[utoipa::path(get, path = "/version", tag = "platform", operation_id = "version", security(()),
    responses((status = 200, description = "Its version and the link protocols it speaks", body = VersionInfo)))]
async fn version() -> Json<VersionInfo> {
    Json(VersionInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: PROTOCOL,
        protocol_min: PROTOCOL_MIN,
    })
}
