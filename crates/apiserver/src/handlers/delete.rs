//! `delete`: preconditions, grace, finalizers, and the end.

use std::sync::Arc;

use bytes::Bytes;
use http::{StatusCode, header};
use pilothouse_api::decode::request;
use pilothouse_api::kinds::scheduling::SYSTEM_CLASSES;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::{Details, Status};
use pilothouse_apimachinery::time::Timestamp;
use pilothouse_apimachinery::version::Release;

use super::Call;
use super::lifecycle;
use crate::cache::entry::Entry;
use crate::encode::Object;
use crate::fields;
use crate::json::{get, has, i64_at, list_at, remove, set, str_at};
use crate::negotiate;
use crate::options::DeleteOptions;
use crate::registry::Endpoint;
use crate::request::{Operation, RequestBody, Response};
use crate::respond;
use crate::storage::Attempt;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Keeps a definition until its objects are gone.
pub const CUSTOM_CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Kinds of which a deletion answers the object, not a `Status`.
const ANSWER_OBJECT: &[(&str, &str)] = &[
    ("", "pods"),
    ("", "podtemplates"),
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("policy", "podsecuritypolicies"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "csistoragecapacities"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
];

/// How a deletion ended.
#[derive(Debug, Clone)]
pub enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Object),
    /// The object stays for a while: grace, finalizers.
    Marked(Object),
}

impl Deleted {
    /// The object.
    pub fn object(&self) -> &Object {
        match self {
            Deleted::Gone(o) | Deleted::Marked(o) => o,
        }
    }
}

/// Answers a deletion.
pub async fn delete(call: &Call, body: RequestBody) -> Result<Response, Status> {
    let encoder = call.encoder()?;
    let body = body.collect().await?;
    let options = read_options(call, &body)?;
    refuse(&call.endpoint.hub.group, &call.endpoint.hub.plural, call.name())?;
    let deleted = run(call, call.name(), &options).await?;
    let code = match &deleted {
        Deleted::Marked(_) if options.orphan_dependents == Some(false) => StatusCode::ACCEPTED,
        _ => StatusCode::OK,
    };
    let group_and_plural = (&*call.endpoint.hub.group, &*call.endpoint.hub.plural);
    match &deleted {
        Deleted::Gone(object) if !ANSWER_OBJECT.contains(&group_and_plural) => {
            let value = object.value();
            let details = Details {
                name: call.name().to_string(),
                group: call.endpoint.resource.group.to_string(),
                kind: call.endpoint.resource.plural.to_string(),
                uid: str_at(&value, &["metadata", "uid"]).to_string(),
                ..Details::default()
            };
            Ok(respond::status(&call.context, &Status::success(Some(details))))
        }
        deleted => encoder.object(code, deleted.object()),
    }
}

/// Refuses to delete what the system itself needs. Whole collections are not asked.
fn refuse(group: &str, plural: &str, name: &str) -> Result<(), Status> {
    let of_system = (group, plural) == ("scheduling.k8s.io", "priorityclasses")
        && SYSTEM_CLASSES.iter().any(|(class, _)| *class == name);
    match of_system {
        true => Err(Status::forbidden(
            group,
            plural,
            name,
            "this is a system priority class and cannot be deleted",
        )),
        false => Ok(()),
    }
}

/// The options of a deletion: from the body where there is one, else from the query.
pub fn read_options(call: &Call, body: &Bytes) -> Result<DeleteOptions, Status> {
    if body.is_empty() {
        return DeleteOptions::from_query(&call.context);
    }
    let media = negotiate::body_media(call.context.header(header::CONTENT_TYPE), negotiate::ALL)?;
    let decoded = request::decode_meta(call.state.release, "DeleteOptions", body, media.decoder());
    let options = decoded.map_err(|e| unreadable_options(call, body, e))?;
    call.note_request(|| serde_json::to_vec(&options).unwrap_or_default());
    DeleteOptions::from_value(&options)
}

/// What v1.20 makes of a body that is no `DeleteOptions`: it does not say that it is the client's fault.
fn unreadable_options(call: &Call, body: &Bytes, e: Status) -> Status {
    if call.state.release > Release::V1_20 || e.code != 400 {
        return e;
    }
    let given: Value = serde_json::from_slice(body).unwrap_or_default();
    let (group, version) =
        str_at(&given, &["apiVersion"]).split_once('/').unwrap_or(("", str_at(&given, &["apiVersion"])));
    let kind = str_at(&given, &["kind"]);
    let text = if call.state.registry.scheme().by_kind(group, version, kind).is_some() {
        format!("converting ({version}.{kind}) to (v1.DeleteOptions): unknown conversion")
    } else {
        let head = "the object provided is unrecognized (must be of type DeleteOptions): ";
        match e.message.strip_prefix(head).and_then(|text| text.rsplit_once(" (")) {
            Some((text, _)) => text.to_string(),
            None => return e,
        }
    };
    Status::failure(500, "", text)
}

/// Deletes an object of the request's namespace, admission included.
pub async fn run(call: &Call, name: &str, options: &DeleteOptions) -> Result<Deleted, Status> {
    let endpoint = &call.endpoint;
    let key = call.key_of(name);
    let mut attempt = endpoint.storage.attempt(&key).await?;
    let mut admitted = false;
    loop {
        let Some(current) = attempt.current().cloned() else {
            if attempt.refresh().await? {
                continue;
            }
            return Err(call.not_found_named(name));
        };
        let mut old = fields::typed(endpoint, current.object());
        let step = async {
            preconditions(endpoint, name, &old, options)?;
            if !admitted {
                let mut request =
                    call.admission(Operation::Delete, name, options.to_value(), options.dry_run);
                request.old_object = old;
                call.admit(&mut request).await?;
                call.validate(&request).await?;
                admitted = true;
                old = request.old_object;
            }
            let plan = plan(endpoint, &old, options);
            carry_out(&mut attempt, &current, plan, options.dry_run).await
        };
        match step.await {
            Ok(Some(done)) => {
                if let (Deleted::Gone(object), false, Some(hook)) = (
                    &done,
                    options.dry_run,
                    call.state.special.hook_of(&endpoint.hub.group, &endpoint.hub.plural),
                ) {
                    hook.after_delete(&object.value()).await;
                    // A service takes the endpoints of its name along; there need not be any.
                    if endpoint.hub.group.is_empty() && &*endpoint.hub.plural == "services" {
                        let deleted = call
                            .state
                            .objects
                            .delete("", "endpoints", &call.namespace, name, Value::Null)
                            .await;
                        deleted.or_else(|e| if e.code == 404 { Ok(()) } else { Err(e) })?
                    }
                }
                return Ok(done);
            }
            Ok(None) => {}
            Err(failure) => {
                if !attempt.refresh().await? {
                    return Err(failure);
                }
            }
        }
    }
}

/// Whether the object is the one that the request means.
pub fn preconditions(
    endpoint: &Endpoint,
    name: &str,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let r = &endpoint.resource;
    let uid = str_at(object, &["metadata", "uid"]);
    // Namespaces have a storage of their own.
    let is_namespace = endpoint.hub.group.is_empty() && &*endpoint.hub.plural == "namespaces";
    if is_namespace && let Some(wanted) = options.uid.as_deref().filter(|w| *w != uid) {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(Status::conflict(&r.group, &r.plural, name, &why));
    }
    if let Some(wanted) = options.uid.as_deref().filter(|w| *w != uid) {
        let why = format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(&r.group, &r.kind, name, &why));
    }
    let version = str_at(object, &["metadata", "resourceVersion"]);
    if is_namespace && let Some(wanted) = options.resource_version.as_deref().filter(|w| *w != version) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {version}"
        );
        return Err(Status::conflict(&r.group, &r.plural, name, &why));
    }
    if let Some(wanted) = options.resource_version.as_deref().filter(|w| *w != version) {
        let why = format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        );
        return Err(Status::conflict(&r.group, &r.kind, name, &why));
    }
    Ok(())
}

/// What a deletion does to an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// Deletes it.
    Delete,
    /// Writes this state, and deletes it then where `then_delete` says so.
    Write {
        /// The object.
        object: Value,
        /// Whether it goes at once.
        then_delete: bool,
    },
    /// Nothing: it is being deleted already.
    Wait,
}

/// Decides what a deletion does. Pure.
pub fn plan(endpoint: &Endpoint, old: &Value, options: &DeleteOptions) -> Plan {
    let hub = &endpoint.hub;
    let deleting = has(old, &["metadata", "deletionTimestamp"]);
    match (&*hub.group, &*hub.plural) {
        ("", "namespaces") if !deleting => return begin_namespace(old, options),
        ("", "namespaces") if !list_at(old, &["spec", "finalizers"]).is_empty() => return Plan::Wait,
        ("apiextensions.k8s.io", "customresourcedefinitions") if !deleting => return begin_definition(old),
        _ => {}
    }
    let collectable = hub.is_custom() || &*hub.plural != "events";
    let finalizers = if collectable {
        let orphans = hub.as_kind().is_some_and(|k| (k.orphans_by_default)(&endpoint.resource.api_version));
        garbage_finalizers(old, options, orphans)
    } else {
        None
    };
    match grace(endpoint, old, options) {
        Grace::Pending => Plan::Wait,
        Grace::Period(mut object, seconds) => {
            if let Some(f) = finalizers {
                set(&mut object, &["metadata", "finalizers"], f);
            }
            let kept = !list_at(&object, &["metadata", "finalizers"]).is_empty();
            Plan::Write { object, then_delete: seconds == 0 && !kept }
        }
        Grace::None => {
            let kept = finalizers
                .as_ref()
                .and_then(Value::as_array)
                .map_or_else(|| list_at(old, &["metadata", "finalizers"]).len(), Vec::len);
            if kept == 0 {
                return Plan::Delete;
            }
            let mut object = old.clone();
            if let Some(f) = finalizers {
                set(&mut object, &["metadata", "finalizers"], f);
            }
            lifecycle::mark_deleting(&mut object);
            Plan::Write { object, then_delete: false }
        }
    }
}

enum Grace {
    /// Goes at once.
    None,
    /// Goes in so many seconds.
    Period(Value, i64),
    /// Is on its way already.
    Pending,
}

fn grace(endpoint: &Endpoint, old: &Value, options: &DeleteOptions) -> Grace {
    let Some(default) = endpoint.hub.as_kind().and_then(|k| k.grace_period).map(|f| f(old)) else {
        return Grace::None;
    };
    if has(old, &["metadata", "deletionTimestamp"]) {
        // A second deletion can only hurry the first one up.
        let Some(before) = i64_at(old, &["metadata", "deletionGracePeriodSeconds"]) else {
            return Grace::None;
        };
        let Some(period) = options.grace_period.filter(|p| *p < before) else { return Grace::Pending };
        let mut object = old.clone();
        let was =
            get(old, &["metadata", "deletionTimestamp"]).as_str().and_then(|t| Timestamp::parse(t).ok());
        let at = was.map_or_else(|| Timestamp::now().seconds, |t| t.seconds - before) + period;
        set(&mut object, &["metadata", "deletionTimestamp"], Timestamp::from_seconds(at).rfc3339());
        set(&mut object, &["metadata", "deletionGracePeriodSeconds"], json!(period));
        return Grace::Period(object, period);
    }
    // The kind says 0 for what nobody runs; no client can make that longer.
    let period = if default == 0 { 0 } else { options.grace_period.unwrap_or(default).max(0) };
    let mut object = old.clone();
    let at = Timestamp::from_seconds(Timestamp::now().seconds + period);
    set(&mut object, &["metadata", "deletionTimestamp"], at.rfc3339());
    set(&mut object, &["metadata", "deletionGracePeriodSeconds"], json!(period));
    lifecycle::raise_generation(&mut object);
    Grace::Period(object, period)
}

/// The finalizers that the garbage collector needs, where they are others than the object has.
fn garbage_finalizers(old: &Value, options: &DeleteOptions, orphans_by_default: bool) -> Option<Value> {
    let had: Vec<&str> = list_at(old, &["metadata", "finalizers"]).iter().filter_map(Value::as_str).collect();
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation.as_deref()) {
        (Some(orphan), _) => (orphan, false),
        (None, Some("Orphan")) => (true, false),
        (None, Some("Foreground")) => (false, true),
        (None, Some(_)) => (false, false),
        (None, None) if had.contains(&ORPHAN) => (true, false),
        (None, None) if had.contains(&FOREGROUND) => (false, true),
        (None, None) => (orphans_by_default, false),
    };
    let mut wanted: Vec<&str> = had.iter().copied().filter(|f| *f != ORPHAN && *f != FOREGROUND).collect();
    if orphan {
        wanted.push(ORPHAN);
    }
    if foreground {
        wanted.push(FOREGROUND);
    }
    let same = had.len() == wanted.len() && wanted.iter().all(|f| had.contains(f));
    (!same).then(|| json!(wanted))
}

/// A namespace is emptied first: its phase tells the namespace controller to begin.
fn begin_namespace(old: &Value, options: &DeleteOptions) -> Plan {
    if list_at(old, &["spec", "finalizers"]).is_empty()
        && list_at(old, &["metadata", "finalizers"]).is_empty()
    {
        return Plan::Delete;
    }
    let mut object = old.clone();
    set(&mut object, &["metadata", "deletionTimestamp"], lifecycle::now());
    set(&mut object, &["status", "phase"], "Terminating");
    if let Some(f) = garbage_finalizers(old, options, false) {
        set(&mut object, &["metadata", "finalizers"], f);
    }
    Plan::Write { object, then_delete: false }
}

/// A definition waits until its objects are gone.
fn begin_definition(old: &Value) -> Plan {
    let mut object = pilothouse_api::crd::naming::terminating(
        old,
        "True",
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        &lifecycle::now(),
    );
    set(&mut object, &["metadata", "deletionTimestamp"], lifecycle::now());
    let mut finalizers = list_at(&object, &["metadata", "finalizers"]).to_vec();
    if !finalizers.iter().any(|f| f == CUSTOM_CLEANUP) {
        finalizers.push(json!(CUSTOM_CLEANUP));
    }
    set(&mut object, &["metadata", "finalizers"], finalizers);
    Plan::Write { object, then_delete: false }
}

/// Does what was decided. None where somebody was faster.
pub async fn carry_out(
    attempt: &mut Attempt,
    current: &Arc<Entry>,
    plan: Plan,
    dry_run: bool,
) -> Result<Option<Deleted>, Status> {
    match plan {
        Plan::Wait => Ok(Some(Deleted::Marked(Object::Entry(current.clone())))),
        Plan::Delete if dry_run => Ok(Some(Deleted::Gone(Object::Entry(current.clone())))),
        Plan::Delete => Ok(attempt.delete().await?.map(|_| Deleted::Gone(Object::Entry(current.clone())))),
        Plan::Write { mut object, then_delete } => {
            if let Some(map) = object.as_object_mut() {
                map.remove("apiVersion");
                map.remove("kind");
            }
            if list_at(&object, &["metadata", "finalizers"]).is_empty() {
                remove(&mut object, &["metadata", "finalizers"]);
            }
            if dry_run {
                let object = Object::Value(Arc::new(object));
                return Ok(Some(if then_delete { Deleted::Gone(object) } else { Deleted::Marked(object) }));
            }
            let Some(written) = attempt.write(object).await? else { return Ok(None) };
            if !then_delete {
                return Ok(Some(Deleted::Marked(Object::Entry(written))));
            }
            // Whoever deletes it now has done what we wanted; whoever changes it must not keep it.
            while attempt.current().is_some() {
                if attempt.delete().await?.is_some() {
                    break;
                }
            }
            Ok(Some(Deleted::Gone(Object::Entry(written))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finalizers(had: &[&str], options: DeleteOptions, orphans: bool) -> Option<Value> {
        garbage_finalizers(&json!({"metadata": {"finalizers": had}}), &options, orphans)
    }

    fn policy(p: &str) -> DeleteOptions {
        DeleteOptions { propagation: Some(p.into()), ..DeleteOptions::default() }
    }

    #[test]
    fn policies_become_finalizers() {
        let none = DeleteOptions::default;
        assert_eq!(finalizers(&[], none(), false), None);
        assert_eq!(finalizers(&[], none(), true), Some(json!(["orphan"])));
        assert_eq!(finalizers(&["x"], policy("Orphan"), false), Some(json!(["x", "orphan"])));
        assert_eq!(finalizers(&["orphan"], policy("Foreground"), false), Some(json!(["foregroundDeletion"])));
        assert_eq!(finalizers(&["orphan"], policy("Background"), true), Some(json!([])));
        assert_eq!(finalizers(&["foregroundDeletion"], none(), true), None);
        let old = DeleteOptions { orphan_dependents: Some(true), ..none() };
        assert_eq!(finalizers(&[], old, false), Some(json!(["orphan"])));
    }

    #[test]
    fn classes_of_the_system_stay() {
        let refused = |group, plural, name| refuse(group, plural, name).map_err(|e| (e.code, e.message));
        let text = "priorityclasses.scheduling.k8s.io \"system-node-critical\" is forbidden: this is a system \
                    priority class and cannot be deleted";
        assert_eq!(
            refused("scheduling.k8s.io", "priorityclasses", "system-node-critical"),
            Err((403, text.to_string()))
        );
        assert_eq!(refused("scheduling.k8s.io", "priorityclasses", "mine"), Ok(()));
        assert_eq!(refused("", "pods", "system-node-critical"), Ok(()));
    }

    #[test]
    fn namespaces_are_emptied_first() {
        let ns = json!({"metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Plan::Write { object, then_delete } = begin_namespace(&ns, &DeleteOptions::default()) else {
            panic!()
        };
        assert!(!then_delete);
        assert_eq!(object["status"]["phase"], "Terminating");
        assert!(has(&object, &["metadata", "deletionTimestamp"]));
    }
}
