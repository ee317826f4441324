//! The objects of one resource in the store: keys, compare-and-swap, and what the store's failures mean to clients.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pilothouse_apimachinery::json::{self, Value};
use pilothouse_apimachinery::status::Status;
use pilothouse_store::{Error, Expect, KeyValue, Outcome, Range, RangeResult, Store, prefix_end};
use serde_json::value::RawValue;

use crate::cache::Cache;
use crate::cache::entry::{Codec, Entry, serialize_rest};
use crate::cache::pending::Prepared;
use crate::cache::resource::ResourceCache;
use crate::conversion::View;
use crate::handlers::version;
use crate::raw;

/// How long a read waits for the cache to catch up with the store.
const CATCH_UP: Duration = Duration::from_secs(10);
/// How long a read waits for a revision that a client has named.
const NAMED: Duration = Duration::from_secs(3);

/// How objects become what the store keeps.
pub trait Encode: Codec {
    /// Kind and `apiVersion` of what is stored, where that is the hub version but for `apiVersion`; else the converted
    /// object.
    fn stored(&self, object: &Value) -> Stored;

    /// Time to live of an object.
    fn ttl(&self) -> Option<Duration>;
}

/// What is stored of an object.
pub enum Stored {
    /// The object itself, as this kind and `apiVersion`.
    Same {
        /// Kind.
        kind: Arc<str>,
        /// `apiVersion`.
        api_version: Arc<str>,
    },
    /// Something else.
    Converted(Value),
    /// Bytes in another form than JSON.
    Encoded(Vec<u8>),
}

/// The objects of one resource.
pub struct Storage {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    encode: Arc<dyn Encode>,
    /// What stands in keys before namespace and name: `pods`.
    prefix: String,
    /// The version in which objects are shown, where they have several.
    view: Option<Arc<View>>,
    /// The resource's own cache: objects as they are stored.
    pub objects: Arc<ResourceCache>,
}

fn unavailable(e: Error) -> Status {
    match e {
        Error::TooLarge => Status::too_large("etcdserver: request is too large"),
        Error::NoSpace(_) => Status::failure(500, "", "etcdserver: mvcc: database space exceeded"),
        Error::Compacted { .. } => version::list_expired(),
        Error::Future { newest } => version::too_large(newest + 1, newest),
        Error::Unavailable(why) => Status::failure(500, "", why),
        Error::Broken(why) => Status::internal(why),
    }
}

impl Storage {
    /// Storage of a resource that is in the cache.
    pub fn new(
        store: Arc<dyn Store>,
        cache: Arc<Cache>,
        encode: Arc<dyn Encode>,
        prefix: &str,
        objects: Arc<ResourceCache>,
    ) -> Storage {
        Storage { store, cache, encode, prefix: prefix.to_string(), view: None, objects }
    }

    /// The same objects, shown in a version.
    pub fn viewed(&self, view: Arc<View>) -> Storage {
        Storage {
            store: self.store.clone(),
            cache: self.cache.clone(),
            encode: self.encode.clone(),
            prefix: self.prefix.clone(),
            view: Some(view),
            objects: self.objects.clone(),
        }
    }

    /// The version in which objects are shown, where that can differ from how they are stored.
    pub fn view(&self) -> Option<&Arc<View>> {
        self.view.as_ref().filter(|v| !v.is_plain())
    }

    /// Entries of the cache or the store as this storage shows them.
    pub async fn show(&self, entries: Vec<Arc<Entry>>) -> Result<Vec<Arc<Entry>>, Status> {
        match self.view() {
            Some(view) => view.show(entries).await,
            None => Ok(entries),
        }
    }

    /// The same for one, if it is there.
    pub async fn show_one(&self, entry: Option<Arc<Entry>>) -> Result<Option<Arc<Entry>>, Status> {
        if self.view().is_none() {
            return Ok(entry);
        }
        Ok(self.show(entry.into_iter().collect()).await?.pop())
    }

    /// The whole watch cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The full key of an object, for errors that name it.
    pub fn full_key(&self, key: &str) -> String {
        format!("{}{}/{key}", self.cache.root(), self.prefix)
    }

    /// Waits until the cache holds every write that returned before the call. Gives the revision.
    pub async fn catch_up(&self) -> Result<u64, Status> {
        self.cache.catch_up(CATCH_UP).await.map_err(unavailable)
    }

    /// Waits until the cache holds a revision that a client has named.
    pub async fn reach(&self, revision: u64) -> Result<(), Status> {
        if self.cache.wait_for(revision, NAMED).await {
            Ok(())
        } else {
            Err(version::too_large(revision, self.cache.applied()))
        }
    }

    /// An object, at least as new as every write that returned before the call.
    pub async fn get(&self, key: &str) -> Result<Option<Arc<Entry>>, Status> {
        self.catch_up().await?;
        self.show_one(self.objects.get(key)).await
    }

    /// A range of keys as they are at a revision, read from the store; `prefix` and `start` are without the resource's
    /// own prefix. Objects that the cache has at the same revision are not read again. They are as they are stored:
    /// [`Storage::show`] is up to the caller.
    pub async fn range(
        &self,
        prefix: &str,
        start: &str,
        limit: usize,
        revision: u64,
    ) -> Result<(Vec<Arc<Entry>>, RangeResult), Error> {
        let first = self.cache.key(&self.prefix, if start.is_empty() { prefix } else { start });
        let end = prefix_end(&self.cache.key(&self.prefix, prefix));
        let mut found =
            self.store.range(Range { start: first, end, limit, revision, count_only: false }).await?;
        let skip = self.cache.key(&self.prefix, "").len();
        let entries = found.kvs.drain(..).filter_map(|kv| self.entry(&kv, skip)).collect();
        Ok((entries, found))
    }

    fn entry(&self, kv: &KeyValue, skip: usize) -> Option<Arc<Entry>> {
        let tail = std::str::from_utf8(kv.key.get(skip..)?).ok()?;
        match self.objects.get(tail) {
            Some(e) if e.revision == kv.mod_revision => Some(e),
            _ => Entry::stored(&*self.encode, tail, kv.mod_revision, &kv.value).ok().map(Arc::new),
        }
    }

    /// `text`: that of the resource's raw field, where it is not to be written anew.
    fn prepare(&self, object: Value, text: Option<&RawValue>) -> Arc<Prepared> {
        let text = self.encode.raw_field().zip(text).filter(|(name, _)| object.get(*name).is_some());
        match self.encode.stored(&object) {
            Stored::Same { kind, api_version } => {
                let mut bytes =
                    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{{")
                        .into_bytes();
                let at = bytes.len();
                bytes.extend_from_slice(&serialize_rest(&object, text));
                Arc::new(Prepared::new(bytes.into(), Arc::new(object), Some(at)))
            }
            Stored::Converted(mut value) => {
                if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("resourceVersion");
                }
                Arc::new(Prepared::new(json::to_vec(&value).into(), Arc::new(object), None))
            }
            Stored::Encoded(bytes) => Arc::new(Prepared::new(bytes.into(), Arc::new(object), None)),
        }
    }

    /// Writes an object. `Err` inside is what the key holds instead of what was expected.
    async fn put(
        &self,
        key: &str,
        object: Value,
        text: Option<&RawValue>,
        expect: Expect,
    ) -> Result<Result<Arc<Entry>, Option<KeyValue>>, Status> {
        let object = match &self.view {
            Some(view) => view.to_stored(object).await?,
            None => object,
        };
        let full = self.cache.key(&self.prefix, key);
        let prepared = self.prepare(object, text);
        self.cache.pending().add(&full, &prepared);
        let outcome = self.store.put(full.clone(), prepared.stored.clone(), expect, self.encode.ttl()).await;
        match outcome {
            Ok(Outcome::Done { revision }) => Ok(Ok(prepared.entry(&*self.encode, key, revision))),
            Ok(Outcome::Conflict { current, .. }) => {
                self.cache.pending().drop(&full, &prepared);
                Ok(Err(current))
            }
            Err(e) => {
                self.cache.pending().drop(&full, &prepared);
                Err(unavailable(e))
            }
        }
    }

    /// Creates an object; none where the key is taken. `text` is that of its raw field, if it was sent as JSON.
    pub async fn create(
        &self,
        key: &str,
        object: Value,
        text: Option<&RawValue>,
    ) -> Result<Option<Arc<Entry>>, Status> {
        let made = self.put(key, object, text, Expect::Absent).await?.ok();
        self.show_one(made).await
    }

    /// Begins to change an object, from its state in the cache.
    pub async fn attempt(self: &Arc<Self>, key: &str) -> Result<Attempt, Status> {
        let current = self.show_one(self.objects.get(key)).await?;
        Ok(Attempt { storage: self.clone(), key: key.to_string(), current, fresh: false })
    }
}

/// A change of one object that is computed from its current state, and again when somebody else was faster.
pub struct Attempt {
    storage: Arc<Storage>,
    key: String,
    current: Option<Arc<Entry>>,
    /// Whether `current` is known to be the newest state, as of some moment since the attempt began.
    fresh: bool,
}

impl Attempt {
    /// The object as it is now, as far as is known.
    pub fn current(&self) -> Option<&Arc<Entry>> {
        self.current.as_ref()
    }

    /// After a refusal that may be owed to an old state: takes the newest one. `false` where it was the newest already,
    /// so that the refusal stands.
    pub async fn refresh(&mut self) -> Result<bool, Status> {
        if self.fresh {
            return Ok(false);
        }
        self.fresh = true;
        let newest = self.storage.get(&self.key).await?;
        let same = newest.as_ref().map(|e| e.revision) == self.current.as_ref().map(|e| e.revision);
        self.current = newest;
        Ok(!same)
    }

    /// Whether the object would be stored otherwise than it is, though nothing in it changes.
    pub fn is_stale(&self) -> bool {
        self.storage.store.is_stale(&self.storage.cache.key(&self.storage.prefix, &self.key))
    }

    async fn learn(&mut self, current: Option<KeyValue>) -> Result<(), Status> {
        let skip = self.storage.cache.key(&self.storage.prefix, "").len();
        self.fresh = true;
        let found = match current {
            None => None,
            Some(kv) => Some(self.storage.entry(&kv, skip).ok_or_else(|| {
                Status::internal(format!("the object at {} cannot be read", self.storage.full_key(&self.key)))
            })?),
        };
        self.current = self.storage.show_one(found).await?;
        Ok(())
    }

    fn expect(&self) -> Expect {
        self.current.as_ref().map_or(Expect::Absent, |e| Expect::Revision(e.revision))
    }

    /// Writes what was computed. None where somebody was faster: compute again from [`Attempt::current`].
    pub async fn write(&mut self, object: Value) -> Result<Option<Arc<Entry>>, Status> {
        // The raw field cannot change: what it is called by now is what it was called at first.
        let text =
            self.storage.encode.raw_field().and_then(|name| raw::member(self.current.as_ref()?.body(), name));
        match self.storage.put(&self.key, object, text.as_deref(), self.expect()).await? {
            Ok(entry) => {
                self.current = self.storage.show_one(Some(entry)).await?;
                Ok(self.current.clone())
            }
            Err(current) => {
                self.learn(current).await?;
                Ok(None)
            }
        }
    }

    /// Deletes the object. The revision of the deletion; none where somebody was faster.
    pub async fn delete(&mut self) -> Result<Option<u64>, Status> {
        let full = self.storage.cache.key(&self.storage.prefix, &self.key);
        match self.storage.store.delete(full, self.expect()).await.map_err(unavailable)? {
            Outcome::Done { revision } => Ok(Some(revision)),
            Outcome::Conflict { current, .. } => {
                self.learn(current).await?;
                Ok(None)
            }
        }
    }
}

/// A `Status` for a failure of the store.
pub fn store_failure(e: Error) -> Status {
    unavailable(e)
}

/// Bytes of an entry with kind and version in front: the whole JSON of an object.
pub fn with_type(kind: &str, api_version: &str, body: &Bytes) -> Bytes {
    let mut out = Vec::with_capacity(body.len() + kind.len() + api_version.len() + 32);
    out.extend_from_slice(b"{\"kind\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"apiVersion\":\"");
    out.extend_from_slice(api_version.as_bytes());
    out.extend_from_slice(b"\",");
    out.extend_from_slice(body.get(1..).unwrap_or_default());
    Bytes::from(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;
    use crate::cache::entry::tests::Plain;
    use crate::cache::resource::Window;
    use crate::cache::test_store::MemoryStore;

    struct PlainPods;

    impl Codec for PlainPods {
        fn decode(&self, value: &[u8]) -> Result<Value, String> {
            Plain.decode(value)
        }
        fn fields(&self, object: &Value) -> Vec<(Arc<str>, String)> {
            Plain.fields(object)
        }
        fn namespaced(&self) -> bool {
            true
        }
    }

    impl Encode for PlainPods {
        fn stored(&self, _: &Value) -> Stored {
            Stored::Same { kind: "Pod".into(), api_version: "v1".into() }
        }
        fn ttl(&self) -> Option<Duration> {
            None
        }
    }

    fn storage() -> (Arc<Storage>, tokio::task::JoinHandle<()>) {
        let store = Arc::new(MemoryStore::default());
        let (cache, feed) = Cache::new(store.clone(), "/registry/", Window::default());
        let encode = Arc::new(PlainPods);
        let objects = cache.add_early("pods", encode.clone());
        let task = tokio::spawn(feed.run(std::future::pending()));
        (Arc::new(Storage::new(store, cache, encode, "pods", objects)), task)
    }

    fn pod(n: i64) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "resourceVersion": "7"}, "n": n})
    }

    #[tokio::test]
    async fn what_is_written_can_be_read() {
        let (s, task) = storage();
        let made = s.create("ns/a", pod(1), None).await.unwrap().unwrap();
        assert!(s.create("ns/a", pod(2), None).await.unwrap().is_none());
        let read = s.get("ns/a").await.unwrap().unwrap();
        assert_eq!((read.revision, read.body()), (made.revision, made.body()));
        let (raw, _) = s.store.get(b"/registry/pods/ns/a").await.unwrap();
        assert_eq!(
            &raw.unwrap().value[..],
            br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"},"n":1}"#
        );
        task.abort();
    }

    #[tokio::test]
    async fn losers_compute_again() {
        let (s, task) = storage();
        s.create("ns/a", pod(0), None).await.unwrap();
        s.catch_up().await.unwrap();
        let mut one = s.attempt("ns/a").await.unwrap();
        let mut two = s.attempt("ns/a").await.unwrap();
        assert!(one.write(pod(1)).await.unwrap().is_some());
        assert!(two.write(pod(2)).await.unwrap().is_none());
        assert_eq!(two.current().unwrap().object()["n"], 1);
        assert!(!two.refresh().await.unwrap());
        assert!(two.write(pod(2)).await.unwrap().is_some());
        let mut gone = s.attempt("ns/a").await.unwrap();
        gone.refresh().await.unwrap();
        assert!(gone.delete().await.unwrap().is_some());
        assert!(two.delete().await.unwrap().is_none());
        assert!(two.current().is_none());
        task.abort();
    }

    #[tokio::test]
    async fn old_states_are_read_from_the_store() {
        let (s, task) = storage();
        for i in 0..3 {
            s.create(&format!("ns/{i}"), pod(i), None).await.unwrap();
        }
        let then = s.catch_up().await.unwrap();
        let mut a = s.attempt("ns/1").await.unwrap();
        a.write(pod(100)).await.unwrap();
        let (entries, found) = s.range("ns/", "", 2, then).await.unwrap();
        assert_eq!((entries.len(), found.more, found.count), (2, true, 3));
        assert_eq!(entries[1].object()["n"], 1);
        let (rest, found) = s.range("ns/", "ns/1\0", 2, then).await.unwrap();
        assert_eq!((rest.len(), found.more), (1, false));
        task.abort();
    }
}
