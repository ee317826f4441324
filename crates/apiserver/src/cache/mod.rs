//! The watch cache: one watch over the whole key space of the store feeds the objects, indexes and histories of all
//! resources, which so move through revisions together.

pub mod entry;
pub mod fresh;
pub mod pending;
pub mod resource;
#[cfg(test)]
pub(crate) mod test_store;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::RwLock;
use pilothouse_store::{Error, Event, KeyValue, Range, Store, prefix_end};
use tokio::sync::{mpsc, oneshot, watch};

use entry::{Codec, Entry};
use fresh::Fresh;
use pending::Pending;
use resource::{ResourceCache, Window};

/// How many keys are read at once when a cache is filled.
const PAGE: usize = 1000;
/// How long to wait before the store is asked again after a failure.
const RETRY: Duration = Duration::from_millis(500);

enum Command {
    Add { prefix: String, codec: Arc<dyn Codec>, done: oneshot::Sender<Arc<ResourceCache>> },
    Remove { prefix: String },
}

/// The caches of all resources.
pub struct Cache {
    store: Arc<dyn Store>,
    /// First part of every key, with a slash behind it: `/registry/`.
    root: String,
    window: Window,
    /// By what stands in keys between the root and the namespace or name: `pods`, `services/specs`.
    resources: RwLock<HashMap<String, Arc<ResourceCache>>>,
    applied: watch::Sender<u64>,
    fresh: Fresh,
    pending: Pending,
    commands: mpsc::UnboundedSender<Command>,
}

/// The part of the cache that reads the store's watch; [`Feed::run`] is to be spawned.
pub struct Feed {
    cache: Arc<Cache>,
    commands: mpsc::UnboundedReceiver<Command>,
}

impl Cache {
    /// A cache of `store`, empty until [`Feed::run`] has read it. `root` is `/registry/`.
    pub fn new(store: Arc<dyn Store>, root: &str, window: Window) -> (Arc<Cache>, Feed) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let cache = Arc::new(Cache {
            fresh: Fresh::new(store.clone()),
            store,
            root: root.to_string(),
            window,
            resources: RwLock::default(),
            applied: watch::channel(0).0,
            pending: Pending::default(),
            commands,
        });
        (cache.clone(), Feed { cache, commands: receiver })
    }

    /// First part of every key.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Objects on their way to the store.
    pub fn pending(&self) -> &Pending {
        &self.pending
    }

    /// The full key of an object.
    pub fn key(&self, prefix: &str, key: &str) -> Bytes {
        let mut full = String::with_capacity(self.root.len() + prefix.len() + key.len() + 1);
        full.push_str(&self.root);
        full.push_str(prefix);
        full.push('/');
        full.push_str(key);
        Bytes::from(full)
    }

    /// Adds a resource before the cache is filled.
    pub fn add_early(&self, prefix: &str, codec: Arc<dyn Codec>) -> Arc<ResourceCache> {
        let cache = Arc::new(ResourceCache::new(codec, self.window));
        self.resources.write().insert(prefix.to_string(), cache.clone());
        cache
    }

    /// Adds a resource while the cache runs, or reads it anew with another codec; filled when this returns. `None` when
    /// the server stops.
    pub async fn add(&self, prefix: &str, codec: Arc<dyn Codec>) -> Option<Arc<ResourceCache>> {
        let (done, filled) = oneshot::channel();
        self.commands.send(Command::Add { prefix: prefix.to_string(), codec, done }).ok()?;
        filled.await.ok()
    }

    /// Forgets a resource.
    pub fn remove(&self, prefix: &str) {
        // Nobody to tell when the feed is gone.
        let _ = self.commands.send(Command::Remove { prefix: prefix.to_string() });
    }

    /// The cache of a resource.
    pub fn resource(&self, prefix: &str) -> Option<Arc<ResourceCache>> {
        self.resources.read().get(prefix).cloned()
    }

    /// The revision up to which all changes are in the cache; 0 before it is filled.
    pub fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// Waits until the cache has reached a revision. `false` when it took longer than `limit`.
    pub async fn wait_for(&self, revision: u64, limit: Duration) -> bool {
        if self.applied() >= revision {
            return true;
        }
        let mut applied = self.applied.subscribe();
        let reached = applied.wait_for(|r| *r >= revision);
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }

    /// Waits until the cache holds every write that returned before the call. Gives the revision reached.
    pub async fn catch_up(&self, limit: Duration) -> Result<u64, Error> {
        let revision = self.fresh.revision().await?;
        if self.wait_for(revision, limit).await {
            Ok(revision)
        } else {
            Err(Error::Unavailable(format!("the watch cache has not reached revision {revision}")))
        }
    }

    /// The resource of a full key, with the prefix and what comes after it.
    fn locate<'k>(&self, key: &'k [u8]) -> Option<(Arc<ResourceCache>, &'k str)> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(self.root.as_str())?;
        let resources = self.resources.read();
        // Longest prefix first: `services/specs` before `services`.
        let (first, tail) = rest.split_once('/')?;
        if let Some((second, tail)) = tail.split_once('/')
            && let Some(found) = resources.get(&rest[..first.len() + 1 + second.len()])
        {
            return Some((found.clone(), tail));
        }
        resources.get(first).map(|found| (found.clone(), tail))
    }

    /// Whether a key's tail is that of an object: namespace and name, or a name.
    fn fits(resource: &ResourceCache, tail: &str) -> bool {
        let parts = tail.split('/').count();
        parts == if resource.codec().namespaced() { 2 } else { 1 }
    }

    /// The entry of a key that was read or watched.
    pub fn entry_of(&self, resource: &ResourceCache, tail: &str, kv: &KeyValue) -> Option<Arc<Entry>> {
        let codec = resource.codec();
        if let Some(prepared) = self.pending.take(&kv.key, &kv.value) {
            return Some(prepared.entry(&**codec, tail, kv.mod_revision));
        }
        match Entry::stored(&**codec, tail, kv.mod_revision, &kv.value) {
            Ok(entry) => Some(Arc::new(entry)),
            Err(e) => {
                tracing::warn!(key = %String::from_utf8_lossy(&kv.key), "an object in the store cannot be read: {e}");
                None
            }
        }
    }

    fn apply(&self, events: &[Event]) {
        for event in events {
            if let Some((resource, tail)) = self.locate(event.key())
                && Self::fits(&resource, tail)
            {
                let current = match event {
                    Event::Put(kv) => self.entry_of(&resource, tail, kv),
                    Event::Delete { .. } => None,
                };
                resource.apply(tail, current, event.revision());
            }
        }
        if let Some(last) = events.last() {
            self.applied.send_replace(last.revision());
        }
    }
}

impl Feed {
    /// Fills the cache and keeps it up with the store, until the cache is dropped by everybody else or `stop` ends.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        tokio::select! {
            () = &mut stop => {}
            () = self.follow() => {}
        }
    }

    async fn follow(&mut self) {
        let mut filled = false;
        loop {
            if !filled {
                match self.fill().await {
                    Ok(()) => filled = true,
                    Err(e) => {
                        tracing::warn!("reading the store: {e}");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
            match self.watch().await {
                Ok(()) => return,
                Err(Error::Compacted { oldest }) => {
                    tracing::warn!(oldest, "the store's history has a gap; reading everything again");
                    filled = false;
                }
                Err(e) => {
                    tracing::warn!("watching the store: {e}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Reads all keys as they are at one revision.
    async fn fill(&mut self) -> Result<(), Error> {
        let cache = self.cache.clone();
        cache.pending.clear();
        let mut all: HashMap<usize, (Arc<ResourceCache>, Vec<Arc<Entry>>)> = HashMap::new();
        for resource in cache.resources.read().values() {
            all.insert(Arc::as_ptr(resource).addr(), (resource.clone(), Vec::new()));
        }
        let revision = read_all(&*cache.store, cache.root.as_bytes(), 0, |kv| {
            if let Some((resource, tail)) = cache.locate(&kv.key)
                && Cache::fits(&resource, tail)
                && let Some(entry) = cache.entry_of(&resource, tail, kv)
                && let Some((_, entries)) = all.get_mut(&Arc::as_ptr(&resource).addr())
            {
                entries.push(entry);
            }
        })
        .await?;
        for (resource, entries) in all.into_values() {
            resource.replace(entries, revision);
        }
        cache.applied.send_replace(revision);
        Ok(())
    }

    /// Follows the store's watch. Returns when the cache is no longer wanted.
    async fn watch(&mut self) -> Result<(), Error> {
        let from = self.cache.applied() + 1;
        // All keys, not only ours: the store's revision counts every write, and readers wait for it.
        let mut stream = self.cache.store.watch(Bytes::new(), from).await?;
        loop {
            tokio::select! {
                batch = stream.next() => match batch {
                    Some(Ok(events)) => self.cache.apply(&events),
                    Some(Err(e)) => return Err(e),
                    None => return Err(Error::Unavailable("the watch ended".into())),
                },
                command = self.commands.recv() => match command {
                    Some(Command::Add { prefix, codec, done }) => {
                        let resource = self.add(&prefix, codec).await?;
                        let _ = done.send(resource);
                    }
                    Some(Command::Remove { prefix }) => {
                        let gone = self.cache.resources.write().remove(&prefix);
                        if let Some(gone) = gone {
                            // Ends its watchers.
                            gone.replace(Vec::new(), self.cache.applied());
                        }
                    }
                    None => return Ok(()),
                },
            }
        }
    }

    /// Fills one resource between two batches of events, so that no change is missed or seen twice.
    async fn add(&mut self, prefix: &str, codec: Arc<dyn Codec>) -> Result<Arc<ResourceCache>, Error> {
        let resource = Arc::new(ResourceCache::new(codec, self.cache.window));
        let start = format!("{}{prefix}/", self.cache.root);
        let mut entries = Vec::new();
        // Read as of now: what the watch brings up to then is in it already and will be left out.
        let revision = read_all(&*self.cache.store, start.as_bytes(), 0, |kv| {
            let tail = std::str::from_utf8(&kv.key).ok().and_then(|k| k.strip_prefix(&start));
            if let Some(tail) = tail.filter(|t| Cache::fits(&resource, t))
                && let Some(entry) = self.cache.entry_of(&resource, tail, kv)
            {
                entries.push(entry);
            }
        })
        .await?;
        resource.replace(entries, revision);
        let before = self.cache.resources.write().insert(prefix.to_string(), resource.clone());
        if let Some(before) = before {
            // Ends its watchers: the resource's schema may have changed.
            before.replace(Vec::new(), revision);
        }
        Ok(resource)
    }
}

/// Reads all keys below a prefix at one revision (0: now), page by page. Gives the revision.
async fn read_all(
    store: &dyn Store,
    prefix: &[u8],
    at: u64,
    mut each: impl FnMut(&KeyValue),
) -> Result<u64, Error> {
    let end = prefix_end(prefix);
    let mut start = Bytes::copy_from_slice(prefix);
    let mut revision = at;
    loop {
        let page =
            store.range(Range { start, end: end.clone(), limit: PAGE, revision, count_only: false }).await?;
        if revision == 0 {
            revision = page.revision;
        }
        page.kvs.iter().for_each(&mut each);
        match page.kvs.last() {
            Some(last) if page.more => {
                let mut next = last.key.to_vec();
                next.push(0);
                start = Bytes::from(next);
            }
            _ => return Ok(revision),
        }
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_store::Expect;

    use super::entry::tests::Plain;
    use super::test_store::MemoryStore;
    use super::*;

    async fn put(store: &MemoryStore, key: &str, node: &str) -> u64 {
        let value = json!({"metadata": {"name": "x"}, "spec": {"nodeName": node}}).to_string();
        match store
            .put(Bytes::copy_from_slice(key.as_bytes()), value.into(), Expect::Any, None)
            .await
            .unwrap()
        {
            pilothouse_store::Outcome::Done { revision } => revision,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn follows_the_store_and_takes_resources_at_run_time() {
        let store = Arc::new(MemoryStore::default());
        put(&store, "/registry/pods/ns/a", "n1").await;
        put(&store, "/registry/e.com/things/ns/t", "n1").await;
        let (cache, feed) = Cache::new(store.clone(), "/registry/", Window::default());
        let pods = cache.add_early("pods", Arc::new(Plain));
        let (stopper, stop) = oneshot::channel::<()>();
        let task = tokio::spawn(feed.run(async {
            let _ = stop.await;
        }));
        assert_eq!(cache.catch_up(Duration::from_secs(5)).await.unwrap(), 3);
        assert_eq!(pods.len(), 1);
        let r = put(&store, "/registry/pods/ns/b", "n2").await;
        assert_eq!(cache.catch_up(Duration::from_secs(5)).await.unwrap(), r);
        assert_eq!(pods.list("ns/").entries.len(), 2);
        // Keys deeper or shallower than an object's are not objects.
        put(&store, "/registry/pods/x", "n").await;
        put(&store, "/registry/pods/ns/b/c", "n").await;
        cache.catch_up(Duration::from_secs(5)).await.unwrap();
        assert_eq!(pods.len(), 2);

        let things = cache.add("e.com/things", Arc::new(Plain)).await.unwrap();
        assert_eq!(things.len(), 1);
        put(&store, "/registry/e.com/things/ns/u", "n").await;
        cache.catch_up(Duration::from_secs(5)).await.unwrap();
        assert_eq!(things.len(), 2);
        cache.remove("e.com/things");
        let _ = stopper.send(());
        task.await.unwrap();
    }

    #[tokio::test]
    async fn own_writes_are_not_parsed_again() {
        let store = Arc::new(MemoryStore::default());
        let (cache, feed) = Cache::new(store.clone(), "/registry/", Window::default());
        let pods = cache.add_early("pods", Arc::new(Plain));
        let task = tokio::spawn(feed.run(std::future::pending()));
        cache.catch_up(Duration::from_secs(5)).await.unwrap();
        let key = cache.key("pods", "ns/a");
        // Not JSON: only the prepared object can have made the entry.
        let stored = Bytes::from_static(b"not json");
        let object = Arc::new(json!({"metadata": {"name": "a"}}));
        let prepared = Arc::new(pending::Prepared::new(stored.clone(), object, None));
        cache.pending().add(&key, &prepared);
        store.put(key, stored, Expect::Absent, None).await.unwrap();
        cache.catch_up(Duration::from_secs(5)).await.unwrap();
        assert_eq!(pods.get("ns/a").unwrap().name(), "a");
        task.abort();
    }
}
