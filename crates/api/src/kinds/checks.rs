//! Checks that several kinds need.

use pilothouse_apimachinery::field::{self, Error, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, copy, get, list_at, str_at};
use pilothouse_apimachinery::names;

/// Text of the error of a field that must not change.
pub const IMMUTABLE: &str = "field is immutable";

/// One `Invalid` error for each message.
pub fn invalid_each(path: &Path, value: &str, messages: Vec<String>) -> ErrorList {
    messages.iter().map(|m| field::invalid(path, value, m)).collect()
}

/// What of the metadata an update of the status leaves as it was, in kinds that say so.
pub fn metadata_for_status(new: &mut Value, old: &Value) {
    for name in ["labels", "annotations", "finalizers", "ownerReferences"] {
        copy(new, old, &["metadata", name]);
    }
}

/// An error where two strings, numbers or truth values differ.
pub fn immutable(new: &Value, old: &Value, path: &Path) -> Option<Error> {
    (new != old).then(|| match new {
        Value::Null => field::invalid_shown(path, "\"null\"", IMMUTABLE),
        value => field::invalid(path, value.clone(), IMMUTABLE),
    })
}

/// Same as [`immutable`] for the values at one path of both objects.
pub fn immutable_at(new: &Value, old: &Value, path: &[&str]) -> Option<Error> {
    immutable(get(new, path), get(old, path), &Path::new(&path.join(".")))
}

/// The strings of a list of strings; what is no string counts as `""`, as in Go.
pub fn strings<'a>(v: &'a Value, path: &[&str]) -> Vec<&'a str> {
    list_at(v, path).iter().map(|s| s.as_str().unwrap_or("")).collect()
}

/// Faults of a `NodeSelector`.
pub fn node_selector(selector: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = path.child("nodeSelectorTerms");
    let terms = list_at(selector, &["nodeSelectorTerms"]);
    if terms.is_empty() {
        errs.push(field::required(&path, "must have at least one node selector term"));
        return errs;
    }
    for (i, term) in terms.iter().enumerate() {
        let path = path.index(i);
        for (j, requirement) in list_at(term, &["matchExpressions"]).iter().enumerate() {
            errs.extend(node_requirement(requirement, &path.child("matchExpressions").index(j)));
        }
        for (j, requirement) in list_at(term, &["matchFields"]).iter().enumerate() {
            errs.extend(node_field_requirement(requirement, &path.child("matchFields").index(j)));
        }
    }
    errs
}

fn node_requirement(requirement: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let values = list_at(requirement, &["values"]);
    let at = path.child("values");
    match str_at(requirement, &["operator"]) {
        "In" | "NotIn" if values.is_empty() => {
            errs.push(field::required(&at, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errs.push(field::forbidden(
                &at,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ));
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errs.push(field::required(&at, "must be specified single value when `operator` is 'Lt' or 'Gt'"));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errs.push(field::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    errs.extend(names::label_name(str_at(requirement, &["key"]), &path.child("key")));
    errs
}

fn node_field_requirement(requirement: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let values = strings(requirement, &["values"]);
    match str_at(requirement, &["operator"]) {
        "In" | "NotIn" => {
            if values.len() != 1 {
                errs.push(field::required(
                    &path.child("values"),
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
                ));
            }
        }
        other => errs.push(field::invalid(&path.child("operator"), other, "not a valid selector operator")),
    }
    let key = str_at(requirement, &["key"]);
    if key == "metadata.name" {
        for (i, value) in values.iter().enumerate() {
            errs.extend(invalid_each(
                &path.child("values").index(i),
                value,
                names::dns1123_subdomain_name(value, false),
            ));
        }
    } else {
        errs.push(field::invalid(&path.child("key"), key, "not a valid field selector key"));
    }
    errs
}

/// Faults of a node name: a DNS-1123 subdomain.
pub fn node_name(name: &str, path: &Path) -> ErrorList {
    invalid_each(path, name, names::dns1123_subdomain_name(name, false))
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn node_selector_faults() {
        let selector = json!({"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In"}, {"key": "n", "operator": "Gt", "values": ["1", "2"]}]},
            {"matchFields": [{"key": "metadata.uid", "operator": "Exists"}]},
        ]});
        let texts: Vec<String> =
            node_selector(&selector, &Path::new("spec.required")).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.required.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "spec.required.nodeSelectorTerms[0].matchExpressions[1].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'",
                "spec.required.nodeSelectorTerms[1].matchFields[0].operator: Invalid value: \"Exists\": not a valid selector operator",
                "spec.required.nodeSelectorTerms[1].matchFields[0].key: Invalid value: \"metadata.uid\": not a valid field selector key",
            ]
        );
        assert_eq!(node_selector(&json!({}), &Path::new("r"))[0].field, "r.nodeSelectorTerms");
    }

    #[test]
    fn immutable_shows_the_new_value() {
        let e = immutable_at(&json!({"a": "x"}), &json!({"a": "y"}), &["a"]).unwrap();
        assert_eq!(e.to_string(), "a: Invalid value: \"x\": field is immutable");
        assert!(immutable_at(&json!({"a": 1}), &json!({"a": 1}), &["a"]).is_none());
    }
}
