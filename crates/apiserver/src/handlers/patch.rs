//! `patch`: JSON patch, merge patch, strategic merge patch, apply.

use bytes::Bytes;
use http::{StatusCode, header};
use pilothouse_api::decode::Decoded;
use pilothouse_api::{apply, patch};
use pilothouse_apimachinery::field::{self, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use super::update::{Step, change, check_name};
use super::{Call, create};
use crate::cache::entry::Entry;
use crate::fields;
use crate::json::{copy, remove, set, str_at};
use crate::negotiate::unknown_format;
use crate::options::{FieldValidation, WriteOptions};
use crate::raw;
use crate::request::{RequestBody, Response};

/// How often a patch is tried again when the object has been changed meanwhile: each time somebody else has got on. The
/// original tries until the request's time is over.
const TRIES: usize = 1000;

/// Type of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own.
    Strategic,
    /// Server-side apply.
    Apply,
}

const TYPES: &[(&str, PatchType)] = &[
    ("application/json-patch+json", PatchType::Json),
    ("application/merge-patch+json", PatchType::Merge),
    ("application/strategic-merge-patch+json", PatchType::Strategic),
    ("application/apply-patch+yaml", PatchType::Apply),
];

fn media(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or("").trim()
}

/// Whether the route of patches takes a content type.
pub fn route_accepts(content_type: &str) -> bool {
    TYPES.iter().any(|(name, _)| *name == media(content_type))
}

/// The patch type of a content type; custom resources have no strategic merge patch.
pub fn patch_type(content_type: &str, custom: bool) -> Result<PatchType, Status> {
    let offered = || TYPES.iter().filter(|(_, t)| !(custom && *t == PatchType::Strategic));
    offered().find(|(name, _)| *name == media(content_type)).map(|(_, t)| *t).ok_or_else(|| {
        let names: Vec<&str> = offered().map(|(name, _)| *name).collect();
        Status::unsupported_media_type(unknown_format(&names))
    })
}

/// A patch that has been read.
pub struct Patch {
    type_: PatchType,
    body: Bytes,
    /// The configuration of an apply.
    config: Option<Value>,
}

impl Patch {
    /// Reads the patch of a request.
    pub async fn read(call: &Call, body: RequestBody) -> Result<(Patch, WriteOptions), Status> {
        let custom = call.endpoint.resource.is_custom();
        let type_ = patch_type(call.context.header(header::CONTENT_TYPE), custom)?;
        let body = body.collect().await?;
        let is_apply = type_ == PatchType::Apply;
        let options = WriteOptions::read(&call.context, "PatchOptions", Some(is_apply), call.state.release)?;
        let config = if is_apply { Some(apply::manager::parse(call.state.release, &body)?) } else { None };
        call.note_request(|| match &config {
            Some(c) => serde_json::to_vec(c).unwrap_or_default(),
            None => body.to_vec(),
        });
        Ok((Patch { type_, body, config }, options))
    }

    /// Whether it is an apply, which may create the object.
    pub fn is_apply(&self) -> bool {
        self.type_ == PatchType::Apply
    }

    /// The object that the patch makes of another, both in the version of the request. Not decoded yet.
    pub fn patched(&self, call: &Call, object: &Value) -> Result<Value, Status> {
        match self.type_ {
            PatchType::Json => patch::json::apply(object, &self.body),
            PatchType::Merge => patch::merge::apply(object, &self.body, call.state.release),
            PatchType::Strategic => {
                let schema = call.endpoint.resource.schema().ok_or_else(|| Status::internal("no schema"))?;
                let type_ = apply::Type::built_in(schema.catalogue, schema.type_);
                let mut out = patch::strategic::apply(type_, object, &self.body)?;
                // It is a patch of this kind's fields, among which its name is not.
                for field in ["apiVersion", "kind"] {
                    copy(&mut out, object, &[field]);
                }
                Ok(out)
            }
            PatchType::Apply => Ok(self.config.clone().unwrap_or(Value::Null)),
        }
    }
}

/// Answers a patch.
pub async fn patch(call: &Call, body: RequestBody) -> Result<Response, Status> {
    let encoder = call.encoder()?;
    let (patch, options) = Patch::read(call, body).await?;
    let manager = options.manager(call.context.header(header::USER_AGENT));
    let mut attempt = call.endpoint.storage.attempt(&call.key()).await?;
    let mut tries = 0;
    loop {
        let Some(current) = attempt.current().cloned() else {
            if attempt.refresh().await? {
                continue;
            }
            if !patch.is_apply() || !call.subresource.is_empty() {
                return Err(call.not_found());
            }
            let mut object = apply_to(call, None, &patch, &options, &manager).await?;
            let uid = str_at(&object, &["metadata", "uid"]);
            if !uid.is_empty() {
                let r = &call.endpoint.resource;
                let why = format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                );
                return Err(Status::conflict(&r.group, &r.plural, call.name(), &why));
            }
            remove(&mut object, &["metadata", "resourceVersion"]);
            let made = create::run(call, object, &options, "PatchOptions").await?;
            return encoder.object(StatusCode::CREATED, &made);
        };
        let step = async {
            let old = fields::typed(&call.endpoint, current.object());
            let object = if patch.is_apply() {
                let applied = apply_to(call, Some(&old), &patch, &options, &manager).await?;
                keep_raw(call, &current, &old, &applied);
                applied
            } else {
                let object = patched(call, &old, &patch, &options)?;
                call.track(Some(&old), object, &manager).await?
            };
            change(call, &mut attempt, &current, old, object, &options, "PatchOptions").await
        };
        match step.await {
            Ok(Step::Done(done)) => return encoder.object(StatusCode::OK, &done),
            Ok(Step::Again) => {
                tries += 1;
                if tries > TRIES {
                    let r = &call.endpoint.resource;
                    return Err(Status::modified(&r.group, &r.plural, call.name()));
                }
            }
            Err(failure) => {
                if !attempt.refresh().await? {
                    return Err(failure);
                }
            }
        }
    }
}

/// An apply that changes nothing but who owns what leaves the object as it is, to the byte.
fn keep_raw(call: &Call, current: &Entry, old: &Value, applied: &Value) {
    let Some(field) = raw::field(&call.endpoint) else { return };
    let owned = |object: &Value| {
        let mut object = object.clone();
        remove(&mut object, &["apiVersion"]);
        remove(&mut object, &["kind"]);
        remove(&mut object, &["metadata", "managedFields"]);
        object
    };
    let same = owned(old) == owned(applied);
    *call.raw.lock() = if same { raw::member(current.body(), field) } else { None };
}

/// What a patch makes of the current object, in the hub version and with its defaults.
fn patched(call: &Call, old: &Value, patch: &Patch, options: &WriteOptions) -> Result<Value, Status> {
    let before = fields::shown(&call.endpoint, old);
    let document = || patch.patched(call, &before);
    match call.endpoint.resource.decode_value(document()?, Some(&before)) {
        Ok(decoded) => {
            let object = complete(call, decoded, options.field_validation)?;
            check_name(call, &object)?;
            Ok(object)
        }
        Err(e) => Err(unreadable(&document()?, &e)),
    }
}

fn complete(call: &Call, decoded: Decoded, validation: FieldValidation) -> Result<Value, Status> {
    call.field_faults(validation, decoded.faults, &decoded.object)?;
    Ok(fields::complete(call, decoded.object))
}

/// 422 for a patched document that is no object. It is made once more for this: to keep a copy would cost every request.
fn unreadable(document: &Value, e: &Status) -> Status {
    let error = field::invalid(&Path::new("patch"), document.to_string(), &e.message);
    Status::invalid("", "", "", &vec![error])
}

/// What an apply makes of the current object (or of none), in the hub version and with its defaults.
async fn apply_to(
    call: &Call,
    old: Option<&Value>,
    patch: &Patch,
    options: &WriteOptions,
    manager: &str,
) -> Result<Value, Status> {
    let endpoint = &call.endpoint;
    let config = patch.config.as_ref().unwrap_or(&Value::Null);
    let live = old.map(|old| fields::shown(endpoint, old));
    let name = str_at(config, &["metadata", "name"]);
    if !name.is_empty() && name != call.name() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name()
        )));
    }
    let merged = async || {
        let force = options.force == Some(true);
        let mut merged = fields::apply(call, live.as_deref(), config, manager, force).await?;
        if str_at(&merged, &["metadata", "name"]).is_empty() {
            set(&mut merged, &["metadata", "name"], call.name());
        }
        Ok::<_, Status>(merged)
    };
    match endpoint.resource.decode_value(merged().await?, live.as_deref()) {
        Ok(decoded) => complete(call, decoded, options.field_validation),
        Err(e) => Err(unreadable(&merged().await?, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types() {
        assert!(
            route_accepts("application/merge-patch+json; charset=utf-8")
                && !route_accepts("application/json")
        );
        assert_eq!(patch_type("application/json-patch+json", true).unwrap(), PatchType::Json);
        assert_eq!(
            patch_type("application/strategic-merge-patch+json", true).unwrap_err().message,
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
        );
    }
}
