//! Objects that this server is writing: when the store's watch brings their bytes back, they need not be parsed.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use pilothouse_apimachinery::json::Value;

use super::entry::{Codec, Entry};

/// An object on its way to the store.
pub struct Prepared {
    /// What the store gets.
    pub stored: Bytes,
    object: Arc<Value>,
    /// Where in `stored` begins what [`super::entry::serialize_rest`] made, if it is in there.
    rest: Option<usize>,
    entry: OnceLock<Arc<Entry>>,
}

impl Prepared {
    /// An object in the hub version, with what the store gets for it; `rest` says from where on the stored bytes are
    /// the object's own serialization.
    pub fn new(stored: Bytes, object: Arc<Value>, rest: Option<usize>) -> Prepared {
        Prepared { stored, object, rest, entry: OnceLock::new() }
    }

    /// The entry of the object, once its revision is known.
    pub fn entry(&self, codec: &dyn Codec, key: &str, revision: u64) -> Arc<Entry> {
        self.entry
            .get_or_init(|| {
                let rest = self.rest.and_then(|at| self.stored.get(at..));
                Arc::new(Entry::new(codec, key, revision, self.object.clone(), rest))
            })
            .clone()
    }
}

/// The objects on their way, by full key.
#[derive(Default)]
pub struct Pending(Mutex<HashMap<Bytes, Vec<Arc<Prepared>>>>);

impl Pending {
    /// Notes a write that is about to begin.
    pub fn add(&self, key: &Bytes, prepared: &Arc<Prepared>) {
        self.0.lock().entry(key.clone()).or_default().push(prepared.clone());
    }

    /// Forgets a write that did not happen.
    pub fn drop(&self, key: &Bytes, prepared: &Arc<Prepared>) {
        let mut all = self.0.lock();
        if let Some(list) = all.get_mut(key) {
            list.retain(|p| !Arc::ptr_eq(p, prepared));
            if list.is_empty() {
                all.remove(key);
            }
        }
    }

    /// Takes the write that stored `value`, and forgets older ones of the same key.
    pub fn take(&self, key: &Bytes, value: &Bytes) -> Option<Arc<Prepared>> {
        let mut all = self.0.lock();
        let list = all.get_mut(key)?;
        let at = list.iter().position(|p| p.stored == *value)?;
        let found = list.swap_remove(at);
        if list.is_empty() {
            all.remove(key);
        }
        Some(found)
    }

    /// Forgets everything: the watch has had a gap.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}
