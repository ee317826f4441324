//! `serviceaccounts/token`: a token for an account, bound to a time and perhaps to an object.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::time::Timestamp;
use pilothouse_apimachinery::version::Release;

use super::body::{self, Gvk};
use crate::admission;
use crate::authentication::service_account::{Binding, Issuer};
use crate::json::{self, get, i64_at, str_at, texts};
use crate::request::{AdmissionRequest, Objects, Operation, RequestBody, RequestContext, Response};
use crate::special::SpecialRest;
use crate::state::ServerState;

const KIND: Gvk = Gvk { group: "authentication.k8s.io", version: "v1", kind: "TokenRequest" };
/// Kubelets of clients that do not reload their tokens ask for this, in seconds.
const WARN_ONLY: i64 = 3607;
/// And get this: a year.
const EXTENDED: i64 = 365 * 86_400;

/// What the handler needs beside the server.
struct TokenRequests {
    issuer: Issuer,
    audiences: Vec<String>,
    max: Duration,
    extend: bool,
}

fn validate(spec: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let seconds = i64_at(spec, &["expirationSeconds"]).unwrap_or(3600);
    let path = Path::new("spec").child("expirationSeconds");
    if seconds < 600 {
        errs.push(field::invalid(&path, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > 1 << 32 {
        errs.push(field::invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    errs
}

/// The object that a token is to be bound to, checked.
fn bound_object(
    objects: &dyn Objects,
    namespace: &str,
    account: &str,
    reference: &Value,
) -> Result<(&'static str, Arc<Value>), Status> {
    let field = |f| str_at(reference, &[f]);
    let (name, uid) = (field("name"), field("uid"));
    let (group, version) = field("apiVersion").split_once('/').unwrap_or(("", field("apiVersion")));
    let (resource, short) = match (group, field("kind")) {
        ("", "Pod") => ("pods", "pod"),
        ("", "Secret") => ("secrets", "secret"),
        (group, kind) => {
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    if name.is_empty() {
        return Err(Status::bad_request("Name parameter required."));
    }
    let object =
        objects.get("", resource, namespace, name).ok_or_else(|| Status::not_found("", resource, name))?;
    if short == "pod" && str_at(&object, &["spec", "serviceAccountName"]) != account {
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        )));
    }
    if !uid.is_empty() && str_at(&object, &["metadata", "uid"]) != uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", field("kind"), name, &why));
    }
    Ok((short, object))
}

async fn create(
    this: Arc<TokenRequests>,
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let (namespace, name) = (&context.info.namespace, &context.info.name);
    let (gvk, mut object) = body::read(&context, body, state.release, &[KIND]).await?;
    let account = state.objects.get_latest("", "serviceaccounts", namespace, name).await?;
    // v1.20 neither fills these in nor looks at them.
    let newest = state.release > Release::V1_20;
    for (field, value) in [("name", name), ("namespace", namespace)].into_iter().filter(|_| newest) {
        match str_at(&object, &["metadata", field]) {
            "" => json::set(&mut object, &["metadata", field], value.as_str()),
            given if given != value => {
                return Err(Status::bad_request(format!(
                    "metadata.{field}: Invalid value: {given:?}: must match the service account {field}"
                )));
            }
            _ => {}
        }
    }
    if texts(&object, &["spec", "audiences"]).is_empty() {
        json::set(&mut object, &["spec", "audiences"], this.audiences.clone());
    }
    json::set_default(&mut object, &["spec", "expirationSeconds"], 3600);
    let errs = validate(get(&object, &["spec"]));
    if !errs.is_empty() {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &errs));
    }
    let mut request = AdmissionRequest {
        user: context.user.clone(),
        group: String::new(),
        version: "v1".into(),
        resource: "serviceaccounts".into(),
        kind: "TokenRequest".into(),
        subresource: "token".into(),
        namespace: namespace.clone(),
        name: name.clone(),
        operation: Operation::Create,
        object,
        old_object: Value::Null,
        options: Value::Null,
        dry_run: context.param("dryRun") == Some("All"),
        warnings: Default::default(),
        reinvocation: Default::default(),
    };
    admission::run(&state, &mut request).await?;
    let mut object = request.object;
    let reference = get(&object, &["spec", "boundObjectRef"]);
    let to = if reference.is_object() {
        Some(bound_object(&*state.objects, namespace, name, reference)?)
    } else {
        None
    };
    let mut seconds = i64_at(&object, &["spec", "expirationSeconds"]).unwrap_or(3600);
    let max = i64::try_from(this.max.as_secs()).unwrap_or(i64::MAX);
    if max > 0 && seconds > max {
        seconds = max;
        json::set(&mut object, &["spec", "expirationSeconds"], seconds);
    }
    let audiences = texts(&object, &["spec", "audiences"]);
    let mut binding = Binding { to, audiences, seconds, warn_after: None };
    let for_pod = matches!(binding.to, Some(("pod", _)));
    if this.extend && for_pod && seconds == WARN_ONLY && binding.audiences == this.audiences {
        binding.warn_after = Some(seconds);
        binding.seconds = EXTENDED;
    }
    let now = jiff::Timestamp::now().as_second();
    let token = this
        .issuer
        .issue(&account, &binding, now)
        .map_err(|e| Status::internal(format!("failed to generate token: {e}")))?;
    object["status"] = json!({
        "token": token,
        "expirationTimestamp": Timestamp::from_seconds(now + seconds).rfc3339(),
    });
    body::answer(&context, StatusCode::CREATED, state.release, gvk, object)
}

/// Registers the handler, where there is a key to sign with. Errors name the key's file.
pub fn register(special: &mut SpecialRest, config: &crate::config::Config) -> Result<(), String> {
    let Some(issuer) = Issuer::new(config)? else { return Ok(()) };
    let this = Arc::new(TokenRequests {
        issuer,
        audiences: config.api_audiences.clone(),
        max: config.service_account_max_expiration,
        extend: config.service_account_extend_expiration,
    });
    special.add("", "serviceaccounts", "token", "create", move |s, c, b| create(this.clone(), s, c, b));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;

    #[test]
    fn bounds_of_lives() {
        assert!(validate(&json!({"expirationSeconds": 600})).is_empty());
        let e = validate(&json!({"expirationSeconds": 599}));
        assert_eq!(
            e[0].to_string(),
            "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"
        );
    }

    #[test]
    fn binds_to_the_accounts_own_pods() {
        let o = FakeObjects::default();
        o.put("", "pods", json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"serviceAccountName": "bot"}}));
        let reference = |uid: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid});
        assert!(bound_object(&o, "n", "bot", &reference("u")).is_ok());
        assert_eq!(bound_object(&o, "n", "bot", &reference("x")).unwrap_err().code, 409);
        assert_eq!(bound_object(&o, "n", "other", &reference("u")).unwrap_err().code, 400);
        assert_eq!(bound_object(&o, "m", "bot", &reference("u")).unwrap_err().code, 404);
    }
}
