//! The attach/detach controller, for CSI volumes: a `VolumeAttachment` for each volume and node that a pod brings
//! together; the driver's attacher does the rest and says so in its status. What is attached goes into the node's status,
//! where the kubelet looks before it mounts.
//!
//! <https://kubernetes-csi.github.io/docs/external-attacher.html>

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    AttachedVolume, Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::{
    CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec,
};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_client::events::reference;
use pilothouse_client::{EventRecorder, Informer, Queue};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::matching::{claim_phase, is_for};
use crate::context::Context;
use crate::control::{has_code, is_terminal, message};

/// On nodes whose kubelet leaves attaching to us.
const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
/// On nodes whose kubelet keeps the volumes of pods that have ended.
const KEEP_TERMINATED: &str = "volumes.kubernetes.io/keep-terminated-pod-volumes";
/// For so long a volume that a node still uses is not detached.
const MAX_WAIT_FOR_UNMOUNT: Duration = Duration::from_secs(360);
/// Changes are taken together for so long.
const PERIOD: Duration = Duration::from_millis(100);

/// A volume that is to be on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    node: String,
    volume: String,
}

/// What is known of a volume on a node.
#[derive(Debug, Clone, PartialEq)]
struct Use {
    driver: String,
    handle: String,
    /// Who uses it there.
    pods: Vec<ObjectReference>,
    /// Whether it may be on one node only.
    alone: bool,
}

/// As nodes' statuses name a volume.
fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The name of a volume's attachment to a node, as the original makes it.
fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let hash = Sha256::digest(format!("{handle}{driver}{node}"));
    let hex: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    format!("csi-{hex}")
}

/// The world as the local copies have it.
struct View<'a> {
    pods: &'a [Arc<Pod>],
    nodes: &'a [Arc<Node>],
    claims: &'a Informer<PersistentVolumeClaim>,
    volumes: &'a Informer<PersistentVolume>,
    drivers: &'a Informer<CSIDriver>,
}

fn annotated(node: &Node, key: &str) -> bool {
    node.metadata.annotations.as_ref().and_then(|a| a.get(key)).is_some_and(|v| v == "true")
}

/// Which volumes are to be where.
fn wanted(view: &View<'_>) -> BTreeMap<Place, Use> {
    let nodes: BTreeMap<&str, &Arc<Node>> =
        view.nodes.iter().map(|n| (n.metadata.name.as_deref().unwrap_or_default(), n)).collect();
    let mut all: BTreeMap<Place, Use> = BTreeMap::new();
    for pod in view.pods {
        let Some(spec) = &pod.spec else { continue };
        let Some(node) =
            spec.node_name.as_deref().and_then(|n| nodes.get(n)).filter(|n| annotated(n, MANAGED))
        else {
            continue;
        };
        if is_terminal(pod) && !annotated(node, KEEP_TERMINATED) {
            continue;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for source in spec.volumes.iter().flatten().filter_map(|v| v.persistent_volume_claim.as_ref()) {
            let Some(claim) = view.claims.get(&format!("{namespace}/{}", source.claim_name)) else {
                continue;
            };
            let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
            let Some(volume) =
                view.volumes.get(&name).filter(|v| claim_phase(&claim) == "Bound" && is_for(v, &claim))
            else {
                continue;
            };
            let Some((csi, modes)) =
                volume.spec.as_ref().and_then(|s| Some((s.csi.as_ref()?, &s.access_modes)))
            else {
                continue;
            };
            let driver = view.drivers.get(&csi.driver);
            if driver.is_some_and(|d| d.spec.attach_required == Some(false)) {
                continue;
            }
            let alone = !modes.iter().flatten().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany");
            let place = Place { node: node.metadata.name.clone().unwrap_or_default(), volume: name };
            all.entry(place)
                .or_insert_with(|| Use {
                    driver: csi.driver.clone(),
                    handle: csi.volume_handle.clone(),
                    pods: Vec::new(),
                    alone,
                })
                .pods
                .push(reference(&**pod, &()));
        }
    }
    all
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// Attachments to make.
    attach: Vec<(Place, Use)>,
    /// Volumes that must first leave another node.
    blocked: Vec<(Place, Use)>,
    /// Attachments that nobody needs, by name.
    detach: Vec<(String, Place)>,
}

fn place_of(attachment: &VolumeAttachment) -> Option<Place> {
    let volume = attachment.spec.source.persistent_volume_name.clone()?;
    Some(Place { node: attachment.spec.node_name.clone(), volume })
}

fn attached(attachment: &VolumeAttachment) -> bool {
    attachment.status.as_ref().is_some_and(|s| s.attached) && attachment.metadata.deletion_timestamp.is_none()
}

/// Decides from what is wanted and what attachments there are. `in_use`: whether a node still uses what is at a place.
fn plan(
    wanted: &BTreeMap<Place, Use>,
    attachments: &[Arc<VolumeAttachment>],
    in_use: impl Fn(&Place) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    let there: BTreeSet<Place> = attachments.iter().filter_map(|a| place_of(a)).collect();
    for (place, usage) in wanted.iter().filter(|(p, _)| !there.contains(p)) {
        let elsewhere = there.iter().any(|p| p.volume == place.volume);
        if usage.alone && elsewhere {
            plan.blocked.push((place.clone(), usage.clone()));
        } else {
            plan.attach.push((place.clone(), usage.clone()));
        }
    }
    for a in attachments.iter().filter(|a| a.metadata.deletion_timestamp.is_none()) {
        let Some(place) = place_of(a) else { continue };
        if !wanted.contains_key(&place) && !in_use(&place) {
            plan.detach.push((a.metadata.name.clone().unwrap_or_default(), place));
        }
    }
    plan
}

struct Worker {
    client: Client,
    recorder: EventRecorder,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    drivers: Informer<CSIDriver>,
    attachments: Informer<VolumeAttachment>,
    /// Since when a place is no longer wanted although its node uses it.
    leaving: Mutex<BTreeMap<Place, Instant>>,
    /// What users have been told, so that they are told once.
    told: Mutex<BTreeSet<(Place, &'static str)>>,
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        recorder: context.recorder("attachdetach-controller"),
        pods: context.informer::<Pod>(),
        nodes: context.informer::<Node>(),
        claims: context.informer::<PersistentVolumeClaim>(),
        volumes: context.informer::<PersistentVolume>(),
        drivers: context.informer::<CSIDriver>(),
        attachments: context.informer::<VolumeAttachment>(),
        leaving: Mutex::default(),
        told: Mutex::default(),
    });
    // All places are looked at together: one key.
    let queue: Queue<()> = Queue::new();
    macro_rules! look_on_change {
        ($($informer:ident),+) => {
            $(let q = queue.clone();
            worker.$informer.on_change(move |_| q.add_after((), PERIOD));)+
        };
    }
    look_on_change!(claims, volumes, drivers, attachments);
    let q = queue.clone();
    worker.pods.on_change(move |c| {
        let spec = c.object().spec.as_ref();
        if spec.is_some_and(|s| s.volumes.iter().flatten().any(|v| v.persistent_volume_claim.is_some())) {
            q.add_after((), PERIOD);
        }
    });
    let (q, attachments) = (queue.clone(), worker.attachments.clone());
    worker.nodes.on_change(move |_| {
        if !attachments.is_empty() {
            q.add_after((), PERIOD);
        }
    });
    let stop = context.stop.clone();
    tokio::spawn(async move {
        worker.pods.wait_synced().await;
        worker.nodes.wait_synced().await;
        worker.claims.wait_synced().await;
        worker.volumes.wait_synced().await;
        worker.drivers.wait_synced().await;
        worker.attachments.wait_synced().await;
        queue.run("attachdetach", 1, stop, move |()| {
            let worker = worker.clone();
            async move { worker.sync().await }
        });
    });
    Ok(())
}

impl Worker {
    async fn sync(&self) -> Result<Option<Duration>, kube::Error> {
        let (pods, nodes) = (self.pods.list(), self.nodes.list());
        let view = View {
            pods: &pods,
            nodes: &nodes,
            claims: &self.claims,
            volumes: &self.volumes,
            drivers: &self.drivers,
        };
        let wanted = wanted(&view);
        let attachments = self.attachments.list();
        let names: BTreeMap<Place, String> = attachments
            .iter()
            .filter_map(|a| Some((place_of(a)?, self.unique_name(&a.spec.attacher, &place_of(a)?.volume)?)))
            .collect();
        let now = Instant::now();
        let in_use = |place: &Place| {
            let used = names.get(place).is_some_and(|name| {
                nodes.iter().any(|n| {
                    n.metadata.name.as_deref() == Some(&place.node)
                        && n.status.iter().flat_map(|s| s.volumes_in_use.iter().flatten()).any(|v| v == name)
                })
            });
            let mut leaving = self.leaving.lock();
            let since = *leaving.entry(place.clone()).or_insert(now);
            used && now.duration_since(since) < MAX_WAIT_FOR_UNMOUNT
        };
        let plan = plan(&wanted, &attachments, in_use);
        self.leaving.lock().retain(|p, _| !wanted.contains_key(p) && names.contains_key(p));
        self.told.lock().retain(|(p, _)| wanted.contains_key(p));
        // Nodes hear first that a volume goes: a kubelet must not mount what is being detached.
        let leaving: BTreeSet<&Place> = plan.detach.iter().map(|(_, p)| p).collect();
        self.report(&nodes, &attachments, &names, &leaving).await?;
        for (place, usage) in &plan.blocked {
            self.tell(place, usage, "Warning", "FailedAttachVolume", || {
                format!(
                    "Multi-Attach error for volume {:?} Volume is already exclusively attached to one node and can't be attached to another",
                    place.volume
                )
            });
        }
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        for (place, usage) in &plan.attach {
            let new = attachment(place, usage);
            match api.create(&PostParams::default(), &new).await {
                Ok(_) => {}
                Err(e) if has_code(&e, 409) => {}
                Err(e) => {
                    self.tell(place, usage, "Warning", "FailedAttachVolume", || {
                        format!("AttachVolume.Attach failed for volume {:?} : {}", place.volume, message(&e))
                    });
                    return Err(e);
                }
            }
        }
        for a in attachments.iter().filter(|a| attached(a)) {
            let Some(place) = place_of(a) else { continue };
            let Some(usage) = wanted.get(&place) else { continue };
            self.tell(&place, usage, "Normal", "SuccessfulAttachVolume", || {
                format!("AttachVolume.Attach succeeded for volume {:?} ", place.volume)
            });
        }
        for (name, _) in &plan.detach {
            match api.delete(name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(e) if has_code(&e, 404) => {}
                Err(e) => return Err(e),
            }
        }
        let waiting = !self.leaving.lock().is_empty();
        Ok(waiting.then_some(Duration::from_secs(10)))
    }

    fn unique_name(&self, driver: &str, volume: &str) -> Option<String> {
        let volume = self.volumes.get(volume)?;
        let handle = &volume.spec.as_ref()?.csi.as_ref()?.volume_handle;
        Some(unique_name(driver, handle))
    }

    fn tell(
        &self,
        place: &Place,
        usage: &Use,
        type_: &str,
        reason: &'static str,
        text: impl FnOnce() -> String,
    ) {
        if !self.told.lock().insert((place.clone(), reason)) {
            return;
        }
        let text = text();
        for pod in &usage.pods {
            match type_ {
                "Normal" => self.recorder.normal(pod, reason, text.clone()),
                _ => self.recorder.warning(pod, reason, text.clone()),
            }
        }
    }

    /// Writes what is attached into the nodes' statuses.
    async fn report(
        &self,
        nodes: &[Arc<Node>],
        attachments: &[Arc<VolumeAttachment>],
        names: &BTreeMap<Place, String>,
        leaving: &BTreeSet<&Place>,
    ) -> Result<(), kube::Error> {
        for node in nodes.iter().filter(|n| annotated(n, MANAGED)) {
            let name = node.metadata.name.clone().unwrap_or_default();
            let here: BTreeSet<String> = attachments
                .iter()
                .filter(|a| a.spec.node_name == name && attached(a))
                .filter_map(|a| place_of(a))
                .filter(|p| !leaving.contains(p))
                .filter_map(|p| names.get(&p).cloned())
                .collect();
            let told: BTreeSet<String> = node
                .status
                .iter()
                .flat_map(|s| s.volumes_attached.iter().flatten())
                .map(|v| v.name.clone())
                .collect();
            if here == told {
                continue;
            }
            let list: Vec<AttachedVolume> =
                here.into_iter().map(|name| AttachedVolume { name, device_path: String::new() }).collect();
            let patch = json!({"status": {"volumesAttached": list}});
            let api: Api<Node> = Api::all(self.client.clone());
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {}
                Err(e) if has_code(&e, 404) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn attachment(place: &Place, usage: &Use) -> VolumeAttachment {
    VolumeAttachment {
        metadata: ObjectMeta {
            name: Some(attachment_name(&usage.handle, &usage.driver, &place.node)),
            ..Default::default()
        },
        spec: VolumeAttachmentSpec {
            attacher: usage.driver.clone(),
            node_name: place.node.clone(),
            source: VolumeAttachmentSource {
                persistent_volume_name: Some(place.volume.clone()),
                ..Default::default()
            },
        },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;

    fn from<T: DeserializeOwned>(v: serde_json::Value) -> T {
        serde_json::from_value(v).unwrap()
    }

    fn pod(name: &str, node: &str, phase: &str) -> Arc<Pod> {
        Arc::new(from(json!({"metadata": {"name": name, "namespace": "ns"},
            "spec": {"nodeName": node, "containers": [],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
            "status": {"phase": phase}})))
    }

    fn node(name: &str) -> Arc<Node> {
        Arc::new(from(json!({"metadata": {"name": name, "annotations": {MANAGED: "true"}}})))
    }

    fn want(pods: &[Arc<Pod>], mode: &str, attach_required: bool) -> BTreeMap<Place, Use> {
        let (claims, volumes, drivers) = (Informer::new(), Informer::new(), Informer::new());
        claims.apply(from(json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"},
            "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}})));
        volumes.apply(from(json!({"metadata": {"name": "pv"}, "spec": {"accessModes": [mode],
            "claimRef": {"name": "c", "namespace": "ns", "uid": "u"},
            "csi": {"driver": "d.example.com", "volumeHandle": "h"}}})));
        drivers.apply(from(
            json!({"metadata": {"name": "d.example.com"}, "spec": {"attachRequired": attach_required}}),
        ));
        let nodes = [node("a"), node("b")];
        wanted(&View { pods, nodes: &nodes, claims: &claims, volumes: &volumes, drivers: &drivers })
    }

    fn there(node: &str) -> Arc<VolumeAttachment> {
        Arc::new(from(json!({"metadata": {"name": format!("csi-{node}")},
            "spec": {"attacher": "d.example.com", "nodeName": node, "source": {"persistentVolumeName": "pv"}},
            "status": {"attached": true}})))
    }

    fn place(node: &str) -> Place {
        Place { node: node.into(), volume: "pv".into() }
    }

    #[test]
    fn pods_bring_volumes_to_nodes() {
        let pods = [pod("x", "a", "Running"), pod("y", "a", "Pending"), pod("z", "b", "Succeeded")];
        let all = want(&pods, "ReadWriteOnce", true);
        assert_eq!(all.keys().cloned().collect::<Vec<_>>(), [place("a")]);
        assert_eq!(all[&place("a")].pods.len(), 2);
        let used = &all[&place("a")];
        assert_eq!(unique_name(&used.driver, &used.handle), "kubernetes.io/csi/d.example.com^h");
        assert!(want(&pods, "ReadWriteOnce", false).is_empty());
    }

    #[test]
    fn attaches_once_and_detaches_what_nobody_uses() {
        let all = want(&[pod("x", "a", "Running")], "ReadWriteOnce", true);
        let p = plan(&all, &[], |_| false);
        assert_eq!((p.attach.len(), p.detach.len()), (1, 0));
        assert_eq!(plan(&all, &[there("a")], |_| false), Plan::default());
        let p = plan(&BTreeMap::new(), &[there("a")], |_| false);
        assert_eq!(p.detach, [("csi-a".to_string(), place("a"))]);
        assert_eq!(plan(&BTreeMap::new(), &[there("a")], |_| true), Plan::default());
    }

    #[test]
    fn one_node_at_a_time_where_the_volume_says_so() {
        let all = want(&[pod("x", "b", "Running")], "ReadWriteOnce", true);
        let p = plan(&all, &[there("a")], |_| true);
        assert_eq!((p.attach.len(), p.blocked.len()), (0, 1));
        let all = want(&[pod("x", "b", "Running")], "ReadWriteMany", true);
        assert_eq!(plan(&all, &[there("a")], |_| true).attach.len(), 1);
    }

    #[test]
    fn attachments_have_the_originals_names() {
        let hash = "9072ed11cc1acb5fa433a877ff339b6311d013f33bddd1d0092711a8ace5b16d";
        assert_eq!(attachment_name("h", "d", "n"), format!("csi-{hash}"));
    }
}
