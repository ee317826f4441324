//! The volume expander. All that v1.20 expands by itself is clouds' volumes, which are not here; what is left to it is to
//! say that a claim that has grown waits for its volume's own resizer.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use pilothouse_apimachinery::quantity::Quantity;
use pilothouse_client::events::reference;
use pilothouse_client::{Change, Queue, key_of};

use super::matching::{claim_phase, is_for};
use crate::context::Context;

/// The minor release whose event says no more that a plug-in was looked for.
const PLAIN_SINCE: u32 = 27;

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let (claims, volumes) =
        (context.informer::<PersistentVolumeClaim>(), context.informer::<PersistentVolume>());
    let recorder = context.recorder("volume_expand");
    let queue: Queue<String> = Queue::new();
    let q = queue.clone();
    claims.on_change(move |c| {
        let asks = match c {
            Change::Added(new) => claim_phase(new) == "Bound",
            Change::Updated(old, new) => claim_phase(new) == "Bound" && has_grown(old, new),
            Change::Deleted(_) => false,
        };
        if asks {
            q.add(key_of(&**c.object()));
        }
    });
    let (stop, minor) = (context.stop.clone(), context.server_minor);
    tokio::spawn(async move {
        volumes.wait_synced().await;
        queue.run("persistentvolume-expander", 5, stop, move |key| {
            let claim = claims.get(&key);
            let name = claim.as_ref().and_then(|c| c.spec.as_ref()).and_then(|s| s.volume_name.clone());
            let volume = name.and_then(|n| volumes.get(&n));
            let recorder = recorder.clone();
            async move {
                let (Some(claim), Some(volume)) = (claim, volume) else { return Ok(None) };
                if !is_for(&volume, &claim) {
                    return Err(format!("persistent Volume is not bound to PVC being updated : {key}"));
                }
                if wants_more(&claim) {
                    let object = reference(&*claim, &());
                    if minor >= PLAIN_SINCE {
                        let text = "waiting for an external controller to expand this PVC";
                        recorder.normal(&object, "ExternalExpanding", text);
                    } else {
                        let text = "Ignoring the PVC: didn't find a plugin capable of expanding the volume; waiting for an external controller to process this PVC.";
                        recorder.warning(&object, "ExternalExpanding", text);
                    }
                }
                Ok(None)
            }
        });
    });
    Ok(())
}

fn requested(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage")?.0.parse().ok()
}

fn capacity(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    claim.status.as_ref()?.capacity.as_ref()?.get("storage")?.0.parse().ok()
}

/// Whether the user has asked for more than before.
fn has_grown(old: &PersistentVolumeClaim, new: &PersistentVolumeClaim) -> bool {
    requested(new).unwrap_or_default() > requested(old).unwrap_or_default()
}

/// Whether a claim asks for more than it has.
fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    requested(claim).unwrap_or_default() > capacity(claim).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(asked: &str, has: &str) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "ns"},
            "spec": {"resources": {"requests": {"storage": asked}}},
            "status": {"phase": "Bound", "capacity": {"storage": has}}}))
        .unwrap()
    }

    #[test]
    fn a_claim_grows_by_its_request() {
        assert!(wants_more(&claim("2Gi", "1Gi")));
        assert!(!wants_more(&claim("1Gi", "1024Mi")));
        assert!(has_grown(&claim("1Gi", "1Gi"), &claim("1100Mi", "1Gi")));
        assert!(!has_grown(&claim("1Gi", "1Gi"), &claim("1Gi", "2Gi")));
    }
}
