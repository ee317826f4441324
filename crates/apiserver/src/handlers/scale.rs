//! The `scale` subresource of built-in and custom resources.

use http::{StatusCode, header};
use pilothouse_api::decode::request::{self, Expected};
use pilothouse_api::kinds::scale as kinds;
use pilothouse_api::schema::Schema;
use pilothouse_apimachinery::field::{self, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use super::patch::Patch;
use super::update::{Step, change, check_name};
use super::{Call, lifecycle, read};
use crate::fields;
use crate::json::{copy, set, str_at};
use crate::negotiate::{self, Media};
use crate::options::{FieldValidation, WriteOptions};
use crate::request::{RequestBody, Response};
use crate::respond;

fn scale_of(call: &Call, object: &Value) -> Result<Value, Status> {
    match call.endpoint.resource.as_custom() {
        Some(custom) => custom.to_scale(object),
        None => kinds::from_object(&call.endpoint.hub.plural, object),
    }
}

fn answer(call: &Call, scale: &Value) -> Result<Response, Status> {
    let form = negotiate::negotiate(call.context.header(header::ACCEPT), negotiate::ALL, false)?;
    let pretty = form.pretty || respond::pretty(&call.context);
    let body = match form.media {
        Media::Json => respond::json_text(scale, pretty),
        Media::Yaml => serde_yaml_ng::to_string(scale).unwrap_or_default().into_bytes(),
        Media::Protobuf => pilothouse_api::protobuf::encode(schema(call)?, scale),
    };
    Ok(respond::bytes(StatusCode::OK, form.media.name(), body))
}

/// What is missing is the scale, to those built-in kinds that say so.
fn missing(call: &Call, error: Status) -> Status {
    let of = |group, resource| Status::not_found(group, resource, call.name());
    match &*call.endpoint.hub.plural {
        _ if error.code != 404 || call.endpoint.resource.is_custom() => error,
        "deployments" => of("apps", "deployments/scale"),
        "replicasets" => of("apps", "replicasets/scale"),
        "replicationcontrollers" => of("autoscaling", "replicationcontrollers/scale"),
        _ => error,
    }
}

/// Answers a scale.
pub async fn get(call: &Call) -> Result<Response, Status> {
    let entry = read::entry(call).await.map_err(|e| missing(call, e))?;
    answer(call, &scale_of(call, &entry.object())?)
}

/// Answers an update of a scale.
pub async fn update(call: &Call, body: RequestBody) -> Result<Response, Status> {
    let media = negotiate::body_media(call.context.header(header::CONTENT_TYPE), negotiate::ALL)?;
    let body = body.collect().await?;
    let options = WriteOptions::read(&call.context, "UpdateOptions", None, call.state.release)?;
    let scale = decode(call, &body, media, options.field_validation)?;
    check_name(call, &scale)?;
    write(call, &options, "UpdateOptions", |_| Ok(scale.clone())).await
}

/// Answers a patch of a scale.
pub async fn patch(call: &Call, body: RequestBody) -> Result<Response, Status> {
    let (patch, options) = Patch::read(call, body).await?;
    write(call, &options, "PatchOptions", |current| {
        if patch.is_apply() {
            // An apply says what replicas are to be; the rest of a scale is only shown.
            let mut scale = current.clone();
            copy(&mut scale, &patch.patched(call, current)?, &["spec", "replicas"]);
            return Ok(scale);
        }
        decode_patched(call, patch.patched(call, current)?)
    })
    .await
}

fn schema(call: &Call) -> Result<Schema, Status> {
    Schema::of(call.state.release, "autoscaling", "v1", "Scale")
        .ok_or_else(|| Status::internal("no kind Scale"))
}

/// Older versions that v1.20 still knows a Scale in, and takes nowhere.
fn is_older(group: &str, version: &str) -> bool {
    matches!((group, version), ("extensions" | "apps", "v1beta1") | ("apps", "v1beta2"))
}

fn expected(call: &Call) -> Expected<'static> {
    Expected { also_in: &is_older, ..Expected::new(call.state.release, "autoscaling", "v1", "Scale") }
}

fn decode(call: &Call, body: &[u8], media: Media, validation: FieldValidation) -> Result<Value, Status> {
    let decoded = request::decode(&expected(call), schema(call)?, body, media.decoder())?;
    if validation == FieldValidation::Strict && !decoded.faults.is_empty() {
        return Err(request::strict_error("v1", "Scale", &decoded.faults));
    }
    Ok(decoded.object)
}

/// Reads a patched document as a scale; 422 where it is none.
fn decode_patched(call: &Call, document: Value) -> Result<Value, Status> {
    let shown = document.to_string();
    request::decode_value(&expected(call), schema(call)?, document, None)
        .map(|decoded| decoded.object)
        .map_err(|e| {
            Status::invalid("", "", "", &vec![field::invalid(&Path::new("patch"), shown, &e.message)])
        })
}

fn check(call: &Call, scale: &Value) -> Result<(), Status> {
    let custom = call.endpoint.resource.is_custom();
    let mut errors = if custom { kinds::validate_replicas(scale) } else { kinds::validate(scale) };
    if !scale.pointer("/spec/replicas").is_none_or(Value::is_i64) {
        errors.push(field::invalid(
            &Path::new("spec").child("replicas"),
            scale["spec"]["replicas"].clone(),
            "must be an integer",
        ));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid("autoscaling", "Scale", call.name(), &errors))
}

async fn write(
    call: &Call,
    options: &WriteOptions,
    kind: &str,
    next: impl Fn(&Value) -> Result<Value, Status>,
) -> Result<Response, Status> {
    let endpoint = &call.endpoint;
    let manager = options.manager(call.context.header(header::USER_AGENT));
    let mut attempt = endpoint.storage.attempt(&call.key()).await?;
    loop {
        let Some(current) = attempt.current().cloned() else {
            if attempt.refresh().await? {
                continue;
            }
            return Err(call.not_found());
        };
        let old = fields::typed(endpoint, current.object());
        let step = async {
            let before = scale_of(call, &old)?;
            let scale = next(&before)?;
            let (wanted, found) = (str_at(&scale, &["metadata", "uid"]), str_at(&old, &["metadata", "uid"]));
            let key = endpoint.storage.full_key(&call.key());
            lifecycle::check_uid(endpoint, &key, call.name(), wanted, found)?;
            check(call, &scale)?;
            let mut object = old.clone();
            match endpoint.resource.as_custom() {
                Some(custom) => custom.apply_scale(&mut object, &scale)?,
                None => kinds::apply(&mut object, &scale)?,
            }
            let version = str_at(&scale, &["metadata", "resourceVersion"]).to_string();
            set(&mut object, &["metadata", "resourceVersion"], json!(version));
            let object = call.track(Some(&old), object, &manager).await?;
            change(call, &mut attempt, &current, old, object, options, kind).await
        };
        match step.await {
            Ok(Step::Done(done)) => return answer(call, &scale_of(call, &done.value())?),
            Ok(Step::Again) => {}
            Err(failure) => {
                if !attempt.refresh().await? {
                    return Err(failure);
                }
            }
        }
    }
}
