//! `create`.

use std::sync::Arc;

use http::StatusCode;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use serde_json::value::RawValue;

use super::Call;
use super::lifecycle::{self, Target};
use crate::encode::Object;
use crate::fields;
use crate::json::{has, set, str_at};
use crate::options::WriteOptions;
use crate::raw;
use crate::request::{Operation, RequestBody, Response, Write};

/// How often another name is made up when one is taken.
const NAMES: usize = 8;

/// Answers a create.
pub async fn create(call: &Call, body: RequestBody) -> Result<Response, Status> {
    let encoder = call.encoder()?;
    call.check_media()?;
    check_definition(call)?;
    let body = body.collect().await?;
    let options = WriteOptions::read(&call.context, "CreateOptions", None, call.state.release)?;
    let object = call.decode(&body, options.field_validation)?;
    let object = fields::complete(call, object);
    let manager = options.manager(call.context.header(http::header::USER_AGENT));
    let object = call.track(None, object, &manager).await?;
    let made = run(call, object, &options, "CreateOptions").await?;
    encoder.object(StatusCode::CREATED, &made)
}

/// 405 for custom resources whose definition is being deleted.
fn check_definition(call: &Call) -> Result<(), Status> {
    let r = &call.endpoint.resource;
    if !r.is_custom() {
        return Ok(());
    }
    let name = format!("{}.{}", r.plural, r.group);
    let definition = call.state.objects.get("apiextensions.k8s.io", "customresourcedefinitions", "", &name);
    if definition.is_some_and(|d| has(&d, &["metadata", "deletionTimestamp"])) {
        let mut refused = Status::method_not_supported(&r.group, &r.plural, "create");
        refused.message = "create not allowed while custom resource definition is terminating".into();
        return Err(refused);
    }
    Ok(())
}

/// Admission, preparation, validation and storage of a new object (hub version).
pub async fn run(call: &Call, object: Value, options: &WriteOptions, kind: &str) -> Result<Object, Status> {
    let name = match call.name() {
        "" => str_at(&object, &["metadata", "name"]).to_string(),
        name => name.to_string(),
    };
    let mut request = call.admission(Operation::Create, &name, options.to_value(kind), options.dry_run);
    request.object = object;
    call.admit(&mut request).await?;
    let mut object = std::mem::take(&mut request.object);
    for warning in lifecycle::deduplicate_owners(&mut object) {
        call.context.warn(warning);
    }
    let context = call.kind_context();
    let raw = call.raw.lock().clone();
    let target = call.target(&context, raw.as_deref());
    let made_up = str_at(&object, &["metadata", "name"]).is_empty();
    let mut tries = if made_up { NAMES } else { 1 };
    loop {
        // A name that has been made up may have to be made up once more.
        let mut candidate = if made_up { object.clone() } else { std::mem::take(&mut object) };
        lifecycle::before_create(target, Some(&call.context.user), &mut candidate)?;
        request.object = candidate;
        if request.name.is_empty() {
            request.name = str_at(&request.object, &["metadata", "name"]).to_string();
        }
        call.validate(&request).await?;
        let candidate = std::mem::take(&mut request.object);
        if let Some(done) = store(target, candidate, options.dry_run).await? {
            return Ok(done);
        }
        tries -= 1;
        if tries == 0 {
            break;
        }
        request.name.clear();
    }
    let key = call.key_of(&name);
    if made_up {
        return Err(lifecycle::generated_name_taken(&call.endpoint, &object, call.state.release));
    }
    let r = &call.endpoint.resource;
    let mut taken = Status::already_exists(&r.group, &r.plural, &name);
    let there = call.endpoint.storage.get(&key).await?;
    if there.is_some_and(|e| !e.object()["metadata"]["deletionTimestamp"].is_null()) {
        taken.message = format!("object is being deleted: {}", taken.message);
    }
    Err(taken)
}

/// Stores a checked object; none where its name is taken.
pub async fn store(target: Target<'_>, mut object: Value, dry_run: bool) -> Result<Option<Object>, Status> {
    let endpoint = target.endpoint;
    let name = str_at(&object, &["metadata", "name"]).to_string();
    let key = if target.namespace.is_empty() { name } else { format!("{}/{name}", target.namespace) };
    let hook = target.special.hook_of(&endpoint.hub.group, &endpoint.hub.plural);
    let write = Write { old: None, subresource: "", namespace: target.namespace, dry_run };
    let settle = match hook {
        Some(hook) => hook.before_write(write, &mut object).await?,
        None => None,
    };
    let done = put(endpoint, &key, object, target.raw, dry_run).await;
    if let Some(settle) = settle {
        settle(matches!(done, Ok(Some(_))) && !dry_run);
    }
    done
}

async fn put(
    endpoint: &crate::registry::Endpoint,
    key: &str,
    mut object: Value,
    raw: Option<&RawValue>,
    dry_run: bool,
) -> Result<Option<Object>, Status> {
    endpoint.hub.canonicalize(&mut object, None);
    if dry_run {
        if endpoint.storage.get(key).await?.is_some() {
            return Ok(None);
        }
        return Ok(Some(Object::Value(Arc::new(object))));
    }
    if !str_at(&object, &["metadata", "resourceVersion"]).is_empty() {
        return Err(Status::failure(500, "", "resourceVersion should not be set on objects to be created"));
    }
    set(&mut object, &["apiVersion"], &*endpoint.hub.api_version);
    // A plug-in may have changed the value meanwhile.
    let raw = raw.filter(|text| {
        let field = raw::field(endpoint).and_then(|name| object.get(name));
        serde_json::from_str::<Value>(text.get()).ok().as_ref() == field
    });
    Ok(endpoint.storage.create(key, object, raw).await?.map(Object::Entry))
}
