//! Sets of numbers that all servers allocate from: a bitmap in the store, changed by compare-and-swap.
//!
//! Key, envelope and bitmap are Kubernetes' own (`RangeAllocation`; the bitmap is the big-endian form of a number
//! whose bit *i* says whether *i* is taken), so that v1.20 can take over and hand back.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use pilothouse_api::protobuf;
use pilothouse_api::schema::Schema;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;
use pilothouse_store::{Expect, Outcome, Store};

use crate::json::str_at;

/// How often a change is tried before the server gives up: each failure means that somebody else got on.
const ATTEMPTS: usize = 100;

/// A bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitmap {
    /// Least significant first.
    words: Vec<u64>,
}

impl Bitmap {
    /// From its stored form: bytes, most significant first.
    pub fn from_bytes(bytes: &[u8]) -> Bitmap {
        let words = bytes.rchunks(8).map(|c| c.iter().fold(0u64, |w, b| (w << 8) | u64::from(*b))).collect();
        Bitmap { words }
    }

    /// The stored form, without leading zeros.
    pub fn to_bytes(&self) -> Vec<u8> {
        let all: Vec<u8> = self.words.iter().rev().flat_map(|w| w.to_be_bytes()).collect();
        let zeros = all.iter().take_while(|b| **b == 0).count();
        all[zeros..].to_vec()
    }

    /// Whether a number is taken.
    pub fn has(&self, n: usize) -> bool {
        self.words.get(n / 64).is_some_and(|w| w >> (n % 64) & 1 == 1)
    }

    /// Takes or frees a number.
    pub fn set(&mut self, n: usize, taken: bool) {
        if self.words.len() <= n / 64 {
            self.words.resize(n / 64 + 1, 0);
        }
        if taken {
            self.words[n / 64] |= 1 << (n % 64);
        } else {
            self.words[n / 64] &= !(1 << (n % 64));
        }
    }

    /// The first free number of `0..size` from `start` on, with a wrap to the beginning.
    pub fn free(&self, start: usize, size: usize) -> Option<usize> {
        (start..size).chain(0..start.min(size)).find(|n| !self.has(*n))
    }

    /// The numbers that are taken.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.words.len() * 64).filter(|n| self.has(*n))
    }
}

/// A bitmap in the store.
pub struct Range {
    store: Arc<dyn Store>,
    key: Bytes,
    /// `10.0.0.0/24`, `30000-32767`: what the bitmap is about. A stored bitmap about something else is no use.
    text: String,
    release: Release,
}

impl Range {
    /// The range under `<prefix>/ranges/<name>`.
    pub fn new(store: Arc<dyn Store>, prefix: &str, name: &str, text: String, release: Release) -> Range {
        let key = Bytes::from(format!("{}/ranges/{name}", prefix.trim_end_matches('/')));
        Range { store, key, text, release }
    }

    fn decode(&self, stored: &[u8]) -> Result<Option<Bitmap>, Status> {
        let object: Value = if protobuf::has_prefix(stored) {
            let schema = Schema::of(self.release, "", "v1", "RangeAllocation")
                .ok_or_else(|| Status::internal("no kind RangeAllocation"))?;
            let envelope = protobuf::open(stored).map_err(Status::internal)?;
            protobuf::decode(schema, &envelope).map_err(Status::internal)?
        } else {
            serde_json::from_slice(stored).map_err(Status::internal)?
        };
        if str_at(&object, &["range"]) != self.text {
            return Ok(None);
        }
        let bytes = STANDARD.decode(str_at(&object, &["data"])).map_err(Status::internal)?;
        Ok(Some(Bitmap::from_bytes(&bytes)))
    }

    fn encode(&self, bitmap: &Bitmap) -> Bytes {
        let object = json!({
            "kind": "RangeAllocation", "apiVersion": "v1", "metadata": {"creationTimestamp": null},
            "range": self.text, "data": STANDARD.encode(bitmap.to_bytes()),
        });
        Bytes::from(object.to_string())
    }

    /// Reads, changes and writes the bitmap, again when another server was faster. What is stored about another range
    /// is replaced. `change` says with `None` that nothing is to be written.
    pub async fn change<T>(
        &self,
        mut change: impl FnMut(&mut Bitmap) -> Option<T> + Send,
    ) -> Result<Option<T>, Status> {
        for _ in 0..ATTEMPTS {
            let (current, _) = self.store.get(&self.key).await.map_err(crate::storage::store_failure)?;
            let mut bitmap = match &current {
                Some(kv) => self.decode(&kv.value)?.unwrap_or_default(),
                None => Bitmap::default(),
            };
            let before = bitmap.clone();
            let Some(result) = change(&mut bitmap) else { return Ok(None) };
            if bitmap == before && current.is_some() {
                return Ok(Some(result));
            }
            let expect = current.map_or(Expect::Absent, |kv| Expect::Revision(kv.mod_revision));
            let put = self.store.put(self.key.clone(), self.encode(&bitmap), expect, None).await;
            if let Outcome::Done { .. } = put.map_err(crate::storage::store_failure)? {
                return Ok(Some(result));
            }
        }
        Err(Status::internal("allocation failed: too many others allocate at the same time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_have_gos_form() {
        let mut b = Bitmap::default();
        for n in [0, 9, 70] {
            b.set(n, true);
        }
        // A number with bits 0, 9 and 70, most significant byte first.
        assert_eq!(b.to_bytes(), [0x40, 0, 0, 0, 0, 0, 0, 0x02, 0x01]);
        let again = Bitmap::from_bytes(&b.to_bytes());
        assert_eq!(again.iter().collect::<Vec<_>>(), [0, 9, 70]);
        b.set(70, false);
        assert_eq!(b.to_bytes(), [0x02, 0x01]);
    }

    #[test]
    fn finds_what_is_free() {
        let mut b = Bitmap::default();
        for n in [2, 3, 0] {
            b.set(n, true);
        }
        assert_eq!(b.free(2, 4), Some(1));
        b.set(1, true);
        assert_eq!(b.free(2, 4), None);
        assert_eq!(b.free(9, 4), None);
        assert_eq!(b.free(0, 5), Some(4));
    }
}
