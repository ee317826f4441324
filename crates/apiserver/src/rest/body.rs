//! Bodies of requests and answers of resources that have handlers of their own.

use http::{StatusCode, header};
use pilothouse_api::decode;
use pilothouse_api::protobuf;
use pilothouse_api::schema::Schema;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use crate::json::str_at;
use crate::negotiate::{self, Media};
use crate::request::{RequestBody, RequestContext, Response};
use crate::respond;

/// A kind in a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gvk {
    /// Group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
}

impl Gvk {
    /// `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    fn schema(&self, release: Release) -> Result<Schema, Status> {
        Schema::of(release, self.group, self.version, self.kind)
            .ok_or_else(|| Status::internal(format!("no kind {:?} in {:?}", self.kind, self.api_version())))
    }

    /// The object in Go's canonical form: fields that are always written are there, others that are empty are not.
    pub fn canonical(&self, release: Release, object: Value) -> Result<Value, Status> {
        let schema = self.schema(release)?;
        let mut object = decode::from_value(schema, object).map_err(Status::internal)?.object;
        pilothouse_api::normalize::canonicalize(schema, &mut object, None);
        object["apiVersion"] = self.api_version().into();
        object["kind"] = self.kind.into();
        Ok(object)
    }
}

/// Reads a body that may be any of `kinds` (the first where it does not say which), and says which it is. Defaults
/// are applied.
pub async fn read(
    context: &RequestContext,
    body: RequestBody,
    release: Release,
    kinds: &[Gvk],
) -> Result<(Gvk, Value), Status> {
    let media = negotiate::body_media(context.header(header::CONTENT_TYPE), negotiate::ALL)?;
    let bytes = body.collect().await?;
    let parsed = match media {
        Media::Protobuf => {
            let envelope = protobuf::open(&bytes).map_err(|e| Status::bad_request(e.to_string()))?;
            let gvk = choose(kinds, &envelope.api_version, &envelope.kind)?;
            let object = protobuf::decode(gvk.schema(release)?, &envelope);
            return finish(gvk, release, object.map_err(|e| Status::bad_request(e.to_string()))?);
        }
        Media::Yaml => decode::yaml(&bytes),
        Media::Json => serde_json::from_slice(&bytes).map_err(|e| e.to_string()),
    };
    let value: Value = parsed.map_err(|e| {
        let kind = kinds.first().map_or("", |k| k.kind);
        Status::bad_request(format!("the object provided is unrecognized (must be of type {kind}): {e}"))
    })?;
    let gvk = choose(kinds, str_at(&value, &["apiVersion"]), str_at(&value, &["kind"]))?;
    let decoded = decode::from_value(gvk.schema(release)?, value).map_err(|e| {
        Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {e}",
            gvk.kind, gvk.version, gvk.kind
        ))
    })?;
    finish(gvk, release, decoded.object)
}

fn finish(gvk: Gvk, release: Release, mut object: Value) -> Result<(Gvk, Value), Status> {
    pilothouse_api::defaults::apply(gvk.schema(release)?, &mut object);
    Ok((gvk, object))
}

fn choose(kinds: &[Gvk], api_version: &str, kind: &str) -> Result<Gvk, Status> {
    let first = *kinds.first().ok_or_else(|| Status::internal("no kind is accepted"))?;
    if api_version.is_empty() && kind.is_empty() {
        return Ok(first);
    }
    let fits = |k: &&Gvk| {
        (kind.is_empty() || k.kind == kind) && (api_version.is_empty() || k.api_version() == api_version)
    };
    kinds.iter().find(fits).copied().ok_or_else(|| {
        let (expected, given) = (first.api_version(), api_version);
        Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: converting ({given}, Kind={kind}) to ({expected}, Kind={}): unknown conversion",
            given.rsplit('/').next().unwrap_or(given),
            first.kind,
            first.kind
        ))
    })
}

/// An answer of one object, in the form that the client asked for.
pub fn answer(
    context: &RequestContext,
    code: StatusCode,
    release: Release,
    gvk: Gvk,
    object: Value,
) -> Result<Response, Status> {
    let form = negotiate::negotiate(context.header(header::ACCEPT), negotiate::ALL, false)?;
    let object = gvk.canonical(release, object)?;
    let body = match form.media {
        Media::Protobuf => protobuf::encode(gvk.schema(release)?, &object),
        Media::Yaml => serde_yaml_ng::to_string(&object).unwrap_or_default().into_bytes(),
        Media::Json => respond::json_text(&object, form.pretty || respond::pretty(context)),
    };
    Ok(respond::bytes(code, form.media.name(), body))
}

/// The answer of a special create that has nothing to show: 201, `Success`.
pub fn created(context: &RequestContext) -> Response {
    let mut status = Status::success(None);
    status.code = 201;
    respond::status(context, &status)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVICTION: [Gvk; 2] = [
        Gvk { group: "policy", version: "v1beta1", kind: "Eviction" },
        Gvk { group: "policy", version: "v1", kind: "Eviction" },
    ];

    #[test]
    fn chooses_by_what_the_body_says() {
        assert_eq!(choose(&EVICTION, "policy/v1", "Eviction").unwrap().version, "v1");
        assert_eq!(choose(&EVICTION, "", "").unwrap().version, "v1beta1");
        let e = choose(&EVICTION, "v1", "Pod").unwrap_err();
        assert_eq!(e.code, 400);
        assert!(e.message.starts_with("Pod in version \"v1\" cannot be handled as a Eviction"));
    }
}
