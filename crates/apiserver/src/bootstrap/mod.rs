//! What every cluster has from the start: namespaces, roles, priority classes, flow control, the service `kubernetes`.

pub mod flow_control;
pub mod kubernetes_service;

use std::sync::Arc;
use std::time::Duration;

use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;
use pilothouse_component_base::signals::Stop;

use crate::authorization::rbac;
use crate::config::Config;
use crate::json::str_at;
use crate::request::Objects;
use crate::rest::service::Allocators;
use crate::state::ServerState;

/// How long to wait before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether everything is still there.
const RECHECK: Duration = Duration::from_secs(60);

/// Creates what is missing. Returns when all is there, or at `stop`; what is to be kept up goes on in the background.
pub async fn run(state: Arc<ServerState>, stop: Stop) {
    while let Err(e) = once(&state).await {
        tracing::warn!("bootstrap: {e}");
        tokio::select! { () = stop.wait() => return, () = tokio::time::sleep(AGAIN) => {} }
    }
    let allocators = Allocators::new(&state.config, &state.store);
    tokio::spawn(kubernetes_service::keep(state.clone(), allocators.first_address(), stop.clone()));
    tokio::spawn(allocators.keep_repaired(state.objects.clone(), stop.clone()));
    tokio::spawn(keep(state, stop));
}

/// Puts back what somebody has deleted.
async fn keep(state: Arc<ServerState>, stop: Stop) {
    loop {
        tokio::select! { () = stop.wait() => return, () = tokio::time::sleep(RECHECK) => {} }
        let objects = &*state.objects;
        let all = async {
            namespaces(objects).await?;
            authentication_config(objects, &state.config).await
        };
        if let Err(e) = all.await {
            tracing::warn!("bootstrap: {e}");
        }
    }
}

async fn once(state: &ServerState) -> Result<(), Status> {
    let objects = &*state.objects;
    namespaces(objects).await?;
    let roles = async {
        if state.config.authorization_modes.iter().any(|m| m == "RBAC") {
            rbac::policy::run(objects, state.release, &state.config.feature_gates).await?;
        }
        Ok(())
    };
    tokio::try_join!(
        roles,
        priority_classes(objects),
        flow_control::ensure(objects, state.release),
        authentication_config(objects, &state.config),
        service_cidr(objects, &state.config),
    )?;
    Ok(())
}

/// Creates an object where there is none of that name.
pub(crate) async fn ensure(
    objects: &dyn Objects,
    group: &str,
    resource: &str,
    object: Value,
) -> Result<(), Status> {
    let namespace = str_at(&object, &["metadata", "namespace"]).to_string();
    if objects.get(group, resource, &namespace, str_at(&object, &["metadata", "name"])).is_some() {
        return Ok(());
    }
    match objects.create(group, resource, &namespace, object).await {
        // Another server was faster, or `--runtime-config` has switched the resource off.
        Err(e) if e.reason == "AlreadyExists" || e.code == 404 => Ok(()),
        other => other.map(drop),
    }
}

async fn namespaces(objects: &dyn Objects) -> Result<(), Status> {
    for name in ["kube-system", "kube-public", "kube-node-lease", "default"] {
        ensure(objects, "", "namespaces", json!({"metadata": {"name": name}})).await?;
    }
    Ok(())
}

async fn priority_classes(objects: &dyn Objects) -> Result<(), Status> {
    for (name, value, description) in [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ] {
        let class = json!({
            "metadata": {"name": name}, "value": value, "description": description,
            "preemptionPolicy": "PreemptLowerPriority",
        });
        ensure(objects, "scheduling.k8s.io", "priorityclasses", class).await?;
    }
    Ok(())
}

/// What extension API servers need to know to trust whom this server trusts.
fn authentication_data(config: &Config) -> Value {
    let mut data = json!({});
    let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_default();
    if let Some(file) = &config.client_ca_file {
        data["client-ca-file"] = json!(read(file));
    }
    if let Some(header) = &config.request_header {
        data["requestheader-client-ca-file"] = json!(read(&header.client_ca));
        for (name, list) in [
            ("allowed-names", &header.allowed_names),
            ("username-headers", &header.username_headers),
            ("group-headers", &header.group_headers),
            ("extra-headers-prefix", &header.extra_prefixes),
        ] {
            data[format!("requestheader-{name}")] = json!(json!(list).to_string());
        }
    }
    data
}

async fn authentication_config(objects: &dyn Objects, config: &Config) -> Result<(), Status> {
    let (namespace, name) = ("kube-system", "extension-apiserver-authentication");
    let data = authentication_data(config);
    match objects.get("", "configmaps", namespace, name) {
        None => {
            let map = json!({"metadata": {"name": name, "namespace": namespace}, "data": data});
            ensure(objects, "", "configmaps", map).await
        }
        Some(map) => {
            let lacks =
                |v: &Value| data.as_object().into_iter().flatten().any(|(k, x)| v["data"].get(k) != Some(x));
            if !lacks(&map) {
                return Ok(());
            }
            let change = |map: &mut Value| {
                for (k, v) in data.as_object().into_iter().flatten() {
                    crate::json::set(map, &["data", k], v.clone());
                }
                Ok(())
            };
            objects.update("", "configmaps", "", namespace, name, &change).await.map(drop)
        }
    }
}

/// Today the range of service addresses is an object, too.
async fn service_cidr(objects: &dyn Objects, config: &Config) -> Result<(), Status> {
    if config.release == Release::V1_20 {
        return Ok(());
    }
    let cidrs: Vec<String> = config.service_cluster_ip_ranges.iter().map(ToString::to_string).collect();
    let object = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
    match ensure(objects, "networking.k8s.io", "servicecidrs", object).await {
        Err(e) if e.code == 404 => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;

    #[tokio::test]
    async fn creates_what_is_missing_only() {
        let o = FakeObjects::default();
        namespaces(&o).await.unwrap();
        priority_classes(&o).await.unwrap();
        flow_control::ensure(&o, Release::V1_20).await.unwrap();
        assert_eq!(o.list("", "namespaces", "").len(), 4);
        let before =
            (o.revision("", "namespaces"), o.revision("flowcontrol.apiserver.k8s.io", "flowschemas"));
        namespaces(&o).await.unwrap();
        flow_control::ensure(&o, Release::V1_20).await.unwrap();
        assert_eq!(
            (o.revision("", "namespaces"), o.revision("flowcontrol.apiserver.k8s.io", "flowschemas")),
            before
        );
    }
}
