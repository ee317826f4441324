//! Bodies of requests: which kind they claim to be, and the errors of v1.20 where that does not fit.

use std::borrow::Cow;

use pilothouse_apimachinery::go;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::{Result, Status};
use pilothouse_apimachinery::version::Release;
use serde::Deserialize;

use super::{Decoded, syntax};
use crate::catalogue::{Catalogue, package};
use crate::convert::{api_version, parse_api_version, set_api_version};
use crate::protobuf;
use crate::schema::Schema;

/// In which form a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Media {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// What kind a body is expected to be, and in what other versions the same kind is known.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// Release.
    pub release: Release,
    /// Group.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Whether a group and version have the same kind of object, in another form.
    pub also_in: &'a dyn Fn(&str, &str) -> bool,
}

impl<'a> Expected<'a> {
    /// A kind that is in no other version.
    pub fn new(release: Release, group: &'a str, version: &'a str, kind: &'a str) -> Expected<'a> {
        Expected { release, group, version, kind, also_in: &|_, _| false }
    }

    fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }
}

#[derive(Deserialize, Default)]
struct TypeMeta<'a> {
    #[serde(borrow, default, rename = "apiVersion")]
    api_version: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    kind: Option<Cow<'a, str>>,
}

/// `apiVersion` and `kind` of a JSON text; `""` where they are missing.
pub fn type_meta(json: &[u8]) -> std::result::Result<(String, String), String> {
    let meta: TypeMeta<'_> = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    Ok((meta.api_version.unwrap_or_default().into_owned(), meta.kind.unwrap_or_default().into_owned()))
}

/// A body's beginning, for errors.
fn summary(body: &[u8]) -> String {
    const MAX: usize = 30;
    let (head, more) = if body.len() > MAX { (&body[..MAX], " ...") } else { (body, "") };
    match body.first() {
        None => "<empty>".into(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => {
            let hex: String = head.iter().map(|b| format!("{b:02x}")).collect();
            format!("{hex}{more}")
        }
    }
}

fn unrecognized(kind: &str, why: &str, body: &[u8]) -> Status {
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({})",
        summary(body)
    ))
}

/// 400: the body is of a kind that the resource does not take, or does not fit it.
pub fn cannot_be_handled(found: &str, version: &str, kind: &str, why: &str) -> Status {
    Status::bad_request(format!(
        "{found} in version {} cannot be handled as a {kind}: {why}",
        go::quote(version)
    ))
}

/// 400 for strict validation.
pub fn strict_error(version: &str, kind: &str, faults: &[String]) -> Status {
    cannot_be_handled(kind, version, kind, &format!("strict decoding error: {}", faults.join(", ")))
}

/// Go's name of the package of a group's internal types.
fn internal_package(group: &str) -> &str {
    if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) }
}

/// Whether a kind is known in any form, so that a body of it can be read.
fn is_registered(release: Release, group: &str, version: &str, kind: &str) -> bool {
    Catalogue::of(release)
        .find(&format!("{}.{kind}", package(group, version)))
        .is_some_and(|t| t.has_type_meta)
}

/// Checks what a body claims to be; `""` claims nothing.
fn check(expected: &Expected<'_>, api_version_found: &str, kind_found: &str, body: &[u8]) -> Result<()> {
    let wanted = expected.api_version();
    let found = if api_version_found.is_empty() { wanted.as_str() } else { api_version_found };
    let kind = if kind_found.is_empty() { expected.kind } else { kind_found };
    if found == wanted && kind == expected.kind {
        return Ok(());
    }
    let Some((group, version)) = parse_api_version(found) else {
        return Err(unrecognized(expected.kind, &format!("unexpected GroupVersion string: {found}"), body));
    };
    if kind == expected.kind && (expected.also_in)(group, version) {
        return Err(version_mismatch(found, &wanted));
    }
    let why = if is_registered(expected.release, group, version, kind) {
        format!(
            "converting ({version}.{kind}) to ({}.{}): unknown conversion",
            internal_package(expected.group),
            expected.kind
        )
    } else {
        format!(
            "no kind {} is registered for version {} in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\"",
            go::quote(kind),
            go::quote(found)
        )
    };
    Err(cannot_be_handled(kind, version, expected.kind, &why))
}

/// 400: the body is in another version than the request.
pub fn version_mismatch(found: &str, expected: &str) -> Status {
    Status::bad_request(format!(
        "the API version in the data ({found}) does not match the expected API version ({expected})"
    ))
}

/// What is wrong with a body that cannot be read: with the text, with the kind that it claims, or `why`.
pub fn unreadable(expected: &Expected<'_>, body: &[u8], why: &str) -> Status {
    const GO_STRUCT: &str = "struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";
    let parse_error = |e: &str| {
        unrecognized(expected.kind, &format!("couldn't get version/kind; json parse error: {e}"), body)
    };
    if let Some(fault) = syntax::fault(body) {
        return parse_error(&fault);
    }
    let first = body.iter().find(|b| !b.is_ascii_whitespace()).copied().unwrap_or(b' ');
    let found = match first {
        b'[' => "array",
        b'"' => "string",
        b't' | b'f' => "bool",
        b'{' | b'n' => "",
        _ => "number",
    };
    if !found.is_empty() {
        return parse_error(&format!("json: cannot unmarshal {found} into Go value of type {GO_STRUCT}"));
    }
    match type_meta(body) {
        Ok((api_version, kind)) => match check(expected, &api_version, &kind, body) {
            Err(status) => status,
            Ok(()) => cannot_be_handled(expected.kind, expected.version, expected.kind, why),
        },
        Err(_) => {
            parse_error("json: cannot unmarshal object into Go struct field .apiVersion of type string")
        }
    }
}

/// Sets kind and version, which a body may leave out.
fn complete(expected: &Expected<'_>, mut decoded: Decoded) -> Decoded {
    set_api_version(&mut decoded.object, &expected.api_version());
    if let Some(map) = decoded.object.as_object_mut() {
        map.insert("kind", Value::from(expected.kind));
    }
    decoded
}

/// Decodes a body as a kind with a schema.
pub fn decode(expected: &Expected<'_>, schema: Schema, body: &[u8], media: Media) -> Result<Decoded> {
    let text = |v: &Value, name: &str| v.get(name).and_then(Value::as_str).unwrap_or("").to_string();
    match media {
        Media::Json => match super::from_slice(schema, body) {
            Ok(decoded) => {
                check(expected, &text(&decoded.object, "apiVersion"), &text(&decoded.object, "kind"), body)?;
                Ok(complete(expected, decoded))
            }
            Err(why) => Err(unreadable(expected, body, &why)),
        },
        Media::Yaml => {
            let value = super::yaml_of(expected.release, body).map_err(|why| {
                unrecognized(
                    expected.kind,
                    &format!("couldn't get version/kind; json parse error: {why}"),
                    body,
                )
            })?;
            decode_value(expected, schema, value, None)
        }
        Media::Protobuf => {
            let why = |e: protobuf::Error| unrecognized(expected.kind, &e.to_string(), body);
            let envelope = protobuf::open(body).map_err(why)?;
            check(expected, &envelope.api_version, &envelope.kind, body)?;
            let object = protobuf::decode(schema, &envelope).map_err(|e| {
                cannot_be_handled(expected.kind, expected.version, expected.kind, &e.to_string())
            })?;
            Ok(complete(expected, Decoded { object, faults: Vec::new() }))
        }
    }
}

/// The same for a value: of a patch or of YAML. `known` is an object that has been decoded and that the value has been
/// made of: what they share is not looked at again.
pub fn decode_value(
    expected: &Expected<'_>,
    schema: Schema,
    value: Value,
    known: Option<&Value>,
) -> Result<Decoded> {
    let text = |v: &Value, name: &str| v.get(name).and_then(Value::as_str).unwrap_or("").to_string();
    let (api_version, kind) = (text(&value, "apiVersion"), text(&value, "kind"));
    let decoded = match known {
        Some(known) if super::is_decoded(schema, &value, known) => {
            Ok(Decoded { object: value, faults: Vec::new() })
        }
        _ => super::from_value(schema, value),
    };
    match decoded {
        Ok(decoded) => {
            check(expected, &api_version, &kind, b"{}")?;
            Ok(complete(expected, decoded))
        }
        Err(why) => {
            check(expected, &api_version, &kind, b"{}")?;
            Err(cannot_be_handled(expected.kind, expected.version, expected.kind, &why))
        }
    }
}

/// Decodes a body of a kind that is not the resource's own: of an eviction, a scale, a review.
pub fn decode_kind(
    release: Release,
    group: &str,
    version: &str,
    kind: &str,
    body: &[u8],
    media: Media,
) -> Result<Decoded> {
    let schema = Schema::of(release, group, version, kind)
        .ok_or_else(|| Status::internal(format!("no type {kind} in {}", api_version(group, version))))?;
    decode(&Expected::new(release, group, version, kind), schema, body, media)
}

/// Decodes `DeleteOptions` and other types of `meta/v1`, which every group's version has. The answer has no `kind`
/// and `apiVersion`.
pub fn decode_meta(release: Release, kind: &str, body: &[u8], media: Media) -> Result<Value> {
    let schema = Schema::meta(release, kind).ok_or_else(|| Status::internal(format!("no type {kind}")))?;
    let bad = |why: String| cannot_be_handled(kind, "v1", kind, &why);
    let mut object = match media {
        Media::Json => match super::from_slice(schema, body) {
            Ok(decoded) => decoded.object,
            Err(why) => return Err(unreadable(&Expected::new(release, "", "v1", kind), body, &why)),
        },
        Media::Yaml => {
            super::yaml_of(release, body).and_then(|v| super::from_value(schema, v)).map_err(bad)?.object
        }
        Media::Protobuf => {
            let envelope = protobuf::open(body).map_err(|e| unrecognized(kind, &e.to_string(), body))?;
            protobuf::decode(schema, &envelope).map_err(|e| bad(e.to_string()))?
        }
    };
    let found = object.get("kind").and_then(Value::as_str).unwrap_or("").to_string();
    if !found.is_empty() && found != kind {
        let version = object.get("apiVersion").and_then(Value::as_str).unwrap_or("");
        let why = format!(
            "no kind {} is registered for version {} in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\"",
            go::quote(&found),
            go::quote(version)
        );
        return Err(cannot_be_handled(&found, parse_api_version(version).map_or("", |(_, v)| v), kind, &why));
    }
    if let Some(map) = object.as_object_mut() {
        map.remove("kind");
        map.remove("apiVersion");
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn decode_config_map(body: &[u8]) -> Result<Decoded> {
        let expected = Expected::new(Release::V1_20, "", "v1", "ConfigMap");
        decode(&expected, Schema::of(Release::V1_20, "", "v1", "ConfigMap").unwrap(), body, Media::Json)
    }

    #[test]
    fn completes_kind_and_version() {
        let got = decode_config_map(br#"{"metadata":{"name":"x"}}"#).unwrap().object;
        assert_eq!((got["apiVersion"].as_str(), got["kind"].as_str()), (Some("v1"), Some("ConfigMap")));
    }

    #[test]
    fn recorded_errors() {
        for (body, message) in [
            (
                "not json",
                "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: invalid character 'o' in literal null (expecting 'u') (6e6f74206a736f6e)",
            ),
            (
                "",
                "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
            ),
            (
                "[]",
                "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: json: cannot unmarshal array into Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" } (5b5d)",
            ),
            (
                r#"{"apiVersion":"v1","kind":"Secret"}"#,
                "Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): unknown conversion",
            ),
            (
                r#"{"apiVersion":"v2","kind":"ConfigMap"}"#,
                "ConfigMap in version \"v2\" cannot be handled as a ConfigMap: no kind \"ConfigMap\" is registered for version \"v2\" in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\"",
            ),
            (
                r#"{"data":[]}"#,
                "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: json: cannot unmarshal array into Go struct field ConfigMap.data of type map[string]string",
            ),
        ] {
            let status = decode_config_map(body.as_bytes()).unwrap_err();
            assert_eq!((status.code, status.message.as_str()), (400, message));
        }
    }

    #[test]
    fn options() {
        let got = decode_meta(
            Release::V1_20,
            "DeleteOptions",
            br#"{"kind":"DeleteOptions","apiVersion":"policy/v1","gracePeriodSeconds":0}"#,
            Media::Json,
        );
        assert_eq!(got.unwrap(), json!({"gracePeriodSeconds": 0}));
    }
}
