//! What happens to every object before it is written: system fields, the kind's preparation, validation; and when an
//! update is the end of it.

use pilothouse_api::kinds::Context;
use pilothouse_api::meta;
use pilothouse_apimachinery::field::{self, Path};
use pilothouse_apimachinery::json::{Map, Text, Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::time::Timestamp;
use pilothouse_apimachinery::version::Release;
use serde_json::value::RawValue;

use crate::json::{ensure_object, get, has, i64_at, list_at, set, str_at};
use crate::registry::Endpoint;
use crate::request::UserInfo;
use crate::special::SpecialRest;

/// What is written and how the request named it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The resource.
    pub endpoint: &'a Endpoint,
    /// Namespace of the request, empty for cluster-wide resources.
    pub namespace: &'a str,
    /// For the kind's functions.
    pub context: &'a Context,
    /// Storage hooks.
    pub special: &'a SpecialRest,
    /// The text of the resource's raw field in the request.
    pub raw: Option<&'a RawValue>,
}

/// Now, as objects carry it.
pub fn now() -> String {
    Timestamp::now().rfc3339()
}

/// Prepares and checks a new object (hub version) of a user.
pub fn before_create(target: Target<'_>, user: Option<&UserInfo>, object: &mut Value) -> Result<(), Status> {
    let hub = &target.endpoint.hub;
    ensure_object(object, &["metadata"]);
    let uid = uuid::Uuid::new_v4().to_string();
    meta::prepare_create(hub, object, target.namespace, Timestamp::now(), &uid, rand::random::<u32>)?;
    hub.prepare_create(object, target.context);
    if let Some(user) = user.filter(|_| &*hub.group == "certificates.k8s.io") {
        sign_request(object, user);
    }
    let errors = hub.validate(object, target.context);
    if errors.is_empty() { Ok(()) } else { Err(hub.invalid(str_at(object, &["metadata", "name"]), &errors)) }
}

/// Writes into a CertificateSigningRequest who makes it.
fn sign_request(object: &mut Value, user: &UserInfo) {
    let spec = ensure_object(object, &["spec"]);
    spec.insert("username", json!(user.name));
    for (field, value) in
        [("uid", json!(user.uid)), ("groups", json!(user.groups)), ("extra", json!(user.extra))]
    {
        spec.insert(field, value);
    }
}

/// Prepares and checks a changed object (hub version).
pub fn before_update(target: Target<'_>, object: &mut Value, old: &Value) -> Result<(), Status> {
    let hub = &target.endpoint.hub;
    ensure_object(object, &["metadata"]);
    meta::prepare_update(hub, object, old, target.namespace)?;
    hub.prepare_update(object, old, target.context);
    let errors = hub.validate_update(object, old, target.context);
    if errors.is_empty() { Ok(()) } else { Err(hub.invalid(str_at(object, &["metadata", "name"]), &errors)) }
}

/// Checks the resource version that an update carries against the object's own. An update without one is for
/// whatever is there, where the kind allows that.
pub fn check_version(target: Target<'_>, object: &mut Value, old: &Value) -> Result<(), Status> {
    let r = &target.endpoint.resource;
    let current = str_at(old, &["metadata", "resourceVersion"]);
    let name = str_at(old, &["metadata", "name"]);
    match str_at(object, &["metadata", "resourceVersion"]) {
        "" | "0" if r.allow_unconditional_update() => {
            set(object, &["metadata", "resourceVersion"], current);
            Ok(())
        }
        "" | "0" => {
            let path = Path::new("metadata").child("resourceVersion");
            let error = field::invalid_shown(&path, "0x0", "must be specified for an update");
            Err(Status::invalid(&r.group, &r.plural, name, &vec![error]))
        }
        given if given == current => Ok(()),
        given if given.parse::<u64>().is_err() => Err(super::version::unreadable_version(given)),
        _ => Err(Status::modified(&r.group, &r.plural, name)),
    }
}

/// The refusal of an object that has another uid than the request says.
pub fn check_uid(
    endpoint: &Endpoint,
    full_key: &str,
    name: &str,
    wanted: &str,
    found: &str,
) -> Result<(), Status> {
    if wanted.is_empty() || wanted == found {
        return Ok(());
    }
    let r = &endpoint.resource;
    Err(Status::conflict(
        &r.group,
        &r.plural,
        name,
        &format!(
            "StorageError: invalid object, Code: 4, Key: {full_key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
        ),
    ))
}

/// Whether an update takes away the last thing that an object under deletion waited for.
pub fn ends_by_update(endpoint: &Endpoint, new: &Value, old: &Value) -> bool {
    let no_finalizers = list_at(new, &["metadata", "finalizers"]).is_empty();
    let deleted = has(old, &["metadata", "deletionTimestamp"]);
    let no_grace = i64_at(old, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0;
    let is_namespace = endpoint.hub.group.is_empty() && &*endpoint.hub.plural == "namespaces";
    let emptied = !is_namespace || list_at(new, &["spec", "finalizers"]).is_empty();
    no_finalizers && deleted && no_grace && emptied
}

/// Drops owner references that stand twice. Gives warnings for them.
pub fn deduplicate_owners(object: &mut Value) -> Vec<String> {
    let Some(Value::Array(owners)) = object.pointer_mut("/metadata/ownerReferences") else {
        return Vec::new();
    };
    let mut seen: Vec<Value> = Vec::new();
    let mut twice = Vec::new();
    owners.retain(|o| {
        if seen.contains(o) {
            twice.push(str_at(o, &["uid"]).to_string());
            return false;
        }
        seen.push(o.clone());
        true
    });
    if twice.is_empty() {
        return Vec::new();
    }
    vec![format!(
        ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
        twice.join(", ")
    )]
}

/// Whether two states are the same but for who wrote them when: such an update is none.
pub fn is_same(new: &Value, old: &Value) -> bool {
    let (Some(a), Some(b)) = (new.as_object(), old.as_object()) else { return new == old };
    rest(a).eq(rest(b))
}

/// The fields but those that say what it is.
fn rest(object: &Map) -> impl Iterator<Item = (&Text, &Value)> {
    object.iter().filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind"))
}

/// The reason with which a name that was made up and is taken is answered.
pub fn generated_name_taken(endpoint: &Endpoint, object: &Value, release: Release) -> Status {
    let r = &endpoint.resource;
    let name = str_at(object, &["metadata", "name"]);
    if release > Release::V1_20 {
        return Status::already_exists(&r.group, &r.plural, name);
    }
    let kind = if r.group.is_empty() { r.kind.to_string() } else { format!("{}.{}", r.kind, r.group) };
    Status::failure(
        500,
        "ServerTimeout",
        format!("The POST operation against {kind} could not be completed at this time, please try again."),
    )
    .about(&r.group, &r.kind, "")
}

/// Marks an object as being deleted, at once.
pub fn mark_deleting(object: &mut Value) {
    if !has(object, &["metadata", "deletionGracePeriodSeconds"]) {
        raise_generation(object);
    }
    if !has(object, &["metadata", "deletionTimestamp"])
        || is_future(get(object, &["metadata", "deletionTimestamp"]))
    {
        set(object, &["metadata", "deletionTimestamp"], now());
    }
    set(object, &["metadata", "deletionGracePeriodSeconds"], json!(0));
}

fn is_future(time: &Value) -> bool {
    time.as_str().and_then(|t| Timestamp::parse(t).ok()).is_some_and(|t| t > Timestamp::now())
}

/// Deletion is a change that controllers are to see.
pub fn raise_generation(object: &mut Value) {
    if let Some(n) = i64_at(object, &["metadata", "generation"]).filter(|n| *n > 0) {
        set(object, &["metadata", "generation"], json!(n + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_generations() {
        let mut o = json!({"metadata": {"generation": 3}});
        mark_deleting(&mut o);
        assert_eq!(o["metadata"]["generation"], 4);
        assert_eq!(o["metadata"]["deletionGracePeriodSeconds"], 0);
        let time = o["metadata"]["deletionTimestamp"].clone();
        mark_deleting(&mut o);
        assert_eq!(
            (o["metadata"]["generation"].clone(), o["metadata"]["deletionTimestamp"].clone()),
            (json!(4), time)
        );
    }

    #[test]
    fn owners_stand_once() {
        let owner = json!({"uid": "u", "name": "x"});
        let mut o = json!({"metadata": {"ownerReferences": [owner, owner, {"uid": "v"}]}});
        assert!(deduplicate_owners(&mut o)[0].ends_with("observed: u"));
        assert_eq!(o["metadata"]["ownerReferences"].as_array().unwrap().len(), 2);
        assert!(deduplicate_owners(&mut o).is_empty());
    }

    #[test]
    fn sameness_ignores_the_type() {
        assert!(is_same(&json!({"kind": "A", "x": 1}), &json!({"x": 1})));
        assert!(!is_same(&json!({"x": 2}), &json!({"x": 1})));
    }
}
