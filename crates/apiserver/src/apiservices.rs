//! The APIService objects of the groups that this server serves itself: clients list them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pilothouse_api::discovery::priority;
use pilothouse_api::scheme::Scheme;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_component_base::signals::Stop;

use crate::handlers::lifecycle::now;
use crate::json::{get, set, str_at};
use crate::state::ServerState;

const GROUP: &str = "apiregistration.k8s.io";
const SERVICES: &str = "apiservices";
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// How long to wait before what failed is tried again.
const AGAIN: Duration = Duration::from_millis(300);

/// One group and version that is served here.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Local {
    group: String,
    version: String,
    custom: bool,
}

fn locals(scheme: &Scheme) -> BTreeSet<Local> {
    // The aggregator's own group is not registered with itself.
    let served = scheme.resources().filter(|r| &*r.group != GROUP);
    served
        .map(|r| Local { group: r.group.to_string(), version: r.version.to_string(), custom: r.is_custom() })
        .collect()
}

fn object(state: &ServerState, local: &Local) -> Value {
    let (minimum, version_priority) = priority(state.release, &local.group, &local.version);
    let mut spec = json!({
        "version": local.version,
        "groupPriorityMinimum": minimum,
        "versionPriority": version_priority,
    });
    if !local.group.is_empty() {
        spec["group"] = json!(local.group);
    }
    json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {
            "name": format!("{}.{}", local.version, local.group),
            "labels": {AUTOMANAGED: if local.custom { "true" } else { "onstart" }},
        },
        "spec": spec,
    })
}

fn available() -> Value {
    json!([{
        "type": "Available",
        "status": "True",
        "lastTransitionTime": now(),
        "reason": "Local",
        "message": "Local APIServices are always available",
    }])
}

async fn ensure(state: &ServerState, local: &Local) -> Result<(), Status> {
    let wanted = object(state, local);
    let name = str_at(&wanted, &["metadata", "name"]).to_string();
    match state.objects.get(GROUP, SERVICES, "", &name) {
        None => match state.objects.create(GROUP, SERVICES, "", wanted.clone()).await {
            Ok(_) => {}
            Err(e) if e.code == 409 => {}
            Err(e) => return Err(e),
        },
        Some(there) => {
            let managed = !str_at(&there, &["metadata", "labels", AUTOMANAGED]).is_empty();
            let fields = ["groupPriorityMinimum", "versionPriority"];
            if managed && fields.iter().any(|f| there["spec"][f] != wanted["spec"][f]) {
                let spec = wanted["spec"].clone();
                let change = move |o: &mut Value| {
                    set(o, &["spec"], spec.clone());
                    Ok(())
                };
                state.objects.update(GROUP, SERVICES, "", "", &name, &change).await?;
            }
        }
    }
    let change = |o: &mut Value| {
        if get(o, &["spec", "service"]).is_null()
            && get(o, &["status", "conditions"]).as_array().is_none_or(Vec::is_empty)
        {
            set(o, &["status", "conditions"], available());
        }
        Ok(())
    };
    state.objects.update(GROUP, SERVICES, "status", "", &name, &change).await.map(|_| ())
}

/// Keeps the objects in step with what is served, until `stop`.
pub async fn run(state: Arc<ServerState>, stop: Stop) {
    let mut done: BTreeSet<Local> = BTreeSet::new();
    let mut schemes = state.registry.schemes();
    loop {
        let wanted = locals(&schemes.borrow_and_update().clone());
        let mut failed = false;
        for local in wanted.difference(&done.clone()) {
            match ensure(&state, local).await {
                Ok(()) => {
                    done.insert(local.clone());
                }
                Err(e) => {
                    tracing::warn!("registering {}/{}: {}", local.group, local.version, e.message);
                    failed = true;
                }
            }
        }
        for local in done.clone().difference(&wanted).filter(|l| l.custom) {
            let name = format!("{}.{}", local.version, local.group);
            // An APIService that somebody has deleted already is what is wanted.
            let _ = state.objects.delete(GROUP, SERVICES, "", &name, json!({})).await;
            done.remove(local);
        }
        tokio::select! {
            () = stop.wait() => return,
            () = tokio::time::sleep(AGAIN), if failed => {}
            outcome = schemes.changed() => if outcome.is_err() { return },
        }
    }
}
