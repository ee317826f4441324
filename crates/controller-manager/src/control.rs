//! What several controllers do alike: owner references and adoption, pods from a template, expectations, batches.
//! The rules are those of `k8s.io/kubernetes/pkg/controller`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodCondition, PodTemplateSpec, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use pilothouse_client::EventRecorder;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

/// Now, in whole seconds as the API keeps times.
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

/// The owner reference that says which controller manages an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// Whether `owner` is the controller of the object.
pub fn is_controlled_by(meta: &ObjectMeta, owner: &ObjectMeta) -> bool {
    controller_of(meta).is_some_and(|o| Some(&o.uid) == owner.uid.as_ref())
}

/// A reference that makes `owner` the controller of an object.
pub fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether a `LabelSelector` matches; one without any requirement matches all, a missing one nothing. An unknown
/// operator matches nothing.
pub fn selects(selector: Option<&LabelSelector>, labels: Option<&BTreeMap<String, String>>) -> bool {
    let Some(selector) = selector else { return false };
    let none = BTreeMap::new();
    let labels = labels.unwrap_or(&none);
    selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v))
        && selector.match_expressions.iter().flatten().all(|e| {
            let value = labels.get(&e.key);
            let values = e.values.as_deref().unwrap_or_default();
            match e.operator.as_str() {
                "In" => value.is_some_and(|v| values.contains(v)),
                "NotIn" => !value.is_some_and(|v| values.contains(v)),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// The same for the plain map selectors of services and replication controllers: an empty one matches nothing.
pub fn selects_map(
    selector: Option<&BTreeMap<String, String>>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v)))
}

// ---- pods ----

/// A pod's phase, `Pending` where there is none yet.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Whether a pod still runs or will: neither ended nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether a pod has ended.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// A pod's condition.
pub fn pod_condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == type_)
}

/// Whether a pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Whether a pod has been ready for `min_ready_seconds`; else how long until it will have been, as long as it stays
/// ready.
pub fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Result<(), Option<Duration>> {
    let ready = pod_condition(pod, "Ready").filter(|c| c.status == "True").ok_or(None)?;
    if min_ready_seconds <= 0 {
        return Ok(());
    }
    let since = ready.last_transition_time.as_ref().ok_or(None)?.0;
    let left = i64::from(min_ready_seconds) * 1000 - (now.as_millisecond() - since.as_millisecond());
    if left <= 0 { Ok(()) } else { Err(Some(Duration::from_millis(left.unsigned_abs()))) }
}

/// Whether a toleration covers a taint.
pub fn tolerates(t: &Toleration, taint: &Taint) -> bool {
    let set = |s: &Option<String>| s.clone().filter(|s| !s.is_empty());
    if set(&t.effect).is_some_and(|e| e != taint.effect) || set(&t.key).is_some_and(|k| k != taint.key) {
        return false;
    }
    match set(&t.operator).as_deref() {
        Some("Exists") => true,
        None | Some("Equal") => {
            t.value.clone().unwrap_or_default() == taint.value.clone().unwrap_or_default()
        }
        Some(_) => false,
    }
}

/// How often a pod's containers were restarted: the largest number.
pub fn max_restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    status
        .and_then(|s| s.container_statuses.as_ref())
        .into_iter()
        .flatten()
        .map(|c| c.restart_count)
        .max()
        .unwrap_or(0)
}

/// The order in which surplus pods are deleted, first to go first: unassigned, pending, not ready, on nodes with more
/// of their kind (`rank`), ready for the shortest time, restarted most, youngest.
pub fn deletion_order(a: &(Arc<Pod>, usize), b: &(Arc<Pod>, usize)) -> std::cmp::Ordering {
    let assigned =
        |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty());
    let rank = |p: &Pod| match phase(p) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let ready_since =
        |p: &Pod| pod_condition(p, "Ready").and_then(|c| c.last_transition_time.as_ref().map(|t| t.0));
    let created = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let ((pa, ra), (pb, rb)) = (a, b);
    assigned(pa)
        .cmp(&assigned(pb))
        .then(rank(pa).cmp(&rank(pb)))
        .then(is_ready(pa).cmp(&is_ready(pb)))
        .then(rb.cmp(ra))
        .then_with(|| {
            if is_ready(pa) && is_ready(pb) {
                ready_since(pb).cmp(&ready_since(pa))
            } else {
                std::cmp::Ordering::Equal
            }
        })
        .then_with(|| max_restarts(pb).cmp(&max_restarts(pa)))
        .then_with(|| created(pb).cmp(&created(pa)))
}

/// A pod from a template, owned by `owner`, with a generated name that begins with the owner's.
pub fn pod_from_template(template: &PodTemplateSpec, owner: &OwnerReference, namespace: &str) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(generate_name(&owner.name)),
            namespace: Some(namespace.to_string()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner.clone()]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// `<name>-`; only `<name>` where a pod's name could not be made from it otherwise.
fn generate_name(name: &str) -> String {
    let prefix = format!("{name}-");
    if prefix.len() > 253 { name.to_string() } else { prefix }
}

/// Creates and deletes pods for a controller, with its events.
#[derive(Clone)]
pub struct PodControl {
    client: Client,
    recorder: EventRecorder,
}

impl PodControl {
    /// For a controller with that recorder.
    pub fn new(client: Client, recorder: EventRecorder) -> Self {
        PodControl { client, recorder }
    }

    /// The recorder.
    pub fn recorder(&self) -> &EventRecorder {
        &self.recorder
    }

    /// Creates a pod, with an event on `object`.
    pub async fn create(&self, pod: &Pod, object: &ObjectReference) -> Result<Pod, kube::Error> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match Api::namespaced(self.client.clone(), namespace).create(&PostParams::default(), pod).await {
            Ok(created) => {
                let created: Pod = created;
                let name = created.metadata.name.as_deref().unwrap_or_default();
                self.recorder.normal(object, "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(created)
            }
            Err(e) => {
                if !is_terminating_namespace(&e) {
                    self.recorder.warning(object, "FailedCreate", format!("Error creating: {}", message(&e)));
                }
                Err(e)
            }
        }
    }

    /// Deletes a pod, with an event on `object`. A pod that is gone is no error.
    pub async fn delete(
        &self,
        namespace: &str,
        name: &str,
        object: &ObjectReference,
    ) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => {
                self.recorder.normal(object, "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
            Err(e) => {
                self.recorder.warning(object, "FailedDelete", format!("Error deleting: {}", message(&e)));
                Err(e)
            }
        }
    }
}

/// The text of an API error as Go's client prints it: the server's message alone.
pub fn message(e: &kube::Error) -> String {
    match e {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Whether an error has that HTTP status code.
pub fn has_code(e: &kube::Error, code: u16) -> bool {
    matches!(e, kube::Error::Api(s) if s.code == code)
}

/// Whether a create was refused because the namespace is being deleted: nothing to tell the user.
pub fn is_terminating_namespace(e: &kube::Error) -> bool {
    matches!(e, kube::Error::Api(s) if s.code == 403
        && s.details.as_ref().is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")))
}

// ---- adoption ----

/// Takes orphans that match the selector, lets go what no longer matches, and returns what is the owner's.
/// `owner_live` is asked before an adoption: the owner read afresh from the server, `None` where it is gone or
/// another of the same name.
pub async fn claim<K, F>(
    client: &Client,
    owner: &OwnerReference,
    owner_meta: &ObjectMeta,
    matches: impl Fn(&K) -> bool,
    objects: Vec<Arc<K>>,
    owner_live: impl Fn() -> F,
) -> Result<Vec<Arc<K>>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
    F: Future<Output = Result<Option<ObjectMeta>, kube::Error>>,
{
    let mut claimed = Vec::new();
    let mut may_adopt: Option<bool> = None;
    for object in objects {
        let meta = object.meta();
        let namespace = meta.namespace.clone().unwrap_or_default();
        let name = meta.name.clone().unwrap_or_default();
        let api: Api<K> = Api::namespaced(client.clone(), &namespace);
        match controller_of(meta) {
            Some(c) if c.uid == owner.uid => {
                if matches(&object) {
                    claimed.push(object);
                } else if owner_meta.deletion_timestamp.is_none() {
                    let patch = serde_json::json!({"metadata": {
                        "ownerReferences": [{"$patch": "delete", "uid": owner.uid}],
                        "uid": meta.uid,
                    }});
                    match api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                        Ok(_) => {}
                        Err(e) if has_code(&e, 404) || has_code(&e, 422) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
            Some(_) => {}
            None => {
                if owner_meta.deletion_timestamp.is_some()
                    || meta.deletion_timestamp.is_some()
                    || !matches(&object)
                {
                    continue;
                }
                let allowed = match may_adopt {
                    Some(a) => a,
                    None => {
                        let live = owner_live().await?;
                        let a = live.is_some_and(|m| {
                            m.uid.as_ref() == Some(&owner.uid) && m.deletion_timestamp.is_none()
                        });
                        may_adopt = Some(a);
                        a
                    }
                };
                if !allowed {
                    continue;
                }
                let patch = serde_json::json!({"metadata": {"ownerReferences": [owner], "uid": meta.uid}});
                match api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                    Ok(adopted) => claimed.push(Arc::new(adopted)),
                    Err(e) if has_code(&e, 404) || has_code(&e, 422) => {}
                    Err(e) => return Err(e),
                }
            }
        }
    }
    Ok(claimed)
}

// ---- expectations ----

/// How long to wait for a change to be seen before it is given up.
const EXPECTATION_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Expected {
    creations: i64,
    /// Keys of objects whose deletion is expected.
    deletions: HashSet<String>,
    since: Instant,
}

/// What a controller has done and not yet seen in its local copy. As long as something is expected for a key, its
/// sync must not count on the copy.
#[derive(Debug, Clone, Default)]
pub struct Expectations(Arc<Mutex<HashMap<String, Expected>>>);

impl Expectations {
    /// Whether all that was expected of a key has been seen, or was waited for too long.
    pub fn satisfied(&self, key: &str) -> bool {
        self.0.lock().get(key).is_none_or(|e| {
            (e.creations <= 0 && e.deletions.is_empty()) || e.since.elapsed() > EXPECTATION_TIMEOUT
        })
    }

    /// Expects `n` creations.
    pub fn expect_creations(&self, key: &str, n: usize) {
        self.set(key, i64::try_from(n).unwrap_or(i64::MAX), HashSet::new());
    }

    /// Expects these objects to go.
    pub fn expect_deletions(&self, key: &str, objects: impl IntoIterator<Item = String>) {
        self.set(key, 0, objects.into_iter().collect());
    }

    /// Expects `n` creations and these objects to go.
    pub fn expect(&self, key: &str, n: usize, deletions: impl IntoIterator<Item = String>) {
        self.set(key, i64::try_from(n).unwrap_or(i64::MAX), deletions.into_iter().collect());
    }

    fn set(&self, key: &str, creations: i64, deletions: HashSet<String>) {
        self.0.lock().insert(key.to_string(), Expected { creations, deletions, since: Instant::now() });
    }

    /// A creation was seen, or failed.
    pub fn created(&self, key: &str) {
        if let Some(e) = self.0.lock().get_mut(key) {
            e.creations -= 1;
        }
    }

    /// A deletion was seen, or failed.
    pub fn deleted(&self, key: &str, object: &str) {
        if let Some(e) = self.0.lock().get_mut(key) {
            e.deletions.remove(object);
        }
    }

    /// Forgets a key that is gone.
    pub fn forget(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

/// Runs `n` actions in batches of 1, 2, 4, …, and stops after the first batch in which one failed: a fault that all
/// share is met once, not n times. Returns how many succeeded and the first error.
pub async fn slow_start<F, Fut, E>(n: usize, action: F) -> (usize, Option<E>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    let (mut done, mut succeeded, mut size) = (0, 0, 1);
    while done < n {
        let batch = size.min(n - done);
        let results = futures::future::join_all((done..done + batch).map(&action)).await;
        done += batch;
        let mut first = None;
        for r in results {
            match r {
                Ok(()) => succeeded += 1,
                Err(e) => {
                    first.get_or_insert(e);
                }
            }
        }
        if first.is_some() {
            return (succeeded, first);
        }
        size *= 2;
    }
    (succeeded, None)
}

/// A short hash of a template that may stand in a label: the same template gives the same hash, and `collision`
/// gives another where two templates share one.
pub fn template_hash(template: &impl serde::Serialize, collision: Option<i32>) -> String {
    let mut bytes = serde_json::to_vec(template).unwrap_or_default();
    if let Some(c) = collision {
        bytes.extend(c.to_le_bytes());
    }
    // FNV-1a, 32 bits, written in the alphabet of generated names.
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    hash.to_string().bytes().map(|b| char::from(ALPHABET[usize::from(b) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn expectations_are_met_or_given_up() {
        let e = Expectations::default();
        assert!(e.satisfied("k"));
        e.expect_creations("k", 2);
        e.created("k");
        assert!(!e.satisfied("k"));
        e.created("k");
        assert!(e.satisfied("k"));
        e.expect_deletions("k", ["a".to_string()]);
        e.deleted("k", "other");
        assert!(!e.satisfied("k"));
        tokio::time::advance(Duration::from_secs(301)).await;
        assert!(e.satisfied("k"));
    }

    #[tokio::test]
    async fn a_shared_fault_is_met_once() {
        let calls = AtomicUsize::new(0);
        let (ok, err) = slow_start(100, |_| async {
            calls.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>("quota")
        })
        .await;
        assert_eq!((ok, err, calls.load(Ordering::SeqCst)), (0, Some("quota"), 1));
        let (ok, err) = slow_start(5, |_| async { Ok::<_, ()>(()) }).await;
        assert_eq!((ok, err), (5, None));
    }

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let p = pod(serde_json::json!({"metadata": {}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]}}));
        let at = |s: &str| s.parse::<Timestamp>().unwrap();
        assert_eq!(availability(&p, 0, at("2024-01-01T00:00:00Z")), Ok(()));
        assert_eq!(availability(&p, 10, at("2024-01-01T00:00:04Z")), Err(Some(Duration::from_secs(6))));
        assert_eq!(availability(&p, 10, at("2024-01-01T00:00:10Z")), Ok(()));
        assert_eq!(availability(&Pod::default(), 10, at("2024-01-01T00:00:10Z")), Err(None));
    }

    #[test]
    fn surplus_pods_go_in_order() {
        let make = |name: &str, node: Option<&str>, phase: &str, ready: bool| {
            Arc::new(pod(serde_json::json!({"metadata": {"name": name},
                "spec": {"containers": [], "nodeName": node},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}})))
        };
        let mut pods = [
            (make("ready-crowded", Some("a"), "Running", true), 2),
            (make("ready", Some("b"), "Running", true), 1),
            (make("running", Some("a"), "Running", false), 1),
            (make("pending", Some("a"), "Pending", false), 1),
            (make("unassigned", None, "Pending", false), 1),
        ];
        pods.sort_by(deletion_order);
        let names: Vec<_> = pods.iter().map(|(p, _)| p.metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["unassigned", "pending", "running", "ready-crowded", "ready"]);
    }

    #[test]
    fn selectors() {
        let labels: BTreeMap<String, String> = [("a".to_string(), "1".to_string())].into();
        let s = |v: serde_json::Value| serde_json::from_value::<LabelSelector>(v).unwrap();
        assert!(selects(Some(&s(serde_json::json!({}))), None));
        assert!(!selects(None, Some(&labels)));
        assert!(selects(Some(&s(serde_json::json!({"matchLabels": {"a": "1"}}))), Some(&labels)));
        let not_in =
            s(serde_json::json!({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["x"]}]}));
        assert!(selects(Some(&not_in), Some(&labels)));
        assert!(!selects_map(Some(&BTreeMap::new()), Some(&labels)));
    }
}
