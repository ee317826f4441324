//! CustomResourceDefinitions: names them, serves what they define, cleans up after them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilothouse_api::crd::{naming, structural};
use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_component_base::signals::Stop;
use tokio::sync::oneshot;

use crate::handlers::delete::CUSTOM_CLEANUP;
use crate::handlers::lifecycle::now;
use crate::json::{bool_at, get, has, list_at, remove, set, str_at};
use crate::state::ServerState;

/// Group of the definitions.
const GROUP: &str = "apiextensions.k8s.io";
/// Their plural.
const DEFINITIONS: &str = "customresourcedefinitions";
/// How long to wait before a definition is looked at again that could not be finished.
const AGAIN: Duration = Duration::from_millis(100);

/// How long requests that are creating objects have to end, before what they created is deleted.
const GRACE: Duration = Duration::from_millis(100);

/// What of a definition says how its objects are served.
type Served = (Value, Value);

/// What is known of definitions, by name.
#[derive(Default)]
struct Known {
    served: BTreeMap<String, Served>,
    /// Since when one is seen to be deleted.
    ending: BTreeMap<String, Instant>,
}

/// Keeps the resources that are served in step with the definitions, until `stop`. `ready` is told when those that were
/// there at the start are served.
pub async fn run(state: Arc<ServerState>, ready: oneshot::Sender<()>, stop: Stop) {
    let Some(endpoint) = state.registry.hub(GROUP, DEFINITIONS) else { return };
    let mut changed = endpoint.storage.objects.subscribe();
    let mut known = Known::default();
    let mut ready = Some(ready);
    loop {
        changed.borrow_and_update();
        let unfinished = reconcile(&state, &mut known).await;
        if let Some(ready) = ready.take() {
            // Nobody waits any more when the server is stopping.
            let _ = ready.send(());
        }
        let again = async {
            if unfinished {
                tokio::time::sleep(AGAIN).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stop.wait() => return,
            () = again => {}
            outcome = changed.changed() => if outcome.is_err() { return },
        }
    }
}

/// Looks at all definitions once. `true` where something is left to do.
async fn reconcile(state: &ServerState, known: &mut Known) -> bool {
    let all = state.objects.list(GROUP, DEFINITIONS, "");
    let names: BTreeSet<String> = all.iter().map(|c| name(c).to_string()).collect();
    known.ending.retain(|name, _| names.contains(name));
    let gone: Vec<String> = known.served.keys().filter(|n| !names.contains(*n)).cloned().collect();
    for name in gone {
        known.served.remove(&name);
        if let Some((plural, group)) = name.split_once('.') {
            state.registry.remove_custom(group, plural);
        }
    }
    let mut unfinished = false;
    for crd in &all {
        match one(state, crd, &all, known).await {
            Ok(done) => unfinished |= !done,
            // Changed or gone meanwhile: there will be an event of it.
            Err(e) if matches!(e.code, 404 | 409) => {}
            Err(e) => {
                tracing::warn!(crd = name(crd), "{}", e.message);
                unfinished = true;
            }
        }
    }
    unfinished
}

fn name(crd: &Value) -> &str {
    str_at(crd, &["metadata", "name"])
}

/// Takes one definition a step further. `false` where more is to be done without an event that would say so.
async fn one(
    state: &ServerState,
    crd: &Arc<Value>,
    all: &[Arc<Value>],
    known: &mut Known,
) -> Result<bool, Status> {
    if naming::is_true(crd, "Established") {
        let how = (get(crd, &["spec"]).clone(), get(crd, &["status", "acceptedNames"]).clone());
        if known.served.get(name(crd)) != Some(&how) {
            state.registry.add_custom(crd).await;
            known.served.insert(name(crd).to_string(), how);
        }
    }
    if has(crd, &["metadata", "deletionTimestamp"]) {
        let since = *known.ending.entry(name(crd).to_string()).or_insert_with(Instant::now);
        return if since.elapsed() < GRACE { Ok(false) } else { clean_up(state, crd).await };
    }
    known.ending.remove(name(crd));
    let others: Vec<Value> = all.iter().map(|c| (**c).clone()).collect();
    if let Some(named) = naming::accept_names(crd, &others, &now()) {
        write_status(state, crd, &named).await?;
        return Ok(true);
    }
    if let Some(established) = naming::establish(crd, &now()) {
        write_status(state, crd, &established).await?;
        return Ok(true);
    }
    if let Some(judged) = naming::non_structural(crd, &schema_faults(crd), &now()) {
        write_status(state, crd, &judged).await?;
    }
    Ok(true)
}

/// What keeps a definition's schemas from being structural.
fn schema_faults(crd: &Value) -> Vec<String> {
    let spec = Path::new("spec");
    let mut faults = ErrorList::new();
    if bool_at(crd, &["spec", "preserveUnknownFields"]) {
        faults.push(field::invalid(&spec.child("preserveUnknownFields"), true, "must be false"));
    }
    for (i, version) in list_at(crd, &["spec", "versions"]).iter().enumerate() {
        let schema = get(version, &["schema", "openAPIV3Schema"]);
        let path = spec.child("versions").index(i).child("schema").child("openAPIV3Schema");
        faults.extend(structural::violations(schema, &path));
    }
    faults.iter().map(ToString::to_string).collect()
}

async fn write_status(state: &ServerState, crd: &Value, next: &Value) -> Result<(), Status> {
    let status = get(next, &["status"]).clone();
    let seen = str_at(crd, &["metadata", "resourceVersion"]).to_string();
    let change = move |object: &mut Value| {
        if str_at(object, &["metadata", "resourceVersion"]) != seen {
            return Err(Status::modified(GROUP, DEFINITIONS, str_at(object, &["metadata", "name"])));
        }
        set(object, &["status"], status.clone());
        Ok(())
    };
    state.objects.update(GROUP, DEFINITIONS, "status", "", name(crd), &change).await.map(|_| ())
}

/// Deletes the objects of a definition that is being deleted, and then lets it go.
async fn clean_up(state: &ServerState, crd: &Value) -> Result<bool, Status> {
    if !list_at(crd, &["metadata", "finalizers"]).iter().any(|f| f == CUSTOM_CLEANUP) {
        return Ok(true);
    }
    let group = str_at(crd, &["spec", "group"]);
    let plural = str_at(crd, &["spec", "names", "plural"]);
    if !naming::is_true(crd, "Established") {
        let (reason, message) = ("NeverEstablished", "resource was never established");
        write_status(state, crd, &naming::terminating(crd, "False", reason, message, &now())).await?;
    } else if state.registry.hub(group, plural).is_some() {
        let (reason, message) = ("InstanceDeletionInProgress", "CustomResource deletion is in progress");
        let begun = naming::terminating(crd, "True", reason, message, &now());
        if get(&begun, &["status"]) != get(crd, &["status"]) {
            write_status(state, crd, &begun).await?;
            return Ok(true);
        }
        let left = state.objects.list(group, plural, "");
        for object in &left {
            if has(object, &["metadata", "deletionTimestamp"]) {
                continue;
            }
            let (namespace, name) =
                (str_at(object, &["metadata", "namespace"]), str_at(object, &["metadata", "name"]));
            match state.objects.delete(group, plural, namespace, name, json!({})).await {
                Ok(()) => {}
                Err(e) if e.code == 404 => {}
                Err(e) => return Err(e),
            }
        }
        if !left.is_empty() {
            // Objects with finalizers take their time; the others are gone at the next look.
            return Ok(false);
        }
    }
    let change = |object: &mut Value| {
        let mut left = list_at(object, &["metadata", "finalizers"]).to_vec();
        left.retain(|f| f != CUSTOM_CLEANUP);
        if left.is_empty() {
            remove(object, &["metadata", "finalizers"]);
        } else {
            set(object, &["metadata", "finalizers"], left);
        }
        Ok(())
    };
    state.objects.update(GROUP, DEFINITIONS, "", "", name(crd), &change).await?;
    Ok(true)
}
