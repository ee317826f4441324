//! The StatefulSet controller: pods with names, one after another.
//!
//! <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/>

mod identity;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use pilothouse_client::events::reference;
use pilothouse_client::{EventRecorder, Informer, Queue, key_of};

use crate::context::Context;
use crate::control::{
    claim, controller_of, controller_ref, has_code, is_terminating_namespace, message, selects,
};
use crate::workloads::history;
use plan::Step;

struct Worker {
    client: Client,
    recorder: EventRecorder,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    server_minor: u32,
}

/// The revisions of a set: the current one, the one being rolled out, and how often hashes have collided.
struct Revisions {
    current: ControllerRevision,
    update: ControllerRevision,
    collisions: i32,
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        recorder: context.recorder("statefulset-controller"),
        sets: context.informer::<StatefulSet>(),
        pods: context.informer::<Pod>(),
        claims: context.informer::<PersistentVolumeClaim>(),
        revisions: context.informer::<ControllerRevision>(),
        server_minor: context.server_minor,
    });
    let queue: Queue<String> = Queue::new();
    let q = queue.clone();
    worker.sets.on_change(move |c| q.add(key_of(&**c.object())));
    let (q, sets) = (queue.clone(), worker.sets.clone());
    worker.pods.on_change(move |c| {
        let meta = &c.object().metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        match controller_of(meta) {
            Some(r) if r.kind == "StatefulSet" => {
                let key = format!("{namespace}/{}", r.name);
                if sets.get(&key).is_some_and(|s| s.metadata.uid.as_ref() == Some(&r.uid)) {
                    q.add(key);
                }
            }
            Some(_) => {}
            None => {
                for s in sets.list_namespace(namespace) {
                    if selects(s.spec.as_ref().map(|s| &s.selector), meta.labels.as_ref()) {
                        q.add(key_of(&*s));
                    }
                }
            }
        }
    });
    let (stop, workers) = (context.stop.clone(), context.config.workers("statefulset"));
    tokio::spawn(async move {
        worker.sets.wait_synced().await;
        worker.pods.wait_synced().await;
        worker.claims.wait_synced().await;
        worker.revisions.wait_synced().await;
        queue.run("statefulset", workers, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await.map(|()| None::<Duration>) }
        });
    });
    Ok(())
}

impl Worker {
    async fn sync(&self, key: &str) -> Result<(), kube::Error> {
        let Some(set) = self.sets.get(key) else { return Ok(()) };
        let Some((namespace, name)) = key.split_once('/') else { return Ok(()) };
        let owner = controller_ref(&*set);
        let selector = set.spec.as_ref().map(|s| s.selector.clone());
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), namespace);
        let live =
            || async { Ok::<Option<ObjectMeta>, kube::Error>(api.get_opt(name).await?.map(|s| s.metadata)) };
        let matches = |p: &Pod| {
            selects(selector.as_ref(), p.metadata.labels.as_ref()) && identity::ordinal(&set, p).is_some()
        };
        let pods =
            claim(&self.client, &owner, &set.metadata, matches, self.pods.list_namespace(namespace), live)
                .await?;
        let own_revisions: Vec<Arc<ControllerRevision>> = self
            .revisions
            .list_namespace(namespace)
            .into_iter()
            .filter(|r| controller_of(&r.metadata).is_some_and(|o| o.uid == owner.uid))
            .collect();
        let revisions = self.ensure_revisions(&set, &own_revisions).await?;
        let revision_name = |r: &ControllerRevision| r.metadata.name.clone().unwrap_or_default();
        let (current, update) = (revision_name(&revisions.current), revision_name(&revisions.update));
        let mut plan = plan::plan(&set, &pods, &current, &update);
        plan.status.collision_count = Some(revisions.collisions);
        let mut failed = None;
        for step in &plan.steps {
            if let Err(e) = self.take(&set, step, &pods, &revisions).await {
                failed = Some(e);
                break;
            }
        }
        if plan::complete(&set, &plan.status) {
            plan.status.current_revision = plan.status.update_revision.clone();
            plan.status.current_replicas = plan.status.updated_replicas;
        }
        self.write_status(&set, plan.status).await?;
        let limit = set.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
        history::truncate(&self.client, &own_revisions, limit, |r| {
            let name = revision_name(r);
            name == current || name == update || pods.iter().any(|p| identity::pod_revision(p) == name)
        })
        .await?;
        failed.map_or(Ok(()), Err)
    }

    /// Finds or makes the revision of the template as it is, and finds the one that pods should still have.
    async fn ensure_revisions(
        &self,
        set: &StatefulSet,
        own: &[Arc<ControllerRevision>],
    ) -> Result<Revisions, kube::Error> {
        let status = set.status.clone().unwrap_or_default();
        let mut collisions = status.collision_count.unwrap_or(0);
        let template = set.spec.as_ref().map(|s| serde_json::to_value(&s.template)).transpose();
        let template = template.map_err(kube::Error::SerdeError)?.unwrap_or_default();
        let data = history::data(&template, self.server_minor);
        let next = history::next_number(own);
        let newest = own.iter().max_by_key(|r| r.revision);
        let update = match (history::find_equal(own, &data), newest) {
            (Some(equal), Some(newest)) if equal.metadata.uid == newest.metadata.uid => (**equal).clone(),
            // The template went back to what it was: that revision is the newest again.
            (Some(equal), _) => history::renumber(&self.client, equal, next).await?,
            (None, _) => {
                let template = set.spec.as_ref().and_then(|s| s.template.metadata.as_ref());
                let labels = template.and_then(|m| m.labels.clone()).unwrap_or_default();
                let owner = controller_ref(set);
                history::create(
                    &self.client,
                    |collision| {
                        let labels = (labels.clone(), history::HISTORY_HASH);
                        history::make(&owner, &set.metadata, labels, data.clone(), next, collision)
                    },
                    &mut collisions,
                )
                .await?
            }
        };
        let current = own
            .iter()
            .find(|r| r.metadata.name.is_some() && r.metadata.name == status.current_revision)
            .map_or_else(|| update.clone(), |r| (**r).clone());
        Ok(Revisions { current, update, collisions })
    }

    async fn take(
        &self,
        set: &StatefulSet,
        step: &Step,
        pods: &[Arc<Pod>],
        revisions: &Revisions,
    ) -> Result<(), kube::Error> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let object = reference(set, &());
        match step {
            Step::Create { ordinal, updated } => {
                let revision = if *updated { &revisions.update } else { &revisions.current };
                let template = template_of(revision, set);
                let name = revision.metadata.name.as_deref().unwrap_or_default();
                let pod = identity::new_pod(set, &template, name, *ordinal, self.server_minor);
                self.ensure_claims(set, *ordinal, &object).await?;
                let pod_name = pod.metadata.name.clone().unwrap_or_default();
                match api.create(&PostParams::default(), &pod).await {
                    Ok(_) => self.note(&object, set, "create", &pod_name, None),
                    Err(e) if has_code(&e, 409) => {
                        // Ours that the local copy does not show yet, or somebody else's in our way.
                        let existing = api.get_opt(&pod_name).await?;
                        let ours = existing.is_some_and(|p| {
                            controller_of(&p.metadata)
                                .is_some_and(|r| Some(&r.uid) == set.metadata.uid.as_ref())
                        });
                        if !ours {
                            return Err(e);
                        }
                    }
                    Err(e) if is_terminating_namespace(&e) => {}
                    Err(e) => {
                        self.note(&object, set, "create", &pod_name, Some(&e));
                        return Err(e);
                    }
                }
            }
            Step::Recreate(name) => {
                let set_name = set.metadata.name.as_deref().unwrap_or_default();
                let text = format!("StatefulSet {namespace}/{set_name} is recreating failed Pod {name}");
                self.recorder.warning(&object, "RecreatingFailedPod", text);
                self.delete(set, &api, name, &object).await?;
            }
            Step::Delete(name) => self.delete(set, &api, name, &object).await?,
            Step::Repair(ordinal) => {
                let name = identity::pod_name(set, *ordinal);
                let Some(pod) = pods.iter().find(|p| p.metadata.name.as_deref() == Some(&name)) else {
                    return Ok(());
                };
                let mut pod = (**pod).clone();
                identity::set_identity(set, &mut pod, *ordinal);
                identity::set_storage(set, &mut pod, *ordinal);
                self.ensure_claims(set, *ordinal, &object).await?;
                if let Err(e) = api.replace(&name, &PostParams::default(), &pod).await {
                    self.note(&object, set, "update", &name, Some(&e));
                    return Err(e);
                }
                self.note(&object, set, "update", &name, None);
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        set: &StatefulSet,
        api: &Api<Pod>,
        name: &str,
        object: &ObjectReference,
    ) -> Result<(), kube::Error> {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => self.note(object, set, "delete", name, None),
            Err(e) if has_code(&e, 404) => {}
            Err(e) => {
                self.note(object, set, "delete", name, Some(&e));
                return Err(e);
            }
        }
        Ok(())
    }

    async fn ensure_claims(
        &self,
        set: &StatefulSet,
        ordinal: i32,
        object: &ObjectReference,
    ) -> Result<(), kube::Error> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let pod = identity::pod_name(set, ordinal);
        for wanted in identity::claims(set, ordinal) {
            if self.claims.get(&key_of(&wanted)).is_some() {
                continue;
            }
            let claim = wanted.metadata.name.clone().unwrap_or_default();
            let set_name = set.metadata.name.as_deref().unwrap_or_default();
            let text = format!("Claim {claim} Pod {pod} in StatefulSet {set_name}");
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
            match api.create(&PostParams::default(), &wanted).await {
                Ok(_) => self.recorder.normal(object, "SuccessfulCreate", format!("create {text} success")),
                Err(e) if has_code(&e, 409) => {}
                Err(e) => {
                    let why = message(&e);
                    self.recorder.warning(
                        object,
                        "FailedCreate",
                        format!("create {text} failed error: {why}"),
                    );
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    fn note(
        &self,
        object: &ObjectReference,
        set: &StatefulSet,
        verb: &str,
        pod: &str,
        error: Option<&kube::Error>,
    ) {
        let set = set.metadata.name.as_deref().unwrap_or_default();
        let mut title = verb.to_string();
        title[..1].make_ascii_uppercase();
        match error {
            None => {
                let text = format!("{verb} Pod {pod} in StatefulSet {set} successful");
                self.recorder.normal(object, &format!("Successful{title}"), text);
            }
            Some(e) => {
                let text = format!("{verb} Pod {pod} in StatefulSet {set} failed error: {}", message(e));
                self.recorder.warning(object, &format!("Failed{title}"), text);
            }
        }
    }

    async fn write_status(
        &self,
        set: &StatefulSet,
        mut status: StatefulSetStatus,
    ) -> Result<(), kube::Error> {
        let old = set.status.clone().unwrap_or_default();
        status.conditions = old.conditions.clone();
        status.available_replicas =
            if self.server_minor >= 22 { Some(status.ready_replicas.unwrap_or(0)) } else { None };
        let zero_is_none = |n: Option<i32>| n.filter(|n| *n != 0);
        let same = old.observed_generation == status.observed_generation
            && old.replicas == status.replicas
            && zero_is_none(old.ready_replicas) == status.ready_replicas
            && zero_is_none(old.current_replicas) == status.current_replicas
            && zero_is_none(old.updated_replicas) == status.updated_replicas
            && old.current_revision == status.current_revision
            && old.update_revision == status.update_revision
            && old.collision_count.unwrap_or(0) == status.collision_count.unwrap_or(0)
            && zero_is_none(old.available_replicas) == zero_is_none(status.available_replicas);
        if same {
            return Ok(());
        }
        let mut set = set.clone();
        set.status = Some(status);
        let (namespace, name) = (
            set.metadata.namespace.clone().unwrap_or_default(),
            set.metadata.name.clone().unwrap_or_default(),
        );
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &namespace);
        match api.replace_status(&name, &PostParams::default(), &set).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// A revision's template; the set's own where the revision cannot be read.
fn template_of(revision: &ControllerRevision, set: &StatefulSet) -> PodTemplateSpec {
    let from_data = revision.data.as_ref().and_then(|d| {
        let mut template = d.0.get("spec")?.get("template")?.clone();
        template.as_object_mut()?.remove("$patch");
        serde_json::from_value(template).ok()
    });
    from_data.or_else(|| set.spec.as_ref().map(|s| s.template.clone())).unwrap_or_default()
}
