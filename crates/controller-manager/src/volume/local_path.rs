//! The local-path provisioner: volumes are folders on the node that runs a claim's first pod.
//!
//! It works as an external provisioner does: the volume controller asks by an annotation on the claim, and leaves
//! volumes that were made here to us when their claim is gone.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use pilothouse_client::events::reference;
use pilothouse_client::{EventRecorder, Informer, Queue, key_of};
use serde_json::json;

use super::matching::{claim_class, volume_phase};
use super::{PROVISIONED_BY, PROVISIONER, SELECTED_NODE};
use crate::context::Context;
use crate::control::has_code;

/// The provisioner's name in storage classes.
pub const NAME: &str = "pilothouse.io/local-path";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Claim(String),
    Volume(String),
}

struct Worker {
    client: Client,
    recorder: EventRecorder,
    dir: PathBuf,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
}

/// Starts the controller; does nothing without `--local-path-dir`.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let Some(dir) = context.config.local_path_dir.clone() else { return Ok(()) };
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        recorder: context.recorder(NAME),
        dir,
        claims: context.informer::<PersistentVolumeClaim>(),
        volumes: context.informer::<PersistentVolume>(),
        classes: context.informer::<StorageClass>(),
        nodes: context.informer::<Node>(),
    });
    let queue: Queue<Key> = Queue::with_backoff(Duration::from_millis(100), Duration::from_secs(60));
    let q = queue.clone();
    worker.claims.on_change(move |c| q.add(Key::Claim(key_of(&**c.object()))));
    let q = queue.clone();
    worker.volumes.on_change(move |c| q.add(Key::Volume(key_of(&**c.object()))));
    let stop = context.stop.clone();
    tokio::spawn(async move {
        worker.claims.wait_synced().await;
        worker.volumes.wait_synced().await;
        worker.classes.wait_synced().await;
        worker.nodes.wait_synced().await;
        queue.run("local-path", 2, stop, move |key| {
            let worker = worker.clone();
            async move {
                match key {
                    Key::Claim(k) => worker.provision(&k).await,
                    Key::Volume(k) => worker.reclaim(&k).await,
                }
                .map(|()| None::<Duration>)
            }
        });
    });
    Ok(())
}

/// Where a claim's volume is: named so that a person finds it.
fn path_of(dir: &Path, claim: &PersistentVolumeClaim) -> PathBuf {
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    let m = &claim.metadata;
    dir.join(format!("pvc-{}_{}_{}", text(&m.uid), text(&m.namespace), text(&m.name)))
}

/// The volume for a claim on a node.
fn make_volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    host_name: &str,
    path: &Path,
) -> Result<PersistentVolume, serde_json::Error> {
    let spec = claim.spec.clone().unwrap_or_default();
    let requested = spec.resources.and_then(|r| r.requests).and_then(|r| r.get("storage").cloned());
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": format!("pvc-{}", claim.metadata.uid.clone().unwrap_or_default()),
            "annotations": {PROVISIONED_BY: NAME},
        },
        "spec": {
            "capacity": {"storage": requested},
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into()),
            "storageClassName": class.metadata.name,
            "volumeMode": "Filesystem",
            "claimRef": reference(claim, &()),
            "hostPath": {"path": path, "type": "DirectoryOrCreate"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [host_name]}]}]}},
        },
    }))
}

impl Worker {
    async fn provision(&self, key: &str) -> Result<(), kube::Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        let annotation = |k: &str| claim.metadata.annotations.as_ref().and_then(|a| a.get(k));
        let bound =
            claim.spec.as_ref().is_some_and(|s| s.volume_name.as_deref().is_some_and(|n| !n.is_empty()));
        if bound
            || claim.metadata.deletion_timestamp.is_some()
            || annotation(PROVISIONER).map(String::as_str) != Some(NAME)
        {
            return Ok(());
        }
        let Some(class) = self.classes.get(claim_class(&claim)) else { return Ok(()) };
        let object = reference(&*claim, &());
        // A claim that is bound at once gets its folder on any node: the first there is.
        let node = match annotation(SELECTED_NODE) {
            Some(n) => self.nodes.get(n),
            None if class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer") => return Ok(()),
            None => self.nodes.list().into_iter().next(),
        };
        let Some(node) = node else {
            self.recorder.warning(&object, "ProvisioningFailed", "there is no node to make the volume on");
            return Ok(());
        };
        if claim.spec.as_ref().and_then(|s| s.volume_mode.as_deref()) == Some("Block") {
            let text = format!("{NAME} makes no volumes of mode Block");
            self.recorder.warning(&object, "ProvisioningFailed", text);
            return Ok(());
        }
        let path = path_of(&self.dir, &claim);
        if let Err(e) = std::fs::create_dir_all(&path)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)))
        {
            let text = format!("failed to provision volume: {}: {e}", path.display());
            self.recorder.warning(&object, "ProvisioningFailed", text);
            return Ok(());
        }
        let host_name = node
            .metadata
            .labels
            .as_ref()
            .and_then(|l| l.get("kubernetes.io/hostname").cloned())
            .or_else(|| node.metadata.name.clone())
            .unwrap_or_default();
        let volume = make_volume(&claim, &class, &host_name, &path).map_err(kube::Error::SerdeError)?;
        let name = volume.metadata.name.clone().unwrap_or_default();
        match Api::<PersistentVolume>::all(self.client.clone()).create(&PostParams::default(), &volume).await
        {
            Ok(_) => {
                let text = format!("Successfully provisioned volume {name}");
                self.recorder.normal(&object, "ProvisioningSucceeded", text);
                Ok(())
            }
            Err(e) if has_code(&e, 409) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Deletes a volume of ours whose claim is gone, folder first.
    async fn reclaim(&self, key: &str) -> Result<(), kube::Error> {
        let Some(volume) = self.volumes.get(key) else { return Ok(()) };
        let ours =
            volume.metadata.annotations.as_ref().and_then(|a| a.get(PROVISIONED_BY)).map(String::as_str);
        let spec = volume.spec.clone().unwrap_or_default();
        if ours != Some(NAME)
            || volume_phase(&volume) != "Released"
            || spec.persistent_volume_reclaim_policy.as_deref() != Some("Delete")
        {
            return Ok(());
        }
        // Only what is in our own folder is deleted, whatever the object says.
        let path = spec.host_path.map(|h| PathBuf::from(h.path)).filter(|p| p.parent() == Some(&self.dir));
        if let Some(path) = path {
            match std::fs::remove_dir_all(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    let text = format!("failed to delete volume: {}: {e}", path.display());
                    self.recorder.warning(&reference(&*volume, &()), "VolumeFailedDelete", text);
                    return Ok(());
                }
            }
        }
        match Api::<PersistentVolume>::all(self.client.clone()).delete(key, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_volume_is_the_claims_and_the_nodes() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"apiVersion": "v1",
            "kind": "PersistentVolumeClaim", "metadata": {"name": "www-web-0", "namespace": "default", "uid": "u1"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}))
        .unwrap();
        let class: StorageClass = serde_json::from_value(json!({"apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass", "metadata": {"name": "local-path"}, "provisioner": NAME}))
        .unwrap();
        let path = path_of(Path::new("/v"), &claim);
        assert_eq!(path, Path::new("/v/pvc-u1_default_www-web-0"));
        let v = make_volume(&claim, &class, "n1", &path).unwrap();
        assert_eq!(v.metadata.name.as_deref(), Some("pvc-u1"));
        let spec = v.spec.unwrap();
        assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some("u1"));
        assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
    }
}
