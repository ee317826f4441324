//! `update`, and what patches have in common with it.

use std::sync::Arc;

use http::StatusCode;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use super::lifecycle::{self, Target};
use super::{Call, create};
use crate::cache::entry::Entry;
use crate::encode::Object;
use crate::fields;
use crate::json::{remove, set, str_at};
use crate::options::WriteOptions;
use crate::raw;
use crate::request::{Operation, RequestBody, Response, Write};
use crate::storage::Attempt;

/// Answers an update of an object or a subresource that looks like it.
pub async fn update(call: &Call, body: RequestBody) -> Result<Response, Status> {
    let encoder = call.encoder()?;
    call.check_media()?;
    let body = body.collect().await?;
    let options = WriteOptions::read(&call.context, "UpdateOptions", None, call.state.release)?;
    let object = call.decode(&body, options.field_validation)?;
    check_name(call, &object)?;
    let object = fields::complete(call, object);
    let manager = options.manager(call.context.header(http::header::USER_AGENT));

    let wanted_uid = str_at(&object, &["metadata", "uid"]).to_string();
    let key = call.key();
    let mut attempt = call.endpoint.storage.attempt(&key).await?;
    loop {
        let step = async {
            let current = attempt.current().cloned();
            let old = current.as_ref().map(|e| fields::typed(&call.endpoint, e.object()));
            let found = old.as_ref().map_or("", |old| str_at(old, &["metadata", "uid"]));
            let full = call.endpoint.storage.full_key(&key);
            if old.is_some() || !is_service(call) {
                lifecycle::check_uid(&call.endpoint, &full, call.name(), &wanted_uid, found)?;
            }
            match current.zip(old) {
                None => Ok(None),
                Some((current, old)) => {
                    let tracked = call.track(Some(&old), object.clone(), &manager).await?;
                    change(call, &mut attempt, &current, old, tracked, &options, "UpdateOptions")
                        .await
                        .map(Some)
                }
            }
        };
        match step.await {
            Ok(Some(Step::Done(done))) => return encoder.object(StatusCode::OK, &done),
            Ok(Some(Step::Again)) => {}
            Ok(None) => {
                if attempt.refresh().await? {
                    continue;
                }
                if !call.endpoint.hub.create_on_update() || !call.subresource.is_empty() {
                    return Err(call.not_found());
                }
                let mut tracked = call.track(None, object.clone(), &manager).await?;
                // An update that creates is not asked which version it meant.
                remove(&mut tracked, &["metadata", "resourceVersion"]);
                let made = create::run(call, tracked, &options, "CreateOptions").await?;
                return encoder.object(StatusCode::CREATED, &made);
            }
            Err(failure) => {
                if !attempt.refresh().await? {
                    return Err(failure);
                }
            }
        }
    }
}

/// Whether an object is the one that the request names.
pub fn check_name(call: &Call, object: &Value) -> Result<(), Status> {
    let (name, url) = (str_at(object, &["metadata", "name"]), call.name());
    if name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({url} based on URL) was undeterminable: name must be provided"
        )));
    }
    if name != url {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({url})"
        )));
    }
    let namespace = str_at(object, &["metadata", "namespace"]);
    if !call.namespace.is_empty() && !namespace.is_empty() && namespace != call.namespace {
        return Err(Status::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the request ({})",
            call.namespace
        )));
    }
    Ok(())
}

/// How one try to change an object ended.
pub enum Step {
    /// It is done; this is the object now.
    Done(Object),
    /// Somebody was faster: compute again from the attempt's current state.
    Again,
}

/// Services have a storage of their own in v1.20: it looks whether the object is there first, and validates before it
/// looks at the resource version.
fn is_service(call: &Call) -> bool {
    call.subresource.is_empty()
        && call.endpoint.hub.group.is_empty()
        && &*call.endpoint.hub.plural == "services"
}

/// Admission, preparation, validation and storage of a changed object, computed from `current`, which `old` is. Both
/// are in the hub version.
pub async fn change(
    call: &Call,
    attempt: &mut Attempt,
    current: &Entry,
    old: Value,
    object: Value,
    options: &WriteOptions,
    kind: &str,
) -> Result<Step, Status> {
    let endpoint = &call.endpoint;
    let mut request = call.admission(Operation::Update, call.name(), options.to_value(kind), options.dry_run);
    request.object = object;
    request.old_object = old;
    call.admit(&mut request).await?;
    let mut object = std::mem::take(&mut request.object);
    for warning in lifecycle::deduplicate_owners(&mut object) {
        call.context.warn(warning);
    }
    let context = call.kind_context();
    let raw = call.raw.lock().clone();
    let target = call.target(&context, raw.as_deref());
    let old = &request.old_object;
    if is_service(call) {
        lifecycle::before_update(target, &mut object, old)?;
        lifecycle::check_version(target, &mut object, old)?;
    } else {
        lifecycle::check_version(target, &mut object, old)?;
        lifecycle::before_update(target, &mut object, old)?;
    }
    raw::check(endpoint, current, &object, raw.as_deref())?;
    request.object = object;
    call.validate(&request).await?;
    let object = std::mem::take(&mut request.object);
    commit(target, attempt, &request.old_object, object, options.dry_run).await
}

/// Stores a checked object in place of `old`, or deletes it where the change was its end.
pub async fn commit(
    target: Target<'_>,
    attempt: &mut Attempt,
    old: &Value,
    mut object: Value,
    dry_run: bool,
) -> Result<Step, Status> {
    let endpoint = target.endpoint;
    let hook = target.special.hook_of(&endpoint.hub.group, &endpoint.hub.plural);
    let ends = lifecycle::ends_by_update(endpoint, &object, old);
    let settle = match hook {
        Some(hook) if !ends => {
            let subresource = target.context.subresource;
            let write = Write { old: Some(old), subresource, namespace: target.namespace, dry_run };
            hook.before_write(write, &mut object).await?
        }
        _ => None,
    };
    endpoint.hub.canonicalize(&mut object, Some(old));
    let done = put(attempt, old, object, ends, dry_run).await;
    if let Some(settle) = settle {
        settle(matches!(done, Ok(Step::Done(_))) && !dry_run);
    }
    if ends
        && !dry_run
        && let (Some(hook), Ok(Step::Done(_))) = (hook, &done)
    {
        hook.after_delete(old).await;
    }
    done
}

async fn put(
    attempt: &mut Attempt,
    old: &Value,
    mut object: Value,
    ends: bool,
    dry_run: bool,
) -> Result<Step, Status> {
    let version = json!(str_at(old, &["metadata", "resourceVersion"]));
    set(&mut object, &["metadata", "resourceVersion"], version);
    if ends {
        if dry_run || attempt.delete().await?.is_some() {
            return Ok(Step::Done(Object::Value(Arc::new(object))));
        }
        return Ok(Step::Again);
    }
    if lifecycle::is_same(&object, old) && (dry_run || !attempt.is_stale()) {
        // Nothing changes: no write, no event, the same resource version. If that is so of the newest state.
        if attempt.refresh().await? {
            return Ok(Step::Again);
        }
        return Ok(match attempt.current() {
            Some(entry) => Step::Done(Object::Entry(entry.clone())),
            None => Step::Again,
        });
    }
    if dry_run {
        return Ok(Step::Done(Object::Value(Arc::new(object))));
    }
    Ok(match attempt.write(object).await? {
        Some(entry) => Step::Done(Object::Entry(entry)),
        None => Step::Again,
    })
}
