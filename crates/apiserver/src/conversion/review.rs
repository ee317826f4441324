//! `ConversionReview`: what a conversion webhook is asked, and what its answer must be
//! (<https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definition-versioning/>).

use pilothouse_api::apply::show::go_type;
use pilothouse_apimachinery::field::{ErrorList, Path};
use pilothouse_apimachinery::json::{Map, Value, json};
use pilothouse_apimachinery::names;

use crate::json::{get, str_at, texts};

/// The review that asks for `objects` in another version, in the first version of the review that both sides know.
pub fn request(webhook: &Value, objects: &[Value], desired: &str, uid: &str) -> Result<Value, String> {
    let versions = texts(webhook, &["conversionReviewVersions"]);
    let version = versions.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1"));
    let version = version.ok_or("no supported conversion review versions")?;
    Ok(json!({
        "kind": "ConversionReview",
        "apiVersion": format!("apiextensions.k8s.io/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": desired, "objects": objects},
    }))
}

fn group_version_kind(object: &Value) -> String {
    format!("{}, Kind={}", str_at(object, &["apiVersion"]), str_at(object, &["kind"]))
}

/// The objects of an answer to `review`. The error stands behind `conversion webhook for <kind> failed: `.
pub fn answered(answer: &Value, review: &Value) -> Result<Vec<Value>, String> {
    let version = str_at(review, &["apiVersion"]);
    let is_v1 = version.ends_with("/v1");
    if is_v1 && (str_at(answer, &["apiVersion"]), str_at(answer, &["kind"])) != (version, "ConversionReview")
    {
        let wanted = group_version_kind(review);
        return Err(format!("expected webhook response of {wanted}, got {}", group_version_kind(answer)));
    }
    let response = get(answer, &["response"]);
    if !response.is_object() {
        return Err("no response provided".into());
    }
    let (uid, found) = (str_at(review, &["request", "uid"]), str_at(response, &["uid"]));
    if is_v1 && uid != found {
        return Err(format!("expected response.uid={uid:?}, got {found:?}"));
    }
    let status = str_at(response, &["result", "status"]);
    if status != "Success" {
        let message = str_at(response, &["result", "message"]);
        return Err(if message.is_empty() {
            format!("response.result.status was '{status}', not 'Success'")
        } else {
            message.to_string()
        });
    }
    Ok(get(response, &["convertedObjects"]).as_array().cloned().unwrap_or_default())
}

/// A converted object with everything of the original's metadata but labels and annotations. The error says what is
/// wrong with it; `at` is how texts name the object.
pub fn checked(original: &Value, mut converted: Value, desired: &str, at: &str) -> Result<Value, String> {
    let what = |o: &Value, field: &str| str_at(o, &[field]).to_string();
    if str_at(&converted, &["kind"]).is_empty() {
        return Err(format!("returned invalid {at}: Object 'Kind' is missing in '{converted}'"));
    }
    let found = what(&converted, "apiVersion");
    if found != desired {
        return Err(format!(
            "returned invalid {at}: invalid groupVersion (expected {desired}, received {found})"
        ));
    }
    let (expected, found) = (what(original, "kind"), what(&converted, "kind"));
    if expected != found {
        return Err(format!("returned invalid {at}: invalid kind (expected {expected}, received {found})"));
    }
    let short = at.strip_suffix(" at index 0").unwrap_or(at);
    for (field, label) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let of = |o: &Value| str_at(o, &["metadata", field]).to_string();
        let (expected, found) = (of(original), of(&converted));
        if expected != found {
            return Err(format!(
                "returned invalid {short}: must have the same {label}: {expected} != {found}"
            ));
        }
    }
    let metadata = restored(original, &converted).map_err(|why| {
        let place = short.replacen("converted object", "metadata in object", 1);
        let place = if place == "object" { "metadata".to_string() } else { place };
        format!("returned invalid {place}: {why}")
    })?;
    converted["metadata"] = metadata;
    Ok(converted)
}

/// The original's metadata with the labels and annotations of the converted object.
fn restored(original: &Value, converted: &Value) -> Result<Value, String> {
    let given = match converted.get("metadata") {
        None => return Err("missing metadata in converted object".into()),
        Some(Value::Object(map)) => map,
        Some(other) => {
            return Err(format!("invalid metadata of type {} in converted object", go_type(other)));
        }
    };
    let mut metadata = match original.get("metadata") {
        Some(Value::Object(map)) => map.clone(),
        _ => Map::new(),
    };
    for field in ["labels", "annotations"] {
        let map = match given.get(field) {
            None | Some(Value::Null) => {
                metadata.remove(field);
                continue;
            }
            Some(Value::Object(map)) => map,
            Some(other) => {
                let kind = go_type(other);
                return Err(format!("invalid metadata.{field} of type {kind} in converted object"));
            }
        };
        if let Some((key, other)) = map.iter().find(|(_, v)| !v.is_string()) {
            let kind = go_type(other);
            return Err(format!(
                "metadata.{field}[{key}] must be a string, but is {kind} in converted object"
            ));
        }
        let value = Value::Object(map.clone());
        if metadata.get(field) != Some(&value) {
            let at = |name: &str| Path::new("metadata").child(name);
            let faults = match field {
                "labels" => names::labels(&value, &at("labels")),
                _ => names::annotations(&value, &at("annotation")),
            };
            if !faults.is_empty() {
                return Err(aggregate(&faults));
            }
        }
        metadata.insert(field, value);
    }
    Ok(Value::Object(metadata))
}

/// Several faults in one text, as Go's aggregate shows them.
fn aggregate(faults: &ErrorList) -> String {
    match faults.as_slice() {
        [one] => one.to_string(),
        many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Value {
        json!({"apiVersion": "e.com/v1", "kind": "Cron", "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "5", "labels": {"x": "1"}}, "spec": {"a": 1}})
    }

    fn review(versions: Value) -> Value {
        request(&json!({"conversionReviewVersions": versions}), &[object()], "e.com/v2", "id").unwrap()
    }

    #[test]
    fn asks_in_the_first_known_version() {
        assert_eq!(review(json!(["v2", "v1beta1", "v1"]))["apiVersion"], "apiextensions.k8s.io/v1beta1");
        let none = request(&json!({"conversionReviewVersions": ["v9"]}), &[], "e.com/v2", "id");
        assert_eq!(none.unwrap_err(), "no supported conversion review versions");
    }

    #[test]
    fn reads_answers() {
        let v1 = review(json!(["v1"]));
        let answer = |response: Value| json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response});
        let e = |response: Value| answered(&answer(response), &v1).unwrap_err();
        assert_eq!(e(Value::Null), "no response provided");
        assert_eq!(e(json!({"uid": "x"})), "expected response.uid=\"id\", got \"x\"");
        assert_eq!(e(json!({"uid": "id"})), "response.result.status was '', not 'Success'");
        assert_eq!(e(json!({"uid": "id", "result": {"status": "Failed", "message": "no way"}})), "no way");
        assert_eq!(
            answered(&json!({"apiVersion": "v1", "kind": "Pod"}), &v1).unwrap_err(),
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got v1, Kind=Pod"
        );
        let good = json!({"result": {"status": "Success"}, "convertedObjects": [{}]});
        // v1beta1 asks for less.
        let found = answered(&json!({"response": good}), &review(json!(["v1beta1"]))).unwrap();
        assert_eq!(found, [json!({})]);
    }

    #[test]
    fn metadata_is_the_servers() {
        let mut converted = object();
        converted["apiVersion"] = "e.com/v2".into();
        converted["metadata"] = json!({"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "9", "finalizers": ["f"], "annotations": {"k": "v"}});
        let done = checked(&object(), converted.clone(), "e.com/v2", "object at index 0").unwrap();
        assert_eq!(
            done["metadata"],
            json!({"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "5", "annotations": {"k": "v"}})
        );
        let e = |change: &dyn Fn(&mut Value), at: &str| {
            let mut c = converted.clone();
            change(&mut c);
            checked(&object(), c, "e.com/v2", at).unwrap_err()
        };
        let one = "object at index 0";
        assert_eq!(
            e(&|c| c["apiVersion"] = "e.com/v3".into(), one),
            "returned invalid object at index 0: invalid groupVersion (expected e.com/v2, received e.com/v3)"
        );
        assert_eq!(
            e(&|c| c["metadata"]["name"] = "b".into(), one),
            "returned invalid object: must have the same name: a != b"
        );
        assert_eq!(
            e(&|c| c["metadata"]["uid"] = "b".into(), "converted object at index 3"),
            "returned invalid converted object at index 3: must have the same UID: u != b"
        );
        assert_eq!(
            e(&|c| c["metadata"]["labels"] = json!({"x": 1}), one),
            "returned invalid metadata: metadata.labels[x] must be a string, but is int64 in converted object"
        );
        assert!(
            e(&|c| c["metadata"]["labels"] = json!({"-": "1"}), "converted object at index 2").starts_with(
                "returned invalid metadata in object at index 2: metadata.labels: Invalid value: \"-\""
            )
        );
    }
}
