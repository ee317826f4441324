//! `Secret`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Map, Value, ensure_object, get, has, map_at, remove, set, set_default, str_at, strings_at,
};
use pilothouse_apimachinery::names;

use super::config_map::{MAX_SIZE, decoded_len, locked};
use crate::kinds::checks::{immutable_at, invalid_each};
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::{Context, Kind, RowContext, Version};
use crate::table::{age_cell, name_cell};

/// The kind.
pub static SECRET: Kind = Kind {
    default,
    prepare_update: |new, old, _| {
        if str_at(new, &["type"]).is_empty() {
            set(new, &["type"], str_at(old, &["type"]));
        }
    },
    validate,
    validate_update: |new, old, context| {
        let mut errs = ErrorList::new();
        errs.extend(immutable_at(new, old, &["type"]));
        errs.extend(locked(new, old, &["data"]));
        errs.extend(validate(new, context));
        errs
    },
    selectable_field_names: &["type"],
    selectable_fields: |o| vec![("type", str_at(o, &["type"]).to_string())],
    columns: &[
        NAME,
        text("Type", "Used to facilitate programmatic handling of secret data."),
        text(
            "Data",
            "Data contains the secret data. Each key must consist of alphanumeric characters, '-', '_' or '.'. The serialized form of the secret data is a base64 encoded string, representing the arbitrary (possibly non-string) data value here. Described in https://tools.ietf.org/html/rfc4648#section-4",
        ),
        AGE,
    ],
    row,
    update_checks: (1, 1),
    ..Kind::new("Secret", "secrets", "secret", &[Version::always("", "v1")])
};

/// `stringData` is a way to write only: it goes into `data` at once.
fn default(object: &mut Value, _context: &Context) {
    set_default(object, &["type"], "Opaque");
    if let Some(Value::Object(plain)) = remove(object, &["stringData"])
        && !plain.is_empty()
    {
        let data = ensure_object(object, &["data"]);
        for (key, value) in plain {
            data.insert(key, STANDARD.encode(value.as_str().unwrap_or("")));
        }
    }
}

fn validate(object: &Value, _context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let data_path = Path::new("data");
    let mut size = 0;
    for (key, value) in strings_at(object, &["data"]) {
        errs.extend(invalid_each(&data_path.key(key), key, names::config_map_key(key)));
        size += decoded_len(value);
    }
    if size > MAX_SIZE {
        errs.push(field::too_long(&data_path, MAX_SIZE));
    }
    let has_key = |key: &str| has(object, &["data", key]);
    match str_at(object, &["type"]) {
        "kubernetes.io/service-account-token" => {
            const NAME_KEY: &str = "kubernetes.io/service-account.name";
            if str_at(object, &["metadata", "annotations", NAME_KEY]).is_empty() {
                errs.push(field::required(&Path::new("metadata.annotations").key(NAME_KEY), ""));
            }
        }
        "kubernetes.io/dockercfg" => errs.extend(json_key(object, ".dockercfg")),
        "kubernetes.io/dockerconfigjson" => errs.extend(json_key(object, ".dockerconfigjson")),
        // The odd paths below are what Kubernetes answers.
        "kubernetes.io/basic-auth" if !has_key("username") && !has_key("password") => {
            errs.push(field::required(&Path::new("data[%s]").key("username"), ""));
            errs.push(field::required(&Path::new("data[%s]").key("password"), ""));
        }
        "kubernetes.io/ssh-auth" if str_at(object, &["data", "ssh-privatekey"]).is_empty() => {
            errs.push(field::required(&Path::new("data[%s]").key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if !has_key(key) {
                    errs.push(field::required(&data_path.key(key), ""));
                }
            }
        }
        _ => {}
    }
    errs
}

fn json_key(object: &Value, key: &str) -> Option<field::Error> {
    let path = Path::new("data").key(key);
    let Some(text) = get(object, &["data", key]).as_str() else {
        return Some(field::required(&path, ""));
    };
    let bytes = STANDARD.decode(text).unwrap_or_default();
    let fault = json_object_fault(&bytes)?;
    Some(field::invalid(&path, "<secret contents redacted>", &fault))
}

/// What Go's JSON decoder says when it should read bytes into a map.
fn json_object_fault(bytes: &[u8]) -> Option<String> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(_) | Value::Null) => None,
        Ok(other) => {
            let kind = match other {
                Value::String(_) => "string",
                Value::Number(_) => "number",
                Value::Bool(_) => "bool",
                _ => "array",
            };
            Some(format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"))
        }
        Err(e) if e.is_eof() => Some("unexpected end of JSON input".into()),
        Err(e) => {
            let line_start = bytes
                .split_inclusive(|b| *b == b'\n')
                .take(e.line().saturating_sub(1))
                .map(<[u8]>::len)
                .sum::<usize>();
            let at = line_start + e.column().saturating_sub(1);
            let c = bytes.get(at).copied().unwrap_or(b' ') as char;
            Some(format!("invalid character '{c}' looking for beginning of value"))
        }
    }
}

fn row(object: &Value, context: &RowContext) -> Vec<Value> {
    vec![
        name_cell(object),
        str_at(object, &["type"]).into(),
        map_at(object, &["data"]).map_or(0, Map::len).into(),
        age_cell(object, context),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::Release;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "v1",
        allow_privileged: true,
        gates: &[],
    };

    fn faults(o: &Value) -> Vec<String> {
        validate(o, &CONTEXT).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn string_data() {
        let mut s = json!({"data": {"a": "eA=="}, "stringData": {"a": "y", "b": "z"}});
        default(&mut s, &CONTEXT);
        assert_eq!(s, json!({"type": "Opaque", "data": {"a": "eQ==", "b": "eg=="}}));
    }

    #[test]
    fn types() {
        assert_eq!(
            faults(&json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})),
            ["data[tls.key]: Required value"]
        );
        assert_eq!(faults(&json!({"type": "kubernetes.io/basic-auth"})).len(), 2);
        assert_eq!(
            faults(&json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "eA=="}})),
            [
                "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": invalid character 'x' looking for beginning of value"
            ]
        );
        assert_eq!(
            faults(&json!({"type": "kubernetes.io/service-account-token"})),
            ["metadata.annotations[kubernetes.io/service-account.name]: Required value"]
        );
    }

    #[test]
    fn type_is_immutable() {
        let errs = (SECRET.validate_update)(&json!({"type": "a"}), &json!({"type": "b"}), &CONTEXT);
        assert_eq!(errs[0].to_string(), "type: Invalid value: \"a\": field is immutable");
    }
}
