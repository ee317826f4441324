//! Controller revisions: the past templates of StatefulSets and DaemonSets.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::Value;

use crate::control::{has_code, template_hash};

/// Label with a revision's hash on DaemonSets' revisions and on the pods made from revisions.
pub const HASH: &str = "controller-revision-hash";
/// The same on StatefulSets' revisions.
pub const HISTORY_HASH: &str = "controller.kubernetes.io/hash";

/// The first minor release that leaves a missing `creationTimestamp` out of what it writes.
const WITHOUT_NULL_TIMES: u32 = 35;

/// What a revision holds: `spec.template`, in the form of a patch that puts the whole template back, written as a
/// server of that minor release would.
pub fn data(template: &Value, server_minor: u32) -> Value {
    let mut template = template.clone();
    if let Some(t) = template.as_object_mut() {
        t.insert("$patch".into(), "replace".into());
        if server_minor < WITHOUT_NULL_TIMES {
            let meta = t.entry("metadata").or_insert_with(|| Value::Object(Default::default()));
            if let Some(m) = meta.as_object_mut() {
                m.entry("creationTimestamp").or_insert(Value::Null);
            }
        }
    }
    serde_json::json!({"spec": {"template": template}})
}

/// A value without the parts of objects that are null: those mean the same as missing ones.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(o) => Value::Object(
            o.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect(),
        ),
        Value::Array(a) => Value::Array(a.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

/// A new revision of an owner. `labels`: those of the template; the hash comes under `hash_label`.
pub fn make(
    owner: &OwnerReference,
    owner_meta: &ObjectMeta,
    (mut labels, hash_label): (BTreeMap<String, String>, &str),
    data: Value,
    revision: i64,
    collision: Option<i32>,
) -> ControllerRevision {
    let hash = template_hash(&data, collision);
    labels.insert(hash_label.into(), hash.clone());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", owner.name)),
            namespace: owner_meta.namespace.clone(),
            labels: Some(labels),
            annotations: owner_meta.annotations.clone().filter(|a| !a.is_empty()),
            owner_references: Some(vec![owner.clone()]),
            ..Default::default()
        },
        data: Some(RawExtension(data)),
        revision,
    }
}

/// The revision of the highest number that holds the same data.
pub fn find_equal<'a>(
    revisions: &'a [Arc<ControllerRevision>],
    data: &Value,
) -> Option<&'a Arc<ControllerRevision>> {
    let data = without_nulls(data);
    revisions
        .iter()
        .filter(|r| r.data.as_ref().is_some_and(|d| without_nulls(&d.0) == data))
        .max_by_key(|r| r.revision)
}

/// The number that comes after all there are.
pub fn next_number(revisions: &[Arc<ControllerRevision>]) -> i64 {
    revisions.iter().map(|r| r.revision).max().unwrap_or(0) + 1
}

/// Creates a revision; where one of its name holds something else, counts the collision up and tries another name.
pub async fn create(
    client: &Client,
    mut make_one: impl FnMut(Option<i32>) -> ControllerRevision,
    collisions: &mut i32,
) -> Result<ControllerRevision, kube::Error> {
    loop {
        let revision = make_one((*collisions != 0).then_some(*collisions));
        let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        match api.create(&PostParams::default(), &revision).await {
            Ok(r) => return Ok(r),
            Err(e) if has_code(&e, 409) => {
                let existing = api.get(revision.metadata.name.as_deref().unwrap_or_default()).await?;
                if existing.data == revision.data {
                    return Ok(existing);
                }
                *collisions += 1;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Gives a revision another number.
pub async fn renumber(
    client: &Client,
    revision: &ControllerRevision,
    number: i64,
) -> Result<ControllerRevision, kube::Error> {
    let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
    let renumbered = ControllerRevision { revision: number, ..revision.clone() };
    let name = revision.metadata.name.as_deref().unwrap_or_default();
    api.replace(name, &PostParams::default(), &renumbered).await
}

/// Deletes the oldest revisions over `limit`, except those that `live` says are in use.
pub async fn truncate(
    client: &Client,
    revisions: &[Arc<ControllerRevision>],
    limit: i32,
    live: impl Fn(&ControllerRevision) -> bool,
) -> Result<(), kube::Error> {
    let mut old: Vec<_> = revisions.iter().filter(|r| !live(r)).collect();
    old.sort_by_key(|r| r.revision);
    let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for r in old.into_iter().take(surplus) {
        let namespace = r.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
        match api.delete(r.metadata.name.as_deref().unwrap_or_default(), &DeleteParams::default()).await {
            Ok(_) => {}
            Err(e) if has_code(&e, 404) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
