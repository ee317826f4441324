//! OpenID discovery: others can verify this cluster's service account tokens
//! (<https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/#service-account-issuer-discovery>).

use std::sync::Arc;

use http::StatusCode;
use http::header::{CACHE_CONTROL, HeaderValue};
use pilothouse_apimachinery::json::{Value, json};

use crate::authentication::service_account::keys;
use crate::config::Config;
use crate::request::{RequestBody, RequestContext};
use crate::respond;
use crate::special::SpecialRest;
use crate::state::ServerState;

/// What the two paths answer. Computed once at start.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    /// `/.well-known/openid-configuration`.
    pub configuration: Value,
    /// `/openid/v1/jwks`.
    pub keys: Value,
}

/// What this server answers; `None` where its issuer is no `https` URL, as in Kubernetes, or there are no keys.
pub fn discovery(config: &Config) -> Result<Option<Discovery>, String> {
    let issuer = &config.service_account_issuer;
    if !issuer.starts_with("https://") {
        return Ok(None);
    }
    let mut jwks: Vec<Value> = keys(config)?.iter().filter_map(|k| k.jwk()).collect();
    if jwks.is_empty() {
        return Ok(None);
    }
    jwks.dedup();
    let mut algorithms: Vec<Value> = jwks.iter().map(|k| k["alg"].clone()).collect();
    algorithms.sort_by_key(Value::to_string);
    algorithms.dedup();
    let uri = match config.service_account_jwks_uri.as_str() {
        "" => {
            let host = if config.external_hostname.is_empty() {
                config.advertise_address.to_string()
            } else {
                config.external_hostname.clone()
            };
            format!("https://{host}:{}/openid/v1/jwks", config.bind.port())
        }
        given => given.to_string(),
    };
    let configuration = json!({
        "issuer": issuer,
        "jwks_uri": uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    });
    Ok(Some(Discovery { configuration, keys: json!({"keys": jwks}) }))
}

/// Registers the handlers of the two paths, where there is something to say.
pub fn register(special: &mut SpecialRest, config: &Config) -> Result<(), String> {
    let Some(found) = discovery(config)? else { return Ok(()) };
    let answer = |document: Value, content_type: &'static str| {
        let document = Arc::new(document);
        move |_: Arc<ServerState>, context: Arc<RequestContext>, _: RequestBody| {
            let document = document.clone();
            async move {
                let body = respond::json_text(&*document, respond::pretty(&context));
                let mut response = respond::bytes(StatusCode::OK, content_type, body);
                let value = HeaderValue::from_static("public, max-age=3600");
                response.headers_mut().insert(CACHE_CONTROL, value);
                Ok(response)
            }
        }
    };
    special.add_path("/.well-known/openid-configuration", answer(found.configuration, "application/json"));
    special.add_path("/openid/v1/jwks", answer(found.keys, "application/jwk-set+json"));
    Ok(())
}
