//! The garbage collector: removes objects whose owners are gone, and carries out foreground and orphaning deletions.
//!
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>. It watches the metadata of everything that
//! can be deleted; of an object it keeps what [`super::graph`] needs and no more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use pilothouse_client::backoff::WatchBackoff;
use pilothouse_client::{EventRecorder, Queue};
use pilothouse_component_base::signals::Stop;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;

use super::graph::{Effects, FOREGROUND, Graph, Node, ORPHAN, Owner, Verdict, Watched, verdict};
use super::resources::{self, Known, Resources};
use crate::context::{Context, Removed};
use crate::control::{has_code, message};

/// How often it is looked which resources there are.
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
/// Every so many times all groups are read, changed or not.
const FULL_DISCOVERY: u32 = 10;
/// How long work waits for the first list of a new resource.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
/// So many owners that are known to be gone are remembered.
const ABSENT: usize = 2000;

/// Why an object could not be worked on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("no matches for kind {kind:?} in version {version:?}")]
    NoKind { kind: String, version: String },
}

struct Collector {
    client: Client,
    recorder: EventRecorder,
    graph: Mutex<Graph>,
    resources: RwLock<Arc<Resources>>,
    /// Owners that are known to be gone, as their dependents see them. No uid is ever used again.
    absent: Mutex<HashSet<(String, OwnerKey)>>,
    delete: Queue<String>,
    orphan: Queue<String>,
    /// Whether all resources have been listed.
    ready: watch::Sender<bool>,
    rediscover: Notify,
    removed: broadcast::Sender<Removed>,
    stop: Stop,
}

/// An owner reference without what does not identify the owner.
type OwnerKey = [String; 4];

fn owner_key(o: &OwnerReference) -> OwnerKey {
    [o.api_version.clone(), o.kind.clone(), o.name.clone(), o.uid.clone()]
}

struct Monitor {
    watched: Arc<Watched>,
    task: JoinHandle<()>,
    listed: watch::Receiver<bool>,
}

/// Starts the controller; does nothing with `--enable-garbage-collector=false`.
pub async fn start(context: Context) -> anyhow::Result<()> {
    if !context.config.enable_garbage_collector {
        return Ok(());
    }
    let backoff = || Queue::with_backoff(Duration::from_millis(5), Duration::from_secs(60));
    let collector = Arc::new(Collector {
        client: context.client.clone(),
        recorder: context.recorder("garbage-collector-controller"),
        graph: Mutex::default(),
        resources: RwLock::default(),
        absent: Mutex::default(),
        delete: backoff(),
        orphan: backoff(),
        ready: watch::channel(false).0,
        rediscover: Notify::new(),
        removed: context.removed.clone(),
        stop: context.stop.clone(),
    });
    tokio::spawn(collector.clone().keep_discovering());
    let (workers, stop) = (context.config.workers("garbagecollector"), context.stop.clone());
    let c = collector.clone();
    collector.delete.run("garbagecollector", workers, stop.clone(), move |uid| {
        let c = c.clone();
        async move {
            c.wait_ready().await;
            c.attempt_delete(&uid).await
        }
    });
    let c = collector.clone();
    collector.orphan.run("garbagecollector-orphan", workers, stop, move |uid| {
        let c = c.clone();
        async move {
            c.wait_ready().await;
            c.attempt_orphan(&uid).await
        }
    });
    Ok(())
}

impl Collector {
    async fn wait_ready(&self) {
        let _ = self.ready.subscribe().wait_for(|r| *r).await;
    }

    fn enqueue(&self, effects: Effects) {
        for (uid, owner) in &effects.foreign {
            self.report_foreign(uid, owner);
        }
        effects.delete.into_iter().for_each(|u| self.delete.add(u));
        effects.orphan.into_iter().for_each(|u| self.orphan.add(u));
    }

    fn report_foreign(&self, uid: &str, owner: &OwnerReference) {
        let Some(node) = self.graph.lock().get(uid).cloned() else { return };
        let object = ObjectReference {
            api_version: Some(node.watched.resource.api_version.clone()),
            kind: Some(node.watched.resource.kind.clone()),
            namespace: Some(node.namespace.clone()),
            name: Some(node.name.clone()),
            uid: Some(uid.to_string()),
            ..Default::default()
        };
        let (o, ns) = (owner, &node.namespace);
        let text = format!(
            "ownerRef [{}/{}, namespace: {ns}, name: {}, uid: {}] does not exist in namespace {ns:?}",
            o.api_version, o.kind, o.name, o.uid
        );
        self.recorder.warning(&object, "OwnerRefInvalidNamespace", text);
    }

    // ---- watching ----

    /// Keeps a monitor on each resource that can be deleted.
    async fn keep_discovering(self: Arc<Self>) {
        let mut monitors: HashMap<(String, String), Monitor> = HashMap::new();
        let (mut last, mut round, mut poked) = (Vec::new(), 0u32, true);
        loop {
            match resources::groups(&self.client).await {
                Ok(groups) => {
                    if poked || groups != last || round.is_multiple_of(FULL_DISCOVERY) {
                        let found = resources::discover(&self.client, &groups).await;
                        self.adapt(&mut monitors, found).await;
                        last = groups;
                    }
                    round = round.wrapping_add(1);
                }
                Err(e) => tracing::debug!("discovery failed: {e}"),
            }
            poked = tokio::select! {
                _ = self.stop.wait() => break,
                _ = self.rediscover.notified() => {
                    // A definition changes several times until it is served.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    true
                }
                _ = tokio::time::sleep(DISCOVERY_PERIOD) => false,
            };
        }
        monitors.values().for_each(|m| m.task.abort());
    }

    /// Starts and ends monitors so that they are those of `found`, and waits for the first lists of new ones.
    async fn adapt(self: &Arc<Self>, monitors: &mut HashMap<(String, String), Monitor>, found: Resources) {
        let found = Arc::new(found);
        *self.resources.write() = found.clone();
        let wanted: HashMap<(String, String), &Known> =
            found.collectable().map(|k| ((k.resource.group.clone(), k.resource.plural.clone()), k)).collect();
        monitors.retain(|key, monitor| {
            let same = match wanted.get(key) {
                Some(k) => {
                    k.resource == monitor.watched.resource && k.namespaced == monitor.watched.namespaced
                }
                None => found.failed(&key.0),
            };
            if !same {
                monitor.task.abort();
                let gone = self.graph.lock().all_of(&monitor.watched);
                gone.iter().for_each(|uid| self.enqueue_removed(uid, false));
            }
            same
        });
        let mut new = Vec::new();
        for (key, known) in wanted {
            monitors.entry(key).or_insert_with(|| {
                let watched =
                    Arc::new(Watched { resource: known.resource.clone(), namespaced: known.namespaced });
                let (send, listed) = watch::channel(false);
                let task = tokio::spawn(self.clone().monitor(watched.clone(), send));
                new.push(listed.clone());
                Monitor { watched, task, listed }
            });
        }
        if !new.is_empty() {
            self.ready.send_replace(false);
        }
        let all = monitors.values().map(|m| {
            let mut listed = m.listed.clone();
            async move { listed.wait_for(|l| *l).await.is_ok() }
        });
        if tokio::time::timeout(SYNC_TIMEOUT, futures::future::join_all(all)).await.is_err() {
            tracing::warn!("timed out waiting for dependency graph builder sync during GC sync");
        }
        self.ready.send_replace(true);
    }

    /// Feeds the graph with one resource's objects.
    async fn monitor(self: Arc<Self>, watched: Arc<Watched>, listed: watch::Sender<bool>) {
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::all_with(self.client.clone(), &watched.resource);
        let mut events = watcher(api, watcher::Config::default()).backoff(WatchBackoff::default()).boxed();
        let definitions = watched.resource.plural == "customresourcedefinitions";
        let mut seen: HashSet<String> = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => seen.clear(),
                Ok(Event::InitApply(o)) => {
                    seen.extend(o.metadata.uid.clone());
                    self.observe(&watched, o.metadata);
                }
                Ok(Event::InitDone) => {
                    let all = self.graph.lock().all_of(&watched);
                    all.iter().filter(|u| !seen.contains(*u)).for_each(|u| self.enqueue_removed(u, true));
                    seen = HashSet::new();
                    listed.send_replace(true);
                }
                Ok(Event::Apply(o)) => {
                    self.observe(&watched, o.metadata);
                    if definitions {
                        self.rediscover.notify_one();
                    }
                }
                Ok(Event::Delete(o)) => {
                    self.enqueue_removed(o.metadata.uid.as_deref().unwrap_or_default(), true);
                    if definitions {
                        self.rediscover.notify_one();
                    }
                }
                Err(e) => tracing::debug!(resource = watched.resource.plural, "watch: {e}"),
            }
        }
    }

    fn observe(&self, watched: &Arc<Watched>, meta: ObjectMeta) {
        let effects = self.graph.lock().observe(watched, meta);
        self.enqueue(effects);
    }

    /// Takes an object out; `gone` where it is known not to exist any more.
    fn enqueue_removed(&self, uid: &str, gone: bool) {
        let effects = {
            let mut graph = self.graph.lock();
            let node = graph.get(uid).cloned();
            let (effects, any) = graph.remove(uid);
            if let Some(node) =
                node.as_ref().filter(|n| n.watched.namespaced && self.removed.receiver_count() > 0)
            {
                // Nobody may be listening: then nobody needs to know.
                let _ = self.removed.send(Removed {
                    group: node.watched.resource.group.clone(),
                    plural: node.watched.resource.plural.clone(),
                    namespace: node.namespace.clone(),
                });
            }
            if let (true, true, Some(node)) = (gone, any, node) {
                let r = &node.watched.resource;
                let key = [r.api_version.clone(), r.kind.clone(), node.name.clone(), uid.to_string()];
                let namespace = if node.watched.namespaced { node.namespace } else { String::new() };
                self.remember_absent(namespace, key);
            }
            effects
        };
        self.enqueue(effects);
    }

    fn remember_absent(&self, namespace: String, key: OwnerKey) {
        let mut absent = self.absent.lock();
        if absent.len() >= ABSENT {
            absent.clear();
        }
        absent.insert((namespace, key));
    }

    // ---- deleting ----

    fn api(&self, node: &Node) -> Api<DynamicObject> {
        match node.watched.namespaced {
            true => Api::namespaced_with(self.client.clone(), &node.namespace, &node.watched.resource),
            false => Api::all_with(self.client.clone(), &node.watched.resource),
        }
    }

    async fn attempt_delete(&self, uid: &str) -> Result<Option<Duration>, Error> {
        let (node, has_dependents) = {
            let graph = self.graph.lock();
            let Some(node) = graph.get(uid) else { return Ok(None) };
            if node.deleting && !node.foreground {
                return Ok(None);
            }
            if !node.foreground && graph.owners_are_fine(node) {
                return Ok(None);
            }
            (node.clone(), !graph.dependents_of(uid).is_empty())
        };
        let api = self.api(&node);
        // Where it is gone already, its watch says so.
        let Some(latest) = api.get_metadata_opt(&node.name).await? else { return Ok(None) };
        if latest.metadata.uid.as_deref() != Some(uid) {
            return Ok(None);
        }
        if node.foreground {
            self.go_on_in_foreground(uid, &api, &node).await?;
            return Ok(None);
        }
        let mut owners = Vec::new();
        let mut unobserved = false;
        for reference in latest.metadata.owner_references.iter().flatten() {
            let owner = self.look_at(&node, reference).await?;
            if owner == Owner::Solid && self.graph.lock().get(&reference.uid).is_none() {
                unobserved = true;
            }
            owners.push((reference.uid.clone(), owner));
        }
        match verdict(&owners, has_dependents) {
            // An owner that is there but not watched (yet) is looked at again: its end would go unnoticed.
            Verdict::Keep => return Ok(unobserved.then_some(DISCOVERY_PERIOD)),
            Verdict::Release(gone) => self.release(&api, &latest.metadata, &gone).await?,
            Verdict::DeleteForeground => {
                self.unblock_circle(uid, &api, &latest.metadata).await?;
                self.delete(&api, &latest.metadata, PropagationPolicy::Foreground).await?;
            }
            Verdict::Delete => {
                let has = |f: &str| latest.metadata.finalizers.iter().flatten().any(|x| x == f);
                let policy = match (has(ORPHAN), has(FOREGROUND)) {
                    (true, _) => PropagationPolicy::Orphan,
                    (_, true) => PropagationPolicy::Foreground,
                    _ => PropagationPolicy::Background,
                };
                self.delete(&api, &latest.metadata, policy).await?;
            }
        }
        Ok(None)
    }

    /// How the owner that `reference` names is, asked of the server unless it is known to be gone.
    async fn look_at(&self, node: &Node, reference: &OwnerReference) -> Result<Owner, Error> {
        let key = owner_key(reference);
        let known = {
            let (namespaced, cluster) = ((node.namespace.clone(), key.clone()), (String::new(), key.clone()));
            let absent = self.absent.lock();
            absent.contains(&namespaced) || absent.contains(&cluster)
        };
        if known {
            return Ok(Owner::Dangling);
        }
        let resources = self.resources.read().clone();
        let Some(kind) = resources.find(&reference.api_version, &reference.kind) else {
            return Err(Error::NoKind {
                kind: reference.kind.clone(),
                version: reference.api_version.clone(),
            });
        };
        if kind.namespaced && !node.watched.namespaced {
            // Not valid: a cluster-wide object cannot be owned by one in a namespace. It stays.
            return Ok(Owner::Solid);
        }
        let (api, namespace): (Api<DynamicObject>, String) = match kind.namespaced {
            true => {
                let api = Api::namespaced_with(self.client.clone(), &node.namespace, &kind.resource);
                (api, node.namespace.clone())
            }
            false => (Api::all_with(self.client.clone(), &kind.resource), String::new()),
        };
        let Some(owner) = api.get_metadata_opt(&reference.name).await? else {
            self.remember_absent(namespace, key);
            return Ok(Owner::Dangling);
        };
        if owner.metadata.uid.as_ref() != Some(&reference.uid) {
            self.remember_absent(namespace, key);
            return Ok(Owner::Dangling);
        }
        let waits = owner.metadata.deletion_timestamp.is_some()
            && owner.metadata.finalizers.iter().flatten().any(|f| f == FOREGROUND);
        Ok(if waits { Owner::Waiting } else { Owner::Solid })
    }

    async fn delete(
        &self,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<(), Error> {
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: None }),
            ..Default::default()
        };
        match api.delete(meta.name.as_deref().unwrap_or_default(), &params).await {
            Ok(_) => Ok(()),
            // Gone, or another of the same name.
            Err(e) if has_code(&e, 404) || has_code(&e, 409) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Where a dependent waits for its own dependents too, owners and dependents may form a circle, in which nobody
    /// would ever go: this object then no longer blocks its owners.
    async fn unblock_circle(
        &self,
        uid: &str,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
    ) -> Result<(), Error> {
        let circle = {
            let graph = self.graph.lock();
            graph.dependents_of(uid).iter().any(|d| graph.get(d).is_some_and(|n| n.foreground))
        };
        if !circle {
            return Ok(());
        }
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        owners.iter_mut().for_each(|o| o.block_owner_deletion = o.block_owner_deletion.map(|_| false));
        self.set_owners(api, meta, &owners).await
    }

    /// Goes on with a deletion that waits for what blocks it.
    async fn go_on_in_foreground(
        &self,
        uid: &str,
        api: &Api<DynamicObject>,
        node: &Node,
    ) -> Result<(), Error> {
        let (blocking, pending) = {
            let graph = self.graph.lock();
            let blocking = graph.blocking(uid);
            let pending: Vec<String> =
                blocking.iter().filter(|d| graph.get(d).is_some_and(|n| !n.foreground)).cloned().collect();
            (blocking, pending)
        };
        if blocking.is_empty() {
            return self.remove_finalizer(uid, api, &node.name, FOREGROUND).await;
        }
        pending.into_iter().for_each(|d| self.delete.add(d));
        Ok(())
    }

    async fn remove_finalizer(
        &self,
        uid: &str,
        api: &Api<DynamicObject>,
        name: &str,
        finalizer: &str,
    ) -> Result<(), Error> {
        for _ in 0..5 {
            let Some(latest) = api.get_metadata_opt(name).await? else { return Ok(()) };
            let mut finalizers = latest.metadata.finalizers.clone().unwrap_or_default();
            if latest.metadata.uid.as_deref() != Some(uid) || !finalizers.iter().any(|f| f == finalizer) {
                return Ok(());
            }
            finalizers.retain(|f| f != finalizer);
            let patch = serde_json::json!({"metadata": {
                "resourceVersion": latest.metadata.resource_version,
                "finalizers": finalizers,
            }});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(e) if has_code(&e, 409) => {}
                Err(e) if has_code(&e, 404) => return Ok(()),
                Err(e) => return Err(e.into()),
                Ok(_) => return Ok(()),
            }
        }
        self.delete.add_after(uid.to_string(), Duration::from_secs(1));
        Ok(())
    }

    /// Takes owners off an object.
    async fn release(
        &self,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
        gone: &[String],
    ) -> Result<(), Error> {
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        owners.retain(|o| !gone.contains(&o.uid));
        self.set_owners(api, meta, &owners).await
    }

    async fn set_owners(
        &self,
        api: &Api<DynamicObject>,
        meta: &ObjectMeta,
        owners: &[OwnerReference],
    ) -> Result<(), Error> {
        let patch = serde_json::json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "ownerReferences": owners,
        }});
        let name = meta.name.as_deref().unwrap_or_default();
        match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    // ---- orphaning ----

    async fn attempt_orphan(&self, uid: &str) -> Result<Option<Duration>, Error> {
        let (owner, dependents) = {
            let graph = self.graph.lock();
            let Some(owner) = graph.get(uid) else { return Ok(None) };
            let dependents: Vec<Node> =
                graph.dependents_of(uid).iter().filter_map(|d| graph.get(d).cloned()).collect();
            (owner.clone(), dependents)
        };
        let results = futures::stream::iter(dependents)
            .map(|d| async move { self.let_go(uid, &d).await })
            .buffer_unordered(10)
            .collect::<Vec<_>>()
            .await;
        if let Some(failed) = results.into_iter().find_map(Result::err) {
            tracing::debug!(owner = owner.name, "orphaning: {}", error_text(&failed));
            return Err(failed);
        }
        self.remove_finalizer(uid, &self.api(&owner), &owner.name, ORPHAN).await?;
        Ok(None)
    }

    /// Takes one owner off a dependent, whatever else happens to it.
    async fn let_go(&self, owner: &str, dependent: &Node) -> Result<(), Error> {
        let api = self.api(dependent);
        for _ in 0..5 {
            let Some(latest) = api.get_metadata_opt(&dependent.name).await? else { return Ok(()) };
            if !latest.metadata.owner_references.iter().flatten().any(|o| o.uid == owner) {
                return Ok(());
            }
            match self.release(&api, &latest.metadata, &[owner.to_string()]).await {
                Err(Error::Api(e)) if has_code(&e, 409) => {}
                other => return other,
            }
        }
        let error = kube::core::Status::failure("the dependent keeps changing", "Conflict").with_code(409);
        Err(kube::Error::Api(error.boxed()).into())
    }
}

fn error_text(e: &Error) -> String {
    match e {
        Error::Api(e) => message(e),
        other => other.to_string(),
    }
}
