//! The deployment controller: rolls a template out by growing a new ReplicaSet and shrinking the old ones.
//!
//! <https://kubernetes.io/docs/concepts/workloads/controllers/deployment/>. Decisions are in [`scale`], [`status`] and
//! [`revision`]; here is what reads and writes.

pub(crate) mod revision;
mod scale;
mod status;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use pilothouse_client::events::reference;
use pilothouse_client::{Change, EventRecorder, Informer, Queue, key_of};

use crate::context::Context;
use crate::control::{
    claim, controller_of, controller_ref, has_code, is_terminal, is_terminating_namespace, message, selects,
    template_hash,
};
use revision::{
    HASH, REVISION, annotate_new, fenceposts, find_new, find_old, is_recreate, max_revision, new_replicas,
    replicas, revision_of, rs_replicas, set_replicas_annotations,
};
use status::{condition, new_condition, set_condition};

struct Worker {
    client: Client,
    recorder: EventRecorder,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        recorder: context.recorder("deployment-controller"),
        deployments: context.informer::<Deployment>(),
        sets: context.informer::<ReplicaSet>(),
        pods: context.informer::<Pod>(),
    });
    let queue: Queue<String> = Queue::new();
    let q = queue.clone();
    worker.deployments.on_change(move |c| q.add(key_of(&**c.object())));
    let (q, deployments) = (queue.clone(), worker.deployments.clone());
    worker.sets.on_change(move |c: &Change<ReplicaSet>| {
        let seen = match c {
            Change::Updated(old, new) => vec![old, new],
            Change::Added(rs) | Change::Deleted(rs) => vec![rs],
        };
        for rs in seen {
            match owner_key(&deployments, &rs.metadata) {
                Some(key) => q.add(key),
                None if controller_of(&rs.metadata).is_none() => {
                    for d in deployments.list_namespace(rs.metadata.namespace.as_deref().unwrap_or_default())
                    {
                        if selects(d.spec.as_ref().map(|s| &s.selector), rs.metadata.labels.as_ref()) {
                            q.add(key_of(&*d));
                        }
                    }
                }
                None => {}
            }
        }
    });
    let (q, w) = (queue.clone(), worker.clone());
    worker.pods.on_change(move |c| {
        // A Recreate rollout goes on when the last old pod is gone.
        if let Change::Deleted(pod) = c {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let Some(r) = controller_of(&pod.metadata) else { return };
            let Some(rs) = w.sets.get(&format!("{namespace}/{}", r.name)) else { return };
            let Some(key) = owner_key(&w.deployments, &rs.metadata) else { return };
            if w.deployments.get(&key).is_some_and(|d| is_recreate(&d)) {
                q.add(key);
            }
        }
    });
    let (stop, workers) = (context.stop.clone(), context.config.workers("deployment"));
    tokio::spawn(async move {
        worker.deployments.wait_synced().await;
        worker.sets.wait_synced().await;
        worker.pods.wait_synced().await;
        queue.run("deployment", workers, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await }
        });
    });
    Ok(())
}

fn owner_key(deployments: &Informer<Deployment>, meta: &ObjectMeta) -> Option<String> {
    let r = controller_of(meta).filter(|r| r.kind == "Deployment")?;
    let key = format!("{}/{}", meta.namespace.as_deref()?, r.name);
    deployments.get(&key).filter(|d| d.metadata.uid.as_ref() == Some(&r.uid)).map(|_| key)
}

impl Worker {
    async fn sync(&self, key: &str) -> Result<Option<Duration>, kube::Error> {
        let Some(d) = self.deployments.get(key) else { return Ok(None) };
        let Some((namespace, name)) = key.split_once('/') else { return Ok(None) };
        let d = (*d).clone();
        let selector = d.spec.as_ref().map(|s| s.selector.clone()).unwrap_or_default();
        if selector.match_labels.is_none() && selector.match_expressions.is_none() {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&reference(&d, &()), "SelectingAll", text);
            return Ok(None);
        }
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), namespace);
        let live =
            || async { Ok::<Option<ObjectMeta>, kube::Error>(api.get_opt(name).await?.map(|d| d.metadata)) };
        let matches = |rs: &ReplicaSet| selects(Some(&selector), rs.metadata.labels.as_ref());
        let sets = claim(
            &self.client,
            &controller_ref(&d),
            &d.metadata,
            matches,
            self.sets.list_namespace(namespace),
            live,
        )
        .await?;
        if d.metadata.deletion_timestamp.is_some() {
            let all = sets.clone();
            let new = find_new(&d, &all);
            return self.write_status(&d, status::calculate(&d, &all, new.as_ref())).await.map(|_| None);
        }
        let Some(d) = self.note_paused(&api, d).await? else { return Ok(None) };
        let paused = d.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
        if paused || scale::is_scaling_event(&d, &sets) {
            return self.sync_scale(&d, &sets, paused).await;
        }
        if is_recreate(&d) { self.recreate(&d, &sets).await } else { self.roll(&d, &sets).await }
    }

    /// Keeps the condition that says that the Deployment is paused, or no longer is: a pause does not count against
    /// the deadline. `None` where it was just written; the change brings the key back.
    async fn note_paused(
        &self,
        api: &Api<Deployment>,
        mut d: Deployment,
    ) -> Result<Option<Deployment>, kube::Error> {
        let spec = d.spec.clone().unwrap_or_default();
        if spec.progress_deadline_seconds.is_none_or(|s| s == i32::MAX) {
            return Ok(Some(d));
        }
        let reason =
            d.status.as_ref().and_then(|s| condition(s, "Progressing")).and_then(|c| c.reason.clone());
        if reason.as_deref() == Some("ProgressDeadlineExceeded") {
            return Ok(Some(d));
        }
        let noted = reason.as_deref() == Some("DeploymentPaused");
        let paused = spec.paused.unwrap_or(false);
        let c = match (paused, noted) {
            (true, false) => {
                new_condition("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused".into())
            }
            (false, true) => {
                new_condition("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed".into())
            }
            _ => return Ok(Some(d)),
        };
        set_condition(d.status.get_or_insert_default(), c);
        let name = d.metadata.name.clone().unwrap_or_default();
        let d = api.replace_status(&name, &PostParams::default(), &d).await?;
        Ok(Some(d))
    }

    async fn sync_scale(
        &self,
        d: &Deployment,
        sets: &[Arc<ReplicaSet>],
        paused: bool,
    ) -> Result<Option<Duration>, kube::Error> {
        let (d, new, old) = self.sets_of(d, sets, false).await?;
        for (rs, n) in scale::scale(&d, new.as_ref(), &old) {
            self.scale_to(&d, &rs, n).await?;
        }
        if paused {
            self.clean_up(&d, &old).await?;
        }
        let all: Vec<_> = old.iter().cloned().chain(new.clone()).collect();
        self.write_status(&d, status::calculate(&d, &all, new.as_ref())).await?;
        Ok(None)
    }

    async fn roll(&self, d: &Deployment, sets: &[Arc<ReplicaSet>]) -> Result<Option<Duration>, kube::Error> {
        let (d, new, old) = self.sets_of(d, sets, true).await?;
        let all: Vec<_> = old.iter().cloned().chain(new.clone()).collect();
        if let Some((rs, target)) = new.as_ref().and_then(|n| scale::grow_new(&d, &all, n)) {
            self.scale_to(&d, &rs, target).await?;
            return self.finish(&d, &all, new.as_ref()).await;
        }
        let steps = scale::shrink_old(&d, &all, &old, new.as_ref());
        if !steps.is_empty() {
            for (rs, n) in steps {
                self.scale_to(&d, &rs, n).await?;
            }
            return self.finish(&d, &all, new.as_ref()).await;
        }
        if d.status.as_ref().is_some_and(|s| status::complete(&d, s)) {
            self.clean_up(&d, &old).await?;
        }
        self.finish(&d, &all, new.as_ref()).await
    }

    async fn recreate(
        &self,
        d: &Deployment,
        sets: &[Arc<ReplicaSet>],
    ) -> Result<Option<Duration>, kube::Error> {
        let (d, new, old) = self.sets_of(d, sets, false).await?;
        let all: Vec<_> = old.iter().cloned().chain(new.clone()).collect();
        let to_stop = scale::active(&old);
        if !to_stop.is_empty() {
            for rs in to_stop {
                self.scale_to(&d, &rs, 0).await?;
            }
            return self.finish(&d, &all, new.as_ref()).await;
        }
        if self.old_pods_running(&old, new.as_deref()) {
            return self.finish(&d, &all, new.as_ref()).await;
        }
        let (d, new, old) = match new {
            Some(_) => (d, new, old),
            None => self.sets_of(&d, sets, true).await?,
        };
        if let Some(n) = &new {
            self.scale_to(&d, n, replicas(&d)).await?;
        }
        let all: Vec<_> = old.iter().cloned().chain(new.clone()).collect();
        if d.status.as_ref().is_some_and(|s| status::complete(&d, s)) {
            self.clean_up(&d, &old).await?;
        }
        self.finish(&d, &all, new.as_ref()).await
    }

    fn old_pods_running(&self, old: &[Arc<ReplicaSet>], new: Option<&ReplicaSet>) -> bool {
        old.iter().filter(|rs| new.is_none_or(|n| n.metadata.uid != rs.metadata.uid)).any(|rs| {
            self.pods.list_namespace(rs.metadata.namespace.as_deref().unwrap_or_default()).iter().any(|p| {
                controller_of(&p.metadata).is_some_and(|r| Some(&r.uid) == rs.metadata.uid.as_ref())
                    && !is_terminal(p)
            })
        })
    }

    async fn finish(
        &self,
        d: &Deployment,
        all: &[Arc<ReplicaSet>],
        new: Option<&Arc<ReplicaSet>>,
    ) -> Result<Option<Duration>, kube::Error> {
        let now = Timestamp::now();
        let status = status::rollout(d, all, new, now);
        let again = status::look_again(d, &status, now);
        self.write_status(d, status).await?;
        Ok(again)
    }

    async fn write_status(&self, d: &Deployment, status: DeploymentStatus) -> Result<(), kube::Error> {
        if d.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut d = d.clone();
        d.status = Some(status);
        let (namespace, name) =
            (d.metadata.namespace.clone().unwrap_or_default(), d.metadata.name.clone().unwrap_or_default());
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        match api.replace_status(&name, &PostParams::default(), &d).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The new ReplicaSet (made where `create` and there is none) and the old ones, with their revisions put right.
    async fn sets_of(
        &self,
        d: &Deployment,
        sets: &[Arc<ReplicaSet>],
        create: bool,
    ) -> Result<(Deployment, Option<Arc<ReplicaSet>>, Vec<Arc<ReplicaSet>>), kube::Error> {
        let existing = find_new(d, sets);
        let old = find_old(sets, existing.as_deref());
        let revision = max_revision(&old) + 1;
        let namespace = d.metadata.namespace.clone().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
        let mut d = d.clone();
        let new = match existing {
            Some(rs) => {
                let mut changed = (*rs).clone();
                let wanted_min_ready = d.spec.as_ref().and_then(|s| s.min_ready_seconds);
                let mut differs = annotate_new(&d, &mut changed, revision, true);
                if let Some(spec) = &mut changed.spec {
                    differs |= spec.min_ready_seconds.unwrap_or(0) != wanted_min_ready.unwrap_or(0);
                    spec.min_ready_seconds = wanted_min_ready;
                }
                if differs {
                    let name = changed.metadata.name.clone().unwrap_or_default();
                    return Ok((
                        d,
                        Some(Arc::new(api.replace(&name, &PostParams::default(), &changed).await?)),
                        old,
                    ));
                }
                let own = revision_of(rs.metadata.annotations.as_ref());
                let mut write = self.note_revision(&mut d, own);
                if d.status.as_ref().and_then(|s| condition(s, "Progressing")).is_none() && has_deadline(&d) {
                    let text = format!(
                        "Found new replica set {:?}",
                        rs.metadata.name.as_deref().unwrap_or_default()
                    );
                    set_condition(
                        d.status.get_or_insert_default(),
                        new_condition("Progressing", "True", "FoundNewReplicaSet", text),
                    );
                    write = true;
                }
                if write {
                    d = self.write_deployment(&d).await?;
                }
                Some(rs)
            }
            None if !create => None,
            None => Some(Arc::new(self.create_set(&mut d, &api, &old, revision).await?)),
        };
        Ok((d, new, old))
    }

    async fn create_set(
        &self,
        d: &mut Deployment,
        api: &Api<ReplicaSet>,
        old: &[Arc<ReplicaSet>],
        revision: i64,
    ) -> Result<ReplicaSet, kube::Error> {
        let name = d.metadata.name.clone().unwrap_or_default();
        let spec = d.spec.clone().unwrap_or_default();
        let hash = template_hash(&spec.template, d.status.as_ref().and_then(|s| s.collision_count));
        let mut template = spec.template.clone();
        template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default()
            .insert(HASH.into(), hash.clone());
        let mut selector = spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
        let mut rs = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{name}-{hash}")),
                namespace: d.metadata.namespace.clone(),
                owner_references: Some(vec![controller_ref(d)]),
                labels: template.metadata.as_ref().and_then(|m| m.labels.clone()),
                ..Default::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let n = {
            let mut with_new: Vec<Arc<ReplicaSet>> = old.to_vec();
            with_new.push(Arc::new(rs.clone()));
            new_replicas(d, &with_new, &rs)
        };
        if let Some(s) = &mut rs.spec {
            s.replicas = Some(n);
        }
        annotate_new(d, &mut rs, revision, false);
        let created = match api.create(&PostParams::default(), &rs).await {
            Ok(created) => created,
            Err(e) if has_code(&e, 409) => {
                let existing = api.get(rs.metadata.name.as_deref().unwrap_or_default()).await?;
                let ours = controller_of(&existing.metadata)
                    .is_some_and(|r| Some(&r.uid) == d.metadata.uid.as_ref());
                let same = existing
                    .spec
                    .as_ref()
                    .and_then(|s| s.template.as_ref())
                    .is_some_and(|t| revision::same_template(t, &spec.template));
                if !(ours && same) {
                    // Two templates with one hash: the next try takes another.
                    let status = d.status.get_or_insert_default();
                    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
                    self.write_deployment_status(d).await?;
                    return Err(e);
                }
                existing
            }
            Err(e) => {
                if !is_terminating_namespace(&e) && has_deadline(d) {
                    let text = format!(
                        "Failed to create new replica set {:?}: {}",
                        rs.metadata.name.as_deref().unwrap_or_default(),
                        message(&e)
                    );
                    set_condition(
                        d.status.get_or_insert_default(),
                        new_condition("Progressing", "False", "ReplicaSetCreateError", text.clone()),
                    );
                    self.write_deployment_status(d).await?;
                    self.recorder.warning(&reference(d, &()), "ReplicaSetCreateError", text);
                }
                return Err(e);
            }
        };
        let created_name = created.metadata.name.clone().unwrap_or_default();
        if n > 0 {
            self.scaled_event(&reference(d, &()), &created_name, true, n);
        }
        let mut write = self.note_revision(d, revision);
        if has_deadline(d) {
            let text = format!("Created new replica set {created_name:?}");
            set_condition(
                d.status.get_or_insert_default(),
                new_condition("Progressing", "True", "NewReplicaSetCreated", text),
            );
            write = true;
        }
        if write {
            *d = self.write_deployment(d).await?;
        }
        Ok(created)
    }

    /// Puts the revision on the Deployment; whether it was another.
    fn note_revision(&self, d: &mut Deployment, revision: i64) -> bool {
        let annotations = d.metadata.annotations.get_or_insert_default();
        annotations.insert(REVISION.into(), revision.to_string()) != Some(revision.to_string())
    }

    /// Writes annotations and status.
    async fn write_deployment(&self, d: &Deployment) -> Result<Deployment, kube::Error> {
        let (namespace, name) =
            (d.metadata.namespace.clone().unwrap_or_default(), d.metadata.name.clone().unwrap_or_default());
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        // Status updates carry metadata along.
        api.replace_status(&name, &PostParams::default(), d).await
    }

    async fn write_deployment_status(&self, d: &mut Deployment) -> Result<(), kube::Error> {
        *d = self.write_deployment(d).await?;
        Ok(())
    }

    async fn scale_to(&self, d: &Deployment, rs: &Arc<ReplicaSet>, n: i32) -> Result<(), kube::Error> {
        let mut changed = (**rs).clone();
        let before = rs_replicas(rs);
        let annotated = set_replicas_annotations(
            changed.metadata.annotations.get_or_insert_default(),
            replicas(d),
            replicas(d) + fenceposts(d).0,
        );
        if before == n && !annotated {
            return Ok(());
        }
        if let Some(s) = &mut changed.spec {
            s.replicas = Some(n);
        }
        let (namespace, name) =
            (rs.metadata.namespace.clone().unwrap_or_default(), rs.metadata.name.clone().unwrap_or_default());
        Api::<ReplicaSet>::namespaced(self.client.clone(), &namespace)
            .replace(&name, &PostParams::default(), &changed)
            .await?;
        if before != n {
            self.scaled_event(&reference(d, &()), &name, n > before, n);
        }
        Ok(())
    }

    fn scaled_event(&self, object: &ObjectReference, rs: &str, up: bool, n: i32) {
        let direction = if up { "up" } else { "down" };
        self.recorder.normal(
            object,
            "ScalingReplicaSet",
            format!("Scaled {direction} replica set {rs} to {n}"),
        );
    }

    /// Deletes the oldest ReplicaSets over the history limit.
    async fn clean_up(&self, d: &Deployment, old: &[Arc<ReplicaSet>]) -> Result<(), kube::Error> {
        let limit = d.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
        if limit == i32::MAX {
            return Ok(());
        }
        let mut removable: Vec<&Arc<ReplicaSet>> =
            old.iter().filter(|rs| rs.metadata.deletion_timestamp.is_none()).collect();
        let surplus = removable.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        removable.sort_by_key(|rs| revision_of(rs.metadata.annotations.as_ref()));
        for rs in removable.into_iter().take(surplus) {
            let status = rs.status.clone().unwrap_or_default();
            if status.replicas != 0
                || rs_replicas(rs) != 0
                || rs.metadata.generation > status.observed_generation
            {
                continue;
            }
            let namespace = rs.metadata.namespace.as_deref().unwrap_or_default();
            let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), namespace);
            match api.delete(rs.metadata.name.as_deref().unwrap_or_default(), &DeleteParams::default()).await
            {
                Ok(_) => {}
                Err(e) if has_code(&e, 404) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn has_deadline(d: &Deployment) -> bool {
    d.spec.as_ref().and_then(|s| s.progress_deadline_seconds).is_some_and(|s| s != i32::MAX)
}
