//! What a new cluster needs as objects: the manifests in `config/manifests`, and a token with which the kubelet asks
//! for its certificate.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, discovery};
use rand::Rng;

use super::Config;
use super::layout::Layout;

/// Port of the cluster's DNS on the node; the service's port 53 leads there.
pub const DNS_PORT: u16 = 10053;
const READY: Duration = Duration::from_secs(120);
const FIELD_MANAGER: &str = "pilothouse";

const MANIFESTS: &[(&str, &str)] = &[
    ("node-bootstrap", include_str!("../../../../config/manifests/node-bootstrap.yaml")),
    ("cluster-dns", include_str!("../../../../config/manifests/cluster-dns.yaml")),
    ("local-path", include_str!("../../../../config/manifests/local-path.yaml")),
];

/// Returns when the API server says that it is ready.
pub async fn wait_ready(kubeconfig: &Path) -> anyhow::Result<()> {
    let client = pilothouse_client::config::connect(kubeconfig, FIELD_MANAGER).await?;
    let deadline = tokio::time::Instant::now() + READY;
    loop {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        match client.request_text(request).await {
            Ok(_) => return Ok(()),
            Err(e) if tokio::time::Instant::now() > deadline => {
                bail!("the API server is not ready after {} s: {e}", READY.as_secs())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Applies the manifests, and makes a bootstrap token where the kubelet has no kubeconfig yet.
pub async fn apply(config: &Config, layout: &Layout) -> anyhow::Result<()> {
    let client = pilothouse_client::config::connect(&layout.kubeconfig("admin"), FIELD_MANAGER).await?;
    for (name, text) in MANIFESTS {
        let text = text
            .replace("$CLUSTER_DNS", &config.service_ip(10))
            .replace("$NODE_IP", &config.node_ip.to_string())
            .replace("$DNS_PORT", &DNS_PORT.to_string());
        for object in objects(&text).with_context(|| format!("manifest {name}"))? {
            apply_one(&client, &object).await.with_context(|| format!("manifest {name}"))?;
        }
    }
    if !layout.path("kubelet.kubeconfig").exists() {
        let (id, secret) = (random(6), random(16));
        let expires = Timestamp::now() + Duration::from_secs(86_400);
        let token = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "type": "bootstrap.kubernetes.io/token",
            "stringData": {
                "token-id": id,
                "token-secret": secret,
                "expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
                "usage-bootstrap-authentication": "true",
                "usage-bootstrap-signing": "true",
            },
        });
        apply_one(&client, &serde_json::from_value(token)?).await.context("bootstrap token")?;
        layout.write_bootstrap_kubeconfig(config, &format!("{id}.{secret}"))?;
    }
    Ok(())
}

fn objects(text: &str) -> anyhow::Result<Vec<DynamicObject>> {
    use serde::Deserialize;
    serde_yaml_ng::Deserializer::from_str(text).map(|d| Ok(DynamicObject::deserialize(d)?)).collect()
}

async fn apply_one(client: &Client, object: &DynamicObject) -> anyhow::Result<()> {
    let types = object.types.as_ref().context("no apiVersion and kind")?;
    let gvk = GroupVersionKind::try_from(types)?;
    let (resource, _) = discovery::oneshot::pinned_kind(client, &gvk).await?;
    let name = object.metadata.name.as_deref().context("no name")?;
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(ns) => Api::namespaced_with(client.clone(), ns, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await?;
    Ok(())
}

fn random(length: usize) -> String {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn manifests_parse() {
        for (name, text) in super::MANIFESTS {
            let objects = super::objects(text).unwrap();
            assert!(!objects.is_empty(), "{name}");
            assert!(objects.iter().all(|o| o.types.is_some() && o.metadata.name.is_some()), "{name}");
        }
    }
}
