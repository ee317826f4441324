//! `ServiceAccount`: every pod has an account, and the account's token.

use async_trait::async_trait;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use std::sync::Arc;
use std::time::Duration;

use crate::json::{self, entry, get, has, list_at, str_at};
use crate::pod_references::{is_mirror, secrets};
use crate::request::{AdmissionRequest, Mutation, Objects, Validation};

use super::creates_pod;

/// Where containers find the token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The plug-in.
pub struct ServiceAccount {
    /// Whether pods get tokens of their own (a projected volume) instead of the account's Secret.
    pub bound_tokens: bool,
}

fn random_name(prefix: &str) -> String {
    pilothouse_apimachinery::rand::generate_name(prefix, rand::random::<u32>)
}

/// The account, waited for where it is a new namespace's `default`, which a controller makes.
async fn account(objects: &dyn Objects, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
    let attempts = if name == "default" { 10 } else { 1 };
    for attempt in 0..attempts {
        if attempt > 0 {
            let jitter = rand::random_range(0..100);
            tokio::time::sleep(Duration::from_millis(100 + jitter)).await;
        }
        if let Some(found) = objects.get("", "serviceaccounts", namespace, name) {
            return Ok(found);
        }
        if let Ok(found) = objects.get_latest("", "serviceaccounts", namespace, name).await {
            return Ok(found);
        }
    }
    Err(Status::not_found("", "serviceaccount", name))
}

/// The first of the account's Secrets that holds a token of it.
fn token_secret(objects: &dyn Objects, account: &Value) -> Option<String> {
    let meta = |f| str_at(account, &["metadata", f]);
    let namespace = meta("namespace");
    list_at(account, &["secrets"]).iter().map(|s| str_at(s, &["name"])).find_map(|name| {
        let secret = objects.get("", "secrets", namespace, name)?;
        let annotation = |k: &str| {
            entry(&secret, &["metadata", "annotations"], &format!("kubernetes.io/service-account.{k}"))
        };
        let fits = str_at(&secret, &["type"]) == "kubernetes.io/service-account-token"
            && annotation("name") == Some(meta("name"))
            && annotation("uid") == Some(meta("uid"));
        fits.then(|| name.to_string())
    })
}

fn automounts(account: &Value, pod: &Value) -> bool {
    let says = |v: &Value, path: &[&str]| get(v, path).as_bool();
    says(pod, &["spec", "automountServiceAccountToken"])
        .or_else(|| says(account, &["automountServiceAccountToken"]))
        .unwrap_or(true)
}

/// Mounts a volume wherever a container has nothing at the token's place; whether any container lacked it.
fn mount(pod: &mut Value, volume: &str) -> bool {
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        for c in json::list_mut(pod, &["spec", list]) {
            let mounts = json::ensure_list(c, &["volumeMounts"]);
            if mounts.iter().all(|m| str_at(m, &["mountPath"]) != MOUNT_PATH) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    needed
}

fn bound_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        // A little over an hour: kubelets ask for a new one after 80 % of it.
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

impl ServiceAccount {
    fn mount_token(&self, pod: &mut Value, account: &Value, objects: &dyn Objects) -> Result<(), Status> {
        let volumes = list_at(pod, &["spec", "volumes"]);
        if self.bound_tokens {
            let existing =
                volumes.iter().map(|v| str_at(v, &["name"])).find(|n| n.starts_with("kube-api-access-"));
            let (name, exists) = match existing {
                Some(name) => (name.to_string(), true),
                None => (random_name("kube-api-access-"), false),
            };
            if mount(pod, &name) && !exists {
                json::ensure_list(pod, &["spec", "volumes"]).push(bound_volume(&name));
            }
            return Ok(());
        }
        let Some(secret) = token_secret(objects, account) else {
            let account = str_at(account, &["metadata", "name"]);
            let text = format!(
                "No API token found for service account {account:?}, retry after the token is automatically created and added to the service account"
            );
            let status =
                Status::failure(500, "ServerTimeout", text).about("", "serviceaccounts", "create pod");
            return Err(status.retry_after(1));
        };
        let existing = volumes.iter().find(|v| str_at(v, &["secret", "secretName"]) == secret);
        let taken = |n: &str| volumes.iter().any(|v| str_at(v, &["name"]) == n);
        let (name, exists) = match existing {
            Some(volume) => (str_at(volume, &["name"]).to_string(), true),
            None if taken(&secret) => (random_name(&format!("{secret}-")), false),
            None => (secret.clone(), false),
        };
        if mount(pod, &name) && !exists {
            let volume = json!({"name": name, "secret": {"secretName": secret, "defaultMode": 420}});
            json::ensure_list(pod, &["spec", "volumes"]).push(volume);
        }
        Ok(())
    }
}

/// What an account with `kubernetes.io/enforce-mountable-secrets` does not let a pod use.
fn unmountable(account: &Value, pod: &Value) -> Option<String> {
    if entry(account, &["metadata", "annotations"], "kubernetes.io/enforce-mountable-secrets") != Some("true")
    {
        return None;
    }
    let name = str_at(account, &["metadata", "name"]);
    let listed = |list: &str, n: &str| list_at(account, &[list]).iter().any(|s| str_at(s, &["name"]) == n);
    for v in list_at(pod, &["spec", "volumes"]) {
        let secret = str_at(v, &["secret", "secretName"]);
        if !secret.is_empty() && !listed("secrets", secret) {
            return Some(format!(
                "volume with secret.secretName={secret:?} is not allowed because service account {name} does not reference that secret"
            ));
        }
    }
    for (list, c) in json::containers(get(pod, &["spec"])) {
        let kind = if list == "initContainers" { "init container" } else { "container" };
        for e in list_at(c, &["env"]) {
            let secret = str_at(e, &["valueFrom", "secretKeyRef", "name"]);
            if !secret.is_empty() && !listed("secrets", secret) {
                return Some(format!(
                    "{kind} {} with envVar {} referencing secret.secretName={secret:?} is not allowed because service account {name} does not reference that secret",
                    str_at(c, &["name"]),
                    str_at(e, &["name"])
                ));
            }
        }
    }
    for (i, s) in list_at(pod, &["spec", "imagePullSecrets"]).iter().enumerate() {
        let secret = str_at(s, &["name"]);
        if !listed("imagePullSecrets", secret) {
            return Some(format!(
                "imagePullSecrets[{i}].name={secret:?} is not allowed because service account {name} does not reference that imagePullSecret"
            ));
        }
    }
    None
}

#[async_trait]
impl Mutation for ServiceAccount {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if !creates_pod(r) || is_mirror(&r.object) {
            return Ok(());
        }
        let mut name = str_at(&r.object, &["spec", "serviceAccountName"]).to_string();
        if name.is_empty() {
            name = "default".to_string();
            json::set(&mut r.object, &["spec", "serviceAccountName"], name.clone());
        }
        // The field's old name shows the same.
        json::set(&mut r.object, &["spec", "serviceAccount"], name.clone());
        let account = account(objects, &r.namespace, &name).await.map_err(|e| {
            super::forbidden(r, format!("error looking up service account {}/{name}: {e}", r.namespace))
        })?;
        if automounts(&account, &r.object) {
            self.mount_token(&mut r.object, &account, objects)?;
        }
        if list_at(&r.object, &["spec", "imagePullSecrets"]).is_empty()
            && has(&account, &["imagePullSecrets"])
        {
            json::set(
                &mut r.object,
                &["spec", "imagePullSecrets"],
                get(&account, &["imagePullSecrets"]).clone(),
            );
        }
        match unmountable(&account, &r.object) {
            Some(why) => Err(super::forbidden(r, why)),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Validation for ServiceAccount {
    async fn validate(&self, r: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        if !creates_pod(r) || !is_mirror(&r.object) {
            return Ok(());
        }
        if !str_at(&r.object, &["spec", "serviceAccountName"]).is_empty() {
            return Err(super::forbidden(r, "a mirror pod may not reference service accounts"));
        }
        if !secrets(&r.object, &mut |_| false) {
            return Err(super::forbidden(r, "a mirror pod may not reference secrets"));
        }
        let projects = |v: &Value| {
            list_at(v, &["projected", "sources"]).iter().any(|s| has(s, &["serviceAccountToken"]))
        };
        if list_at(&r.object, &["spec", "volumes"]).iter().any(projects) {
            return Err(super::forbidden(
                r,
                "a mirror pod may not use ServiceAccountToken volume projections",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;

    fn pod() -> AdmissionRequest {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]});
        test_create("", "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}))
    }

    fn world() -> FakeObjects {
        let o = FakeObjects::default();
        o.put(
            "",
            "serviceaccounts",
            json!({"metadata": {"name": "default", "namespace": "n", "uid": "u"},
            "secrets": [{"name": "default-token-abcde"}], "imagePullSecrets": [{"name": "reg"}]}),
        );
        o
    }

    #[tokio::test]
    async fn mounts_the_secret() {
        let o = world();
        let plugin = ServiceAccount { bound_tokens: false };
        let e = plugin.admit(&mut pod(), &o).await.unwrap_err();
        assert_eq!((e.code, e.reason.as_str()), (500, "ServerTimeout"));
        o.put(
            "",
            "secrets",
            json!({"metadata": {"name": "default-token-abcde", "namespace": "n", "annotations": {
            "kubernetes.io/service-account.name": "default", "kubernetes.io/service-account.uid": "u"}},
            "type": "kubernetes.io/service-account-token"}),
        );
        let mut r = pod();
        plugin.admit(&mut r, &o).await.unwrap();
        let spec = &r.object["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["serviceAccount"], "default");
        assert_eq!(
            spec["volumes"],
            json!([{"name": "default-token-abcde", "secret": {"secretName": "default-token-abcde", "defaultMode": 420}}])
        );
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], MOUNT_PATH);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "reg"}]));
    }

    #[tokio::test]
    async fn projects_a_token() {
        let mut r = pod();
        ServiceAccount { bound_tokens: true }.admit(&mut r, &world()).await.unwrap();
        let name = r.object["spec"]["volumes"][0]["name"].as_str().unwrap().to_string();
        assert!(name.starts_with("kube-api-access-") && name.len() == 21);
    }

    #[tokio::test(start_paused = true)]
    async fn says_which_account_is_missing() {
        let e = ServiceAccount { bound_tokens: false }
            .admit(&mut pod(), &FakeObjects::default())
            .await
            .unwrap_err();
        assert_eq!(
            e.message,
            "pods \"p\" is forbidden: error looking up service account n/default: serviceaccount \"default\" not found"
        );
    }
}
