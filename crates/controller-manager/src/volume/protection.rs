//! Claims and volumes that are in use stay until they are not: their finalizers come off only then
//! (<https://kubernetes.io/docs/concepts/storage/persistent-volumes/#storage-object-in-use-protection>).

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::PostParams;
use pilothouse_client::{Change, Queue, key_of};

use super::matching::volume_phase;
use crate::context::Context;
use crate::control::has_code;

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

fn has(finalizers: Option<&Vec<String>>, name: &str) -> bool {
    finalizers.is_some_and(|f| f.iter().any(|f| f == name))
}

fn claims_of(pod: &Pod) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    pod.spec
        .iter()
        .flat_map(|s| s.volumes.iter().flatten())
        .filter_map(|v| v.persistent_volume_claim.as_ref())
        .map(|c| format!("{namespace}/{}", c.claim_name))
        .collect()
}

/// Whether a pod uses its claims: one that was never put on a node does not. One that has ended does, until it is gone.
fn uses(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).is_some_and(|n| !n.is_empty())
}

/// Starts the controller of claims.
pub async fn start_claims(context: Context) -> anyhow::Result<()> {
    let (claims, pods) = (context.informer::<PersistentVolumeClaim>(), context.informer::<Pod>());
    let queue: Queue<String> = Queue::new();
    let q = queue.clone();
    claims.on_change(move |c| q.add(key_of(&**c.object())));
    let q = queue.clone();
    pods.on_change(move |c: &Change<Pod>| {
        if matches!(c, Change::Deleted(_)) || !uses(c.object()) {
            claims_of(c.object()).into_iter().for_each(|k| q.add(k));
        }
    });
    let (client, stop) = (context.client.clone(), context.stop.clone());
    tokio::spawn(async move {
        pods.wait_synced().await;
        queue.run("pvc-protection", 2, stop, move |key| {
            let (client, claim, pods) = (client.clone(), claims.get(&key), pods.clone());
            async move {
                let Some(claim) = claim else { return Ok(None) };
                if claim.metadata.deletion_timestamp.is_none()
                    || !has(claim.metadata.finalizers.as_ref(), CLAIM)
                {
                    return Ok(None);
                }
                let Some((namespace, name)) = key.split_once('/') else { return Ok(None) };
                // The local copy of the pods may be behind: the server's list decides.
                let used = |p: &Pod| uses(p) && claims_of(p).contains(&key);
                if pods.list_namespace(namespace).iter().any(|p| used(p)) {
                    return Ok(None);
                }
                let live: Api<Pod> = Api::namespaced(client.clone(), namespace);
                if live.list(&Default::default()).await?.items.iter().any(used) {
                    return Ok(None);
                }
                let mut claim = (*claim).clone();
                if let Some(f) = &mut claim.metadata.finalizers {
                    f.retain(|f| f != CLAIM);
                }
                let api: Api<PersistentVolumeClaim> = Api::namespaced(client, namespace);
                match api.replace(name, &PostParams::default(), &claim).await {
                    Ok(_) => Ok(None),
                    Err(e) if has_code(&e, 404) => Ok(None),
                    Err(e) => Err(e),
                }
            }
        });
    });
    Ok(())
}

/// Starts the controller of volumes.
pub async fn start_volumes(context: Context) -> anyhow::Result<()> {
    let volumes = context.informer::<PersistentVolume>();
    let queue: Queue<String> = Queue::new();
    let q = queue.clone();
    volumes.on_change(move |c| q.add(key_of(&**c.object())));
    let client = context.client.clone();
    queue.run("pv-protection", 1, context.stop.clone(), move |name| {
        let (client, volume) = (client.clone(), volumes.get(&name));
        async move {
            let Some(volume) = volume else { return Ok(None) };
            let deleted = volume.metadata.deletion_timestamp.is_some();
            if !deleted
                || !has(volume.metadata.finalizers.as_ref(), VOLUME)
                || volume_phase(&volume) == "Bound"
            {
                return Ok(None);
            }
            let mut volume = (*volume).clone();
            if let Some(f) = &mut volume.metadata.finalizers {
                f.retain(|f| f != VOLUME);
            }
            match Api::<PersistentVolume>::all(client).replace(&name, &PostParams::default(), &volume).await {
                Ok(_) => Ok(None),
                Err(e) if has_code(&e, 404) => Ok(None),
                Err(e) => Err(e),
            }
        }
    });
    Ok(())
}
