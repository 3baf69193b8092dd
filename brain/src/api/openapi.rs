//! The API's description, generated from the code and served: what routes and types say, plus how to sign in.

use axum::Router;
use axum::http::header;
use axum::routing::get;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};

use super::ApiState;

/// Completes the generated document.
pub fn finished(mut document: OpenApi) -> OpenApi {
    "berth".clone_into(&mut document.info.title);
    berth_common::VERSION.clone_into(&mut document.info.version);
    document.info.description =
        Some("The HTTP API of berth's brain. Errors are problem details (RFC 9457).".to_owned());
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let mut components = document.components.take().unwrap_or_default();
    components.add_security_scheme("token", bearer);
    document.components = Some(components);
    document.security = Some(vec![SecurityRequirement::new("token", Vec::<String>::new())]);
    document
}

/// Adds the document and the health probe, both open to everyone.
pub fn serve(routes: Router<ApiState>, document: OpenApi) -> Router<ApiState> {
    let text = finished(document).to_json().unwrap_or_default();
    let json = [(header::CONTENT_TYPE, "application/json")];
    routes
        .route("/v1/openapi.json", get(move || async move { (json, text) }))
        .route("/healthz", get(|| async { "ok\n" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_path_of_the_contract_and_the_way_to_sign_in() {
        let (_, document) = super::super::documented();
        let text = finished(document).to_json().unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        for path in [
            "/v1/version",
            "/v1/tenants",
            "/v1/tenants/{tenant}/services",
            "/v1/tenants/{tenant}/containers",
            "/v1/nodes",
            "/v1/nodes/tokens",
            "/v1/usage",
            "/v1/events",
            "/v1/watch",
            "/v1/tenants/{tenant}/images",
        ] {
            assert!(value["paths"][path].is_object(), "{path} is missing");
        }
        assert_eq!(
            value["components"]["securitySchemes"]["token"]["scheme"],
            "bearer"
        );
    }

    /// Who writes a client reads the file; a change of the API shows in its difference.
    #[test]
    fn the_description_in_docs_is_the_one_served() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        let (_, document) = super::super::documented();
        let served = finished(document).to_pretty_json().unwrap() + "\n";
        if std::env::var_os("BERTH_RECORD").is_some() {
            std::fs::write(&path, &served).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        let differs = kept.lines().zip(served.lines()).position(|(a, b)| a != b);
        assert!(
            kept == served,
            "docs/openapi.json is not what the code serves (from line {:?} on); \
             write it anew: BERTH_RECORD=1 cargo test -p berth-brain the_description_in_docs",
            differs.map(|line| line + 1)
        );
    }
}
