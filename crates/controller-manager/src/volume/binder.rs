//! The persistent volume controller: ties claims and volumes together, and asks provisioners for volumes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
    PersistentVolumeStatus, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use pilothouse_client::events::reference;
use pilothouse_client::{EventRecorder, Informer, Queue, key_of};

use super::matching::{claim_class, claim_phase, find, is_for, misfit, volume_phase};
use super::reclaim;
use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER, PROVISIONER, PROVISIONER_GA, SELECTED_NODE};
use crate::context::Context;
use crate::control::has_code;

/// The provisioner of classes whose volumes only administrators make.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Claim(String),
    Volume(String),
}

struct Worker {
    client: Client,
    recorder: EventRecorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    server_minor: u32,
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        recorder: context.recorder("persistentvolume-controller"),
        claims: context.informer::<PersistentVolumeClaim>(),
        volumes: context.informer::<PersistentVolume>(),
        classes: context.informer::<StorageClass>(),
        pods: context.informer::<Pod>(),
        server_minor: context.server_minor,
    });
    let queue: Queue<Key> = Queue::with_backoff(Duration::from_millis(50), Duration::from_secs(60));
    let (q, volumes) = (queue.clone(), worker.volumes.clone());
    worker.claims.on_change(move |c| {
        let claim = c.object();
        q.add(Key::Claim(key_of(&**claim)));
        // A claim that comes or goes concerns the volumes that are kept for it.
        for v in volumes.list().iter().filter(|v| is_for(v, claim)) {
            q.add(Key::Volume(key_of(&**v)));
        }
    });
    let (q, claims) = (queue.clone(), worker.claims.clone());
    worker.volumes.on_change(move |c| {
        q.add(Key::Volume(key_of(&**c.object())));
        for claim in claims.list() {
            let unbound =
                claim.spec.as_ref().is_none_or(|s| s.volume_name.as_deref().unwrap_or_default().is_empty());
            let named = claim.spec.as_ref().and_then(|s| s.volume_name.clone()) == c.object().metadata.name;
            if unbound || named {
                q.add(Key::Claim(key_of(&*claim)));
            }
        }
    });
    let (q, claims) = (queue.clone(), worker.claims.clone());
    worker.classes.on_change(move |_| {
        for claim in claims.list().iter().filter(|c| claim_phase(c) != "Bound") {
            q.add(Key::Claim(key_of(&**claim)));
        }
    });
    let (stop, resync) = (context.stop.clone(), context.config.pv_resync_period);
    tokio::spawn(async move {
        worker.claims.wait_synced().await;
        worker.volumes.wait_synced().await;
        worker.classes.wait_synced().await;
        worker.pods.wait_synced().await;
        let (q, w, s) = (queue.clone(), worker.clone(), stop.clone());
        // Waiting claims say again and again why they wait.
        tokio::spawn(async move {
            while !resync.is_zero() {
                tokio::select! { _ = s.wait() => return, _ = tokio::time::sleep(resync) => {} }
                w.claims.list().iter().for_each(|c| q.add(Key::Claim(key_of(&**c))));
                w.volumes.list().iter().for_each(|v| q.add(Key::Volume(key_of(&**v))));
            }
        });
        // One at a time: two claims must not choose one volume.
        queue.run("persistentvolume-binder", 1, stop, move |key| {
            let worker = worker.clone();
            async move {
                match key {
                    Key::Claim(k) => worker.sync_claim(&k).await,
                    Key::Volume(k) => worker.sync_volume(&k).await,
                }
                .map(|()| None::<Duration>)
            }
        });
    });
    Ok(())
}

fn annotation<'a>(meta: &'a kube::api::ObjectMeta, key: &str) -> Option<&'a String> {
    meta.annotations.as_ref().and_then(|a| a.get(key))
}

impl Worker {
    fn claim_api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), claim.metadata.namespace.as_deref().unwrap_or_default())
    }

    async fn sync_claim(&self, key: &str) -> Result<(), kube::Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        if annotation(&claim.metadata, BIND_COMPLETED).is_some() {
            return self.sync_bound_claim(&claim).await;
        }
        let chosen = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| !n.is_empty());
        match chosen {
            Some(name) => match self.volumes.get(&name) {
                None => self.set_claim_phase(&claim, "Pending", None).await.map(|_| ()),
                Some(v) if v.spec.as_ref().is_none_or(|s| s.claim_ref.is_none()) => {
                    match misfit(&v, &claim) {
                        Some(why) => {
                            let text = format!("Cannot bind to requested volume {name:?}: {why}");
                            self.recorder.warning(&reference(&*claim, &()), "VolumeMismatch", text);
                            self.set_claim_phase(&claim, "Pending", None).await.map(|_| ())
                        }
                        None => self.bind(&v, &claim).await,
                    }
                }
                Some(v) if is_for(&v, &claim) => self.bind(&v, &claim).await,
                Some(_) => {
                    let by_us = annotation(&claim.metadata, BOUND_BY_CONTROLLER).is_some();
                    if !by_us {
                        let text = format!("volume {name:?} already bound to a different claim.");
                        self.recorder.warning(&reference(&*claim, &()), "FailedBinding", text);
                    }
                    self.set_claim_phase(&claim, "Pending", None).await.map(|_| ())
                }
            },
            None => self.sync_unbound_claim(&claim).await,
        }
    }

    async fn sync_unbound_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), kube::Error> {
        let class_name = claim_class(claim);
        let class = self.classes.get(class_name);
        let waits =
            class.as_ref().and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
        let delayed = waits && annotation(&claim.metadata, SELECTED_NODE).is_none();
        if let Some(v) = find(claim, &self.volumes.list(), delayed) {
            return self.bind(&v, claim).await;
        }
        let object = reference(claim, &());
        if delayed {
            if let Some(pod) = self.waiting_pod(claim) {
                let text = format!("waiting for pod {pod} to be scheduled");
                self.recorder.normal(&object, "WaitForPodScheduled", text);
            } else {
                let text = "waiting for first consumer to be created before binding";
                self.recorder.normal(&object, "WaitForFirstConsumer", text);
            }
        } else if !class_name.is_empty() {
            return self.provision(claim, class_name, class.as_deref(), &object).await;
        } else {
            let text = "no persistent volumes available for this claim and no storage class is set";
            self.recorder.normal(&object, "FailedBinding", text);
        }
        self.set_claim_phase(claim, "Pending", None).await.map(|_| ())
    }

    /// A pod that uses the claim and has no node yet.
    fn waiting_pod(&self, claim: &PersistentVolumeClaim) -> Option<String> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let uses = |p: &Pod| {
            p.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| {
                v.persistent_volume_claim.as_ref().map(|c| &c.claim_name) == claim.metadata.name.as_ref()
            })
        };
        self.pods
            .list_namespace(namespace)
            .into_iter()
            .find(|p| {
                uses(p)
                    && p.spec.as_ref().is_none_or(|s| s.node_name.as_deref().unwrap_or_default().is_empty())
            })
            .and_then(|p| p.metadata.name.clone())
    }

    /// Asks the class's provisioner for a volume, by an annotation.
    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class_name: &str,
        class: Option<&StorageClass>,
        object: &ObjectReference,
    ) -> Result<(), kube::Error> {
        let Some(class) = class else {
            let text = format!("storageclass.storage.k8s.io {class_name:?} not found");
            self.recorder.warning(object, "ProvisioningFailed", text);
            return self.set_claim_phase(claim, "Pending", None).await.map(|_| ());
        };
        if class.provisioner == NO_PROVISIONER {
            let text = "no volume plugin matched";
            self.recorder.warning(object, "ProvisioningFailed", text);
            return self.set_claim_phase(claim, "Pending", None).await.map(|_| ());
        }
        let mut claim = claim.clone();
        let annotations = claim.metadata.annotations.get_or_insert_default();
        let mut changed = false;
        let keys: &[&str] =
            if self.server_minor >= 23 { &[PROVISIONER, PROVISIONER_GA] } else { &[PROVISIONER] };
        for key in keys {
            changed |= annotations.insert((*key).to_string(), class.provisioner.clone()).as_ref()
                != Some(&class.provisioner);
        }
        if changed {
            let name = claim.metadata.name.clone().unwrap_or_default();
            claim = match self.claim_api(&claim).replace(&name, &PostParams::default(), &claim).await {
                Ok(c) => c,
                Err(e) if has_code(&e, 404) => return Ok(()),
                Err(e) => return Err(e),
            };
        }
        let text = if self.server_minor >= 29 {
            format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.",
                class.provisioner
            )
        } else {
            format!(
                "waiting for a volume to be created, either by external provisioner {:?} or manually created by system administrator",
                class.provisioner
            )
        };
        self.recorder.normal(object, "ExternalProvisioning", text);
        self.set_claim_phase(&claim, "Pending", None).await.map(|_| ())
    }

    async fn sync_bound_claim(&self, claim: &PersistentVolumeClaim) -> Result<(), kube::Error> {
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
        let lost = |reason: &'static str, text: &'static str| async move {
            if claim_phase(claim) != "Lost" {
                self.recorder.warning(&reference(claim, &()), reason, text);
            }
            self.set_claim_phase(claim, "Lost", None).await.map(|_| ())
        };
        if name.is_empty() {
            return lost(
                "ClaimLost",
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            )
            .await;
        }
        match self.volumes.get(&name) {
            None => {
                lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
                    .await
            }
            Some(v) if v.spec.as_ref().is_none_or(|s| s.claim_ref.is_none()) || is_for(&v, claim) => {
                self.bind(&v, claim).await
            }
            Some(_) => {
                lost(
                    "ClaimMisbound",
                    "Two claims are bound to the same volume, this one is bound incorrectly",
                )
                .await
            }
        }
    }

    /// Writes, each only where it is missing: the volume's reference to the claim, the volume's phase, the claim's
    /// reference to the volume, the claim's phase. A stop in between is made good by the next sync.
    async fn bind(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<(), kube::Error> {
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let volume_name = volume.metadata.name.clone().unwrap_or_default();
        let mut volume = volume.clone();
        let complete = is_for(&volume, claim)
            && volume
                .spec
                .as_ref()
                .and_then(|s| s.claim_ref.as_ref())
                .is_some_and(|r| r.uid == claim.metadata.uid);
        if !complete {
            let spec = volume.spec.get_or_insert_default();
            if spec.claim_ref.is_none() {
                volume
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(BOUND_BY_CONTROLLER.into(), "yes".into());
            }
            spec.claim_ref = Some(reference(claim, &()));
            volume = volumes.replace(&volume_name, &PostParams::default(), &volume).await?;
        }
        let volume = self.set_volume_phase(volume, "Bound").await?;
        let mut claim = claim.clone();
        let spec = claim.spec.get_or_insert_default();
        let mut changed = false;
        let annotations = claim.metadata.annotations.get_or_insert_default();
        if spec.volume_name.as_deref().unwrap_or_default() != volume_name {
            spec.volume_name = Some(volume_name);
            annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
            changed = true;
        }
        changed |= annotations.insert(BIND_COMPLETED.into(), "yes".into()).is_none();
        if changed {
            let name = claim.metadata.name.clone().unwrap_or_default();
            claim = match self.claim_api(&claim).replace(&name, &PostParams::default(), &claim).await {
                Ok(c) => c,
                Err(e) if has_code(&e, 404) => return Ok(()),
                Err(e) => return Err(e),
            };
        }
        self.set_claim_phase(&claim, "Bound", Some(&volume)).await.map(|_| ())
    }

    async fn set_claim_phase(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<PersistentVolumeClaim, kube::Error> {
        let mut claim = claim.clone();
        let old = claim.status.clone().unwrap_or_default();
        let status = PersistentVolumeClaimStatus {
            phase: Some(phase.into()),
            access_modes: volume.and_then(|v| v.spec.as_ref()).and_then(|s| s.access_modes.clone()),
            // A volume that has grown is the resizer's business: a bound claim keeps the size it knows.
            capacity: match volume {
                Some(v) if old.phase.as_deref() == Some("Bound") => {
                    old.capacity.clone().or_else(|| v.spec.as_ref().and_then(|s| s.capacity.clone()))
                }
                Some(v) => v.spec.as_ref().and_then(|s| s.capacity.clone()),
                None => None,
            },
            ..old.clone()
        };
        if claim.status.as_ref() == Some(&status) {
            return Ok(claim);
        }
        claim.status = Some(status);
        let name = claim.metadata.name.clone().unwrap_or_default();
        match self.claim_api(&claim).replace_status(&name, &PostParams::default(), &claim).await {
            Ok(c) => Ok(c),
            Err(e) if has_code(&e, 404) => Ok(claim),
            Err(e) => Err(e),
        }
    }

    async fn set_volume_phase(
        &self,
        volume: PersistentVolume,
        phase: &str,
    ) -> Result<PersistentVolume, kube::Error> {
        if volume_phase(&volume) == phase {
            return Ok(volume);
        }
        let mut volume = volume;
        volume.status = Some(PersistentVolumeStatus { phase: Some(phase.into()), ..Default::default() });
        let name = volume.metadata.name.clone().unwrap_or_default();
        Api::<PersistentVolume>::all(self.client.clone())
            .replace_status(&name, &PostParams::default(), &volume)
            .await
    }

    async fn sync_volume(&self, key: &str) -> Result<(), kube::Error> {
        let Some(volume) = self.volumes.get(key) else { return Ok(()) };
        let Some(claim_ref) = volume.spec.as_ref().and_then(|s| s.claim_ref.clone()) else {
            return self.set_volume_phase((*volume).clone(), "Available").await.map(|_| ());
        };
        // Kept for a claim that has not taken it yet.
        let Some(uid) = claim_ref.uid.clone().filter(|u| !u.is_empty()) else {
            return self.set_volume_phase((*volume).clone(), "Available").await.map(|_| ());
        };
        let namespace = claim_ref.namespace.clone().unwrap_or_default();
        let name = claim_ref.name.clone().unwrap_or_default();
        let mut claim = self.claims.get(&format!("{namespace}/{name}")).map(|c| (*c).clone());
        if claim.is_none() && !matches!(volume_phase(&volume), "Released" | "Failed") {
            // The copy may be behind a claim that was just made: only the server knows that it is gone.
            claim = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), &namespace)
                .get_opt(&name)
                .await?;
        }
        match claim.filter(|c| c.metadata.uid.as_ref() == Some(&uid)) {
            None => {
                let released = if matches!(volume_phase(&volume), "Released" | "Failed") {
                    (*volume).clone()
                } else {
                    self.set_volume_phase((*volume).clone(), "Released").await?
                };
                self.reclaim(&released).await
            }
            Some(c) => {
                let bound_to = c.spec.as_ref().and_then(|s| s.volume_name.clone()).unwrap_or_default();
                if bound_to == key {
                    return self.set_volume_phase((*volume).clone(), "Bound").await.map(|_| ());
                }
                if !bound_to.is_empty() && annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some() {
                    // The claim went to another volume: this one is free again.
                    let mut freed = (*volume).clone();
                    if let Some(s) = &mut freed.spec {
                        s.claim_ref = None;
                    }
                    if let Some(a) = &mut freed.metadata.annotations {
                        a.remove(BOUND_BY_CONTROLLER);
                    }
                    let freed = Api::<PersistentVolume>::all(self.client.clone())
                        .replace(key, &PostParams::default(), &freed)
                        .await?;
                    return self.set_volume_phase(freed, "Available").await.map(|_| ());
                }
                Ok(())
            }
        }
    }

    /// What becomes of a volume whose claim is gone. Volumes that a provisioner made are its to delete.
    async fn reclaim(&self, volume: &PersistentVolume) -> Result<(), kube::Error> {
        let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        match policy {
            Some("Delete") => match reclaim::delete(volume).await {
                Ok(true) => {
                    let name = volume.metadata.name.as_deref().unwrap_or_default();
                    let api: Api<PersistentVolume> = Api::all(self.client.clone());
                    match api.delete(name, &DeleteParams::default()).await {
                        Ok(_) => Ok(()),
                        Err(e) if has_code(&e, 404) => Ok(()),
                        Err(e) => Err(e),
                    }
                }
                Ok(false) => Ok(()),
                Err(text) => self.fail_volume(volume, "VolumeFailedDelete", text).await,
            },
            Some("Recycle") => {
                let text = "No recycler plugin found for the volume!";
                self.fail_volume(volume, "VolumeFailedRecycle", text.into()).await
            }
            Some("Retain") | None => Ok(()),
            Some(_) => {
                let text = "Volume has an unrecognized reclaim policy";
                self.fail_volume(volume, "VolumeUnknownReclaimPolicy", text.into()).await
            }
        }
    }

    /// Marks a volume as failed, with an event the first time.
    async fn fail_volume(
        &self,
        volume: &PersistentVolume,
        reason: &str,
        text: String,
    ) -> Result<(), kube::Error> {
        if volume_phase(volume) == "Failed" {
            return Ok(());
        }
        let mut failed = volume.clone();
        failed.status = Some(PersistentVolumeStatus {
            phase: Some("Failed".into()),
            message: Some(text.clone()),
            ..Default::default()
        });
        let name = failed.metadata.name.clone().unwrap_or_default();
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        api.replace_status(&name, &PostParams::default(), &failed).await?;
        self.recorder.warning(&reference(volume, &()), reason, text);
        Ok(())
    }
}
