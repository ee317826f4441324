//! A local copy of one kind, kept up to date by list and watch, that tells whoever asks of each change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use kube::runtime::watcher;
use kube::{Api, Resource};
use parking_lot::RwLock;
use pilothouse_component_base::signals::Stop;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::raw::{self, Fed};

/// One change of the local copy.
#[derive(Debug, Clone)]
pub enum Change<K> {
    /// The object is new here.
    Added(Arc<K>),
    /// The object was there before.
    Updated(Arc<K>, Arc<K>),
    /// The object is gone; this is what it last was.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The object as it is now, or as it last was.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Added(k) | Change::Updated(_, k) | Change::Deleted(k) => k,
        }
    }
}

/// `namespace/name`, or `name` for a cluster-wide object.
pub fn key_of<K: Resource>(object: &K) -> String {
    let meta = object.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    match meta.namespace.as_deref() {
        Some(ns) if !ns.is_empty() => format!("{ns}/{name}"),
        _ => name.to_string(),
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;
type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;

struct Index<K> {
    values: IndexFn<K>,
    keys: HashMap<String, BTreeSet<String>>,
}

struct State<K> {
    objects: BTreeMap<String, Arc<K>>,
    indexes: HashMap<&'static str, Index<K>>,
}

struct Shared<K> {
    state: RwLock<State<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// See the module. Cheap to clone; all clones are the same copy.
pub struct Informer<K>(Arc<Shared<K>>);

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer(self.0.clone())
    }
}

impl<K> Default for Informer<K>
where
    K: Resource + Send + Sync + 'static,
{
    fn default() -> Self {
        Self::new()
    }
}

impl<K> Informer<K>
where
    K: Resource + Send + Sync + 'static,
{
    /// An empty copy that is not fed yet: by [`Informer::run`], or by a test through [`Informer::apply`].
    pub fn new() -> Self {
        let state = State { objects: BTreeMap::new(), indexes: HashMap::new() };
        Informer(Arc::new(Shared {
            state: RwLock::new(state),
            handlers: RwLock::new(Vec::new()),
            synced: watch::channel(false).0,
        }))
    }

    /// Calls `f` for each change from now on, in order, and at once for each object already here. `f` must not block.
    pub fn on_change(&self, f: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.0.handlers.write();
        for object in self.0.state.read().objects.values() {
            f(&Change::Added(object.clone()));
        }
        handlers.push(Box::new(f));
    }

    /// Adds an index: `values` gives the values under which [`Informer::by_index`] finds an object.
    pub fn add_index(&self, name: &'static str, values: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) {
        let mut state = self.0.state.write();
        let mut keys: HashMap<String, BTreeSet<String>> = HashMap::new();
        for (key, object) in &state.objects {
            for v in values(object) {
                keys.entry(v).or_default().insert(key.clone());
            }
        }
        state.indexes.insert(name, Index { values: Box::new(values), keys });
    }

    /// The object of that key (see [`key_of`]).
    pub fn get(&self, key: &str) -> Option<Arc<K>> {
        self.0.state.read().objects.get(key).cloned()
    }

    /// All objects, by key.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.state.read().objects.values().cloned().collect()
    }

    /// All objects of a namespace, by key.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let prefix = format!("{namespace}/");
        let state = self.0.state.read();
        state
            .objects
            .range(prefix.clone()..)
            .take_while(|(k, _)| k.starts_with(&prefix))
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// All objects that an index has under a value.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.0.state.read();
        let Some(keys) = state.indexes.get(index).and_then(|i| i.keys.get(value)) else { return Vec::new() };
        keys.iter().filter_map(|k| state.objects.get(k).cloned()).collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.0.state.read().objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the first list is here.
    pub fn synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// Returns when the first list is here.
    pub async fn wait_synced(&self) {
        let _ = self.0.synced.subscribe().wait_for(|s| *s).await;
    }

    /// Puts an object in, as if the server had sent it.
    pub fn apply(&self, object: K) {
        let (key, new) = (key_of(&object), Arc::new(object));
        // Handlers are held for the whole change so that two changes of one object are told in their order.
        let handlers = self.0.handlers.read();
        let old = self.0.set(&key, Some(new.clone()));
        let change = match old {
            Some(old)
                if old.meta().resource_version.is_some()
                    && old.meta().resource_version == new.meta().resource_version =>
            {
                return;
            }
            Some(old) => Change::Updated(old, new),
            None => Change::Added(new),
        };
        handlers.iter().for_each(|h| h(&change));
    }

    /// Takes an object out, as if the server had said that it is gone.
    pub fn remove(&self, key: &str) {
        let handlers = self.0.handlers.read();
        if let Some(old) = self.0.set(key, None) {
            let change = Change::Deleted(old);
            handlers.iter().for_each(|h| h(&change));
        }
    }

    /// Says that the copy is complete.
    pub fn mark_synced(&self) {
        self.0.synced.send_replace(true);
    }
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Keeps the copy up to date from `api` until `stop`: list, watch, and list again when a watch cannot go on.
    pub fn run(&self, api: Api<K>, config: watcher::Config, stop: Stop) -> JoinHandle<()> {
        tokio::spawn(raw::follow(raw::untyped(api), config, Arc::new(self.clone()), stop))
    }
}

impl<K> Fed for Informer<K>
where
    K: Resource + DeserializeOwned + Send + Sync + 'static,
{
    fn put(&self, text: &str) -> Result<(), serde_json::Error> {
        self.apply(serde_json::from_str(text)?);
        Ok(())
    }

    fn take_out(&self, key: &str) {
        self.remove(key);
    }

    fn keys(&self) -> Vec<String> {
        self.0.state.read().objects.keys().cloned().collect()
    }

    fn complete(&self) {
        self.mark_synced();
    }
}

impl<K> Shared<K> {
    fn set(&self, key: &str, new: Option<Arc<K>>) -> Option<Arc<K>> {
        let mut state = self.state.write();
        let State { objects, indexes } = &mut *state;
        let old = match &new {
            Some(o) => objects.insert(key.to_string(), o.clone()),
            None => objects.remove(key),
        };
        for index in indexes.values_mut() {
            for v in old.iter().flat_map(|o| (index.values)(o)) {
                if let Some(keys) = index.keys.get_mut(&v) {
                    keys.remove(key);
                    if keys.is_empty() {
                        index.keys.remove(&v);
                    }
                }
            }
            for v in new.iter().flat_map(|o| (index.values)(o)) {
                index.keys.entry(v).or_default().insert(key.to_string());
            }
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use parking_lot::Mutex;

    fn pod(name: &str, node: &str, rv: &str) -> Pod {
        serde_json::from_value(serde_json::json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "ns", "name": name, "resourceVersion": rv},
            "spec": {"containers": [], "nodeName": node}}))
        .unwrap()
    }

    #[test]
    fn tells_changes_in_order_and_keeps_indexes() {
        let informer: Informer<Pod> = Informer::new();
        informer.add_index("node", |p| p.spec.iter().filter_map(|s| s.node_name.clone()).collect());
        informer.apply(pod("a", "n1", "1"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let l = log.clone();
        informer.on_change(move |c| {
            l.lock().push(match c {
                Change::Added(o) => format!("+{}", key_of(&**o)),
                Change::Updated(_, o) => format!("~{}", key_of(&**o)),
                Change::Deleted(o) => format!("-{}", key_of(&**o)),
            })
        });
        informer.apply(pod("a", "n2", "2"));
        informer.apply(pod("a", "n2", "2"));
        informer.apply(pod("b", "n2", "3"));
        informer.remove("ns/a");
        informer.remove("ns/a");
        assert_eq!(*log.lock(), ["+ns/a", "~ns/a", "+ns/b", "-ns/a"]);
        assert_eq!(informer.by_index("node", "n1").len(), 0);
        assert_eq!(informer.by_index("node", "n2").len(), 1);
        assert_eq!(informer.list_namespace("ns").len(), 1);
        assert_eq!(informer.list_namespace("n").len(), 0);
    }
}
