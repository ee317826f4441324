//! `VolumeBinding`: a pod's claims must have volumes that its node can use. Claims that waited for the pod get theirs
//! now: a volume that is there, or one that is made for the node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use parking_lot::Mutex;
use pilothouse_client::key_of;
use tokio::time::Instant;

use crate::cache::Cluster;
use crate::framework::{Code, Filter, FilterPlugin, Status};
use crate::listers::Listers;
use crate::profile::{Reservation, ReservePlugin};
use crate::types::{NodeInfo, PodInfo, whole};
use crate::volumes::{self, BOUND_BY_CONTROLLER, NO_PROVISIONER, SELECTED_NODE};
use crate::writer::Writer;

const NODE_CONFLICT: &str = "node(s) had volume node affinity conflict";
const BIND_CONFLICT: &str = "node(s) didn't find available persistent volumes to bind";
const NO_VOLUME: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// How often the wait for volumes looks, besides at changes.
const LOOK: Duration = Duration::from_millis(250);

/// What pods that are being bound have been promised.
#[derive(Debug, Default)]
struct Promises {
    /// Volumes, with the claims that get them.
    volumes: HashMap<String, String>,
    /// Claims, with the nodes for which their volumes are made.
    claims: HashMap<String, String>,
}

/// See the module.
#[derive(Clone)]
pub struct VolumeBinding {
    promises: Arc<Mutex<Promises>>,
    /// How long binding may take.
    pub timeout: Duration,
}

impl Default for VolumeBinding {
    fn default() -> Self {
        VolumeBinding { promises: Arc::default(), timeout: Duration::from_secs(600) }
    }
}

/// The claims of a pod.
#[derive(Clone, Default)]
struct Claims {
    bound: Vec<Arc<PersistentVolumeClaim>>,
    /// Without volume until the pod has a node; smallest first.
    waiting: Vec<Arc<PersistentVolumeClaim>>,
}

/// What is to be done for a pod on a node.
#[derive(Default)]
struct Plan {
    bind: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    provision: Vec<Arc<PersistentVolumeClaim>>,
}

impl Claims {
    fn of(pod: &PodInfo, cluster: &Cluster) -> Result<Claims, Status> {
        let mut claims = Claims::default();
        let mut immediate = false;
        for name in volumes::claims_of(pod) {
            let Some(claim) = cluster.listers.claims.get(&format!("{}/{name}", pod.namespace)) else {
                return Err(Status::unresolvable(format!("persistentvolumeclaim {name:?} not found")));
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(Status::unresolvable(format!("persistentvolumeclaim {name:?} is being deleted")));
            }
            if volumes::is_bound(&claim) {
                claims.bound.push(claim);
                continue;
            }
            let class = cluster.listers.classes.get(volumes::class_of(&claim));
            let waits = class.is_some_and(|c| volumes::waits(&c)) && volumes::volume_name(&claim).is_none();
            if waits { claims.waiting.push(claim) } else { immediate = true }
        }
        if immediate {
            return Err(Status::unresolvable("pod has unbound immediate PersistentVolumeClaims"));
        }
        let size = |c: &Arc<PersistentVolumeClaim>| {
            let requests = c.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref());
            requests.and_then(|r| r.get("storage")).map_or(0, whole)
        };
        claims.waiting.sort_by_key(size);
        Ok(claims)
    }

    /// What would have to be done on a node, or why it does not do.
    fn plan(&self, promises: &Promises, node: &NodeInfo, cluster: &Cluster) -> Result<Plan, Status> {
        let mut reasons = Vec::new();
        for claim in &self.bound {
            match volumes::volume_name(claim).and_then(|n| cluster.listers.volumes.get(n)) {
                None => reasons.push(NO_VOLUME.into()),
                Some(pv) if !volumes::fits_node(&pv, node) => reasons.push(NODE_CONFLICT.into()),
                Some(_) => {}
            }
            if !reasons.is_empty() {
                break;
            }
        }
        let plan = self.plan_waiting(promises, node, cluster);
        if plan.is_none() {
            reasons.push(BIND_CONFLICT.into());
        }
        match plan {
            Some(plan) if reasons.is_empty() => Ok(plan),
            _ => Err(Status { code: Code::Unresolvable, reasons }),
        }
    }

    fn plan_waiting(&self, promises: &Promises, node: &NodeInfo, cluster: &Cluster) -> Option<Plan> {
        let mut plan = Plan::default();
        if self.waiting.is_empty() {
            return Some(plan);
        }
        let all = cluster.listers.volumes.list();
        for claim in &self.waiting {
            let key = key_of(&**claim);
            let selected = volumes::selected_node(claim).or(promises.claims.get(&key).map(String::as_str));
            if let Some(selected) = selected {
                if selected != node.name {
                    return None;
                }
                plan.provision.push(claim.clone());
                continue;
            }
            let taken = |name: &str| {
                promises.volumes.get(name).is_some_and(|c| *c != key)
                    || plan.bind.iter().any(|(pv, _)| pv.metadata.name.as_deref() == Some(name))
            };
            if let Some(pv) = volumes::find_volume(claim, &all, node, taken) {
                plan.bind.push((pv, claim.clone()));
                continue;
            }
            let class = cluster.listers.classes.get(volumes::class_of(claim))?;
            if class.provisioner.is_empty()
                || class.provisioner == NO_PROVISIONER
                || !volumes::allows_topology(&class, node)
            {
                return None;
            }
            plan.provision.push(claim.clone());
        }
        Some(plan)
    }
}

impl FilterPlugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn pre_filter(&self, pod: &PodInfo, cluster: &Cluster) -> Result<Option<Box<dyn Filter>>, Status> {
        let claims = Claims::of(pod, cluster)?;
        if claims.bound.is_empty() && claims.waiting.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(Binding { promises: self.promises.clone(), claims })))
    }
}

#[derive(Clone)]
struct Binding {
    promises: Arc<Mutex<Promises>>,
    claims: Claims,
}

impl Filter for Binding {
    fn filter(&self, _: &PodInfo, node: &NodeInfo, cluster: &Cluster) -> Result<(), Status> {
        self.claims.plan(&self.promises.lock(), node, cluster).map(|_| ())
    }

    fn copy(&self) -> Box<dyn Filter> {
        Box::new(self.clone())
    }
}

impl ReservePlugin for VolumeBinding {
    fn reserve(
        &self,
        pod: &PodInfo,
        node: &NodeInfo,
        cluster: &Cluster,
    ) -> Result<Option<Box<dyn Reservation>>, Status> {
        let claims = Claims::of(pod, cluster)?;
        if claims.waiting.is_empty() {
            return Ok(None);
        }
        let mut promises = self.promises.lock();
        let plan = claims.plan(&promises, node, cluster)?;
        for (pv, claim) in &plan.bind {
            promises.volumes.insert(pv.metadata.name.clone().unwrap_or_default(), key_of(&**claim));
        }
        for claim in &plan.provision {
            promises.claims.insert(key_of(&**claim), node.name.clone());
        }
        Ok(Some(Box::new(Reserved {
            promises: self.promises.clone(),
            timeout: self.timeout,
            listers: cluster.listers.clone(),
            node: node.name.clone(),
            plan,
        })))
    }
}

/// The claims' volumes are set aside; dropping this gives them back.
struct Reserved {
    promises: Arc<Mutex<Promises>>,
    timeout: Duration,
    listers: Arc<Listers>,
    node: String,
    plan: Plan,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut promises = self.promises.lock();
        for (pv, _) in &self.plan.bind {
            promises.volumes.remove(pv.metadata.name.as_deref().unwrap_or_default());
        }
        for claim in &self.plan.provision {
            promises.claims.remove(&key_of(&**claim));
        }
    }
}

/// A volume, reserved for a claim.
fn reserved_for(pv: &PersistentVolume, claim: &PersistentVolumeClaim) -> PersistentVolume {
    let mut pv = pv.clone();
    let spec = pv.spec.get_or_insert_default();
    if spec.claim_ref.is_none() {
        pv.metadata.annotations.get_or_insert_default().insert(BOUND_BY_CONTROLLER.into(), "yes".into());
    }
    let meta = &claim.metadata;
    spec.claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    });
    pv
}

#[async_trait]
impl Reservation for Reserved {
    async fn pre_bind(&self, writer: &dyn Writer) -> Result<(), String> {
        for (pv, claim) in &self.plan.bind {
            writer.update_volume(reserved_for(pv, claim)).await?;
        }
        for claim in &self.plan.provision {
            if volumes::selected_node(claim).is_none() {
                let mut claim = (**claim).clone();
                claim
                    .metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(SELECTED_NODE.into(), self.node.clone());
                writer.update_claim(claim).await?;
            }
        }
        let claims = self.plan.bind.iter().map(|(_, c)| c).chain(&self.plan.provision);
        let claims: Vec<String> = claims.map(|c| key_of(&**c)).collect();
        let end = Instant::now() + self.timeout;
        // Our own writes come back through the watch; a selected node that is gone again after it was seen means that
        // no volume could be made there.
        let mut seen: HashMap<&String, bool> = HashMap::new();
        loop {
            let mut all_bound = true;
            for key in &claims {
                let Some(claim) = self.listers.claims.get(key) else {
                    return Err(format!("failed to get PVC {key:?}: it is gone"));
                };
                let bound = volumes::is_bound(&claim);
                all_bound &= bound;
                if volumes::selected_node(&claim).is_some() {
                    seen.insert(key, true);
                } else if !bound && seen.contains_key(key) {
                    return Err(format!(
                        "provisioning failed for PVC {:?}",
                        claim.metadata.name.as_deref().unwrap_or_default()
                    ));
                }
            }
            if all_bound {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err("binding volumes: timed out waiting for the condition".into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster_with, node, pod, verdicts};
    use crate::volumes::BIND_COMPLETED;
    use serde_json::{Value, json};

    fn claim(class: &str, volume: Option<&str>) -> PersistentVolumeClaim {
        let mut value = json!({"metadata": {"namespace": "ns", "name": "a"}, "spec": {"storageClassName": class, "volumeName": volume,
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        if volume.is_some() {
            value["metadata"]["annotations"] = json!({BIND_COMPLETED: "yes"});
        }
        serde_json::from_value(value).unwrap()
    }

    fn setup(claim: Option<PersistentVolumeClaim>, with_volume: bool) -> Cluster {
        let listers = Listers::default();
        claim.into_iter().for_each(|c| listers.claims.apply(c));
        for (name, provisioner) in [("none", NO_PROVISIONER), ("made", "example.com/p")] {
            listers.classes.apply(serde_json::from_value(json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer"})).unwrap());
        }
        if with_volume {
            listers.volumes.apply(serde_json::from_value(json!({"metadata": {"name": "pv"}, "status": {"phase": "Available"}, "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "none",
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}]}}}})).unwrap());
        }
        cluster_with(listers, [node("a", json!({})), node("b", json!({}))], [])
    }

    fn user() -> PodInfo {
        pod(json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "a"}}]}}))
    }

    #[test]
    fn verdicts_by_state_of_the_claim() {
        let check =
            |claim, with_volume| verdicts(&VolumeBinding::default(), &user(), &setup(claim, with_volume));
        assert_eq!(check(None, false), ["none: persistentvolumeclaim \"a\" not found"]);
        assert_eq!(
            check(Some(claim("", None)), false),
            ["none: pod has unbound immediate PersistentVolumeClaims"]
        );
        assert_eq!(check(Some(claim("none", None)), false), [BIND_CONFLICT, BIND_CONFLICT]);
        assert_eq!(check(Some(claim("none", None)), true), [BIND_CONFLICT, "ok"]);
        assert_eq!(check(Some(claim("made", None)), false), ["ok", "ok"]);
        assert_eq!(check(Some(claim("none", Some("pv"))), true), [NODE_CONFLICT, "ok"]);
        assert_eq!(check(Some(claim("none", Some("gone"))), true), [NO_VOLUME, NO_VOLUME]);
        let mut chosen = claim("made", None);
        chosen.metadata.annotations = Some([(SELECTED_NODE.to_string(), "b".to_string())].into());
        assert_eq!(check(Some(chosen), false), [BIND_CONFLICT, "ok"]);
    }

    #[derive(Default)]
    struct Seen(Mutex<Vec<Value>>);

    #[async_trait]
    impl Writer for Seen {
        async fn update_volume(&self, pv: PersistentVolume) -> Result<(), String> {
            self.0.lock().push(serde_json::to_value(pv).unwrap());
            Ok(())
        }
        async fn update_claim(&self, claim: PersistentVolumeClaim) -> Result<(), String> {
            self.0.lock().push(serde_json::to_value(claim).unwrap());
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_is_set_aside_and_bound() {
        let plugin = VolumeBinding { timeout: Duration::from_secs(5), ..VolumeBinding::default() };
        let c = setup(Some(claim("none", None)), true);
        let b = c.node("b").unwrap();
        let reserved = plugin.reserve(&user(), b, &c).unwrap().unwrap();
        // Another claim does not get what is promised.
        let mut other = claim("none", None);
        other.metadata.name = Some("z".into());
        c.listers.claims.apply(other);
        let second =
            pod(json!({"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "z"}}]}}));
        assert_eq!(verdicts(&plugin, &second, &c), [BIND_CONFLICT, BIND_CONFLICT]);
        let seen = Seen::default();
        assert_eq!(
            reserved.pre_bind(&seen).await.unwrap_err(),
            "binding volumes: timed out waiting for the condition"
        );
        assert_eq!(seen.0.lock()[0]["spec"]["claimRef"]["name"], "a");
        c.listers.claims.apply(claim("none", Some("pv")));
        reserved.pre_bind(&seen).await.unwrap();
        drop(reserved);
        assert_eq!(verdicts(&plugin, &second, &c), [BIND_CONFLICT, "ok"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_is_made_for_the_node() {
        let plugin = VolumeBinding { timeout: Duration::from_secs(1), ..VolumeBinding::default() };
        let c = setup(Some(claim("made", None)), false);
        let reserved = plugin.reserve(&user(), c.node("a").unwrap(), &c).unwrap().unwrap();
        assert_eq!(verdicts(&plugin, &user(), &c), ["ok", BIND_CONFLICT]);
        let seen = Seen::default();
        assert!(reserved.pre_bind(&seen).await.is_err());
        assert_eq!(seen.0.lock()[0]["metadata"]["annotations"][SELECTED_NODE], "a");
    }
}
