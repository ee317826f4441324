//! Custom resources in another version than the one in which they are stored. What changes versions is a [`View`], and
//! [`crate::storage::Storage`] is where it does: whoever reads through a storage gets objects in the version of the
//! storage's view, and what is written goes through it the other way.

pub mod review;

use std::sync::{Arc, OnceLock};

use pilothouse_api::crd::Family;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use crate::cache::entry::{Codec, Entry};
use crate::json::{get, str_at};
use crate::outbound::webhook::Clients;
use crate::request::Objects;

/// How long a conversion webhook may take, in seconds.
const TIMEOUT: u64 = 30;

/// Calls conversion webhooks.
#[derive(Default)]
pub struct Converter {
    clients: Clients,
    objects: OnceLock<Arc<dyn Objects>>,
}

impl Converter {
    /// Sets where services are looked up. They are made of parts that need the converter themselves.
    pub fn set_objects(&self, objects: Arc<dyn Objects>) {
        let _ = self.objects.set(objects);
    }

    /// Objects of a family (with `apiVersion` and `kind`) in another of its versions.
    pub async fn convert(
        &self,
        family: &Family,
        objects: Vec<Value>,
        version: &str,
    ) -> Result<Vec<Value>, Status> {
        let desired = family.api_version(version);
        if !family.has_webhook() {
            let renamed = objects.into_iter().map(|mut object| {
                if str_at(&object, &["apiVersion"]) != desired {
                    family.rename(&mut object, version);
                }
                object
            });
            return Ok(renamed.collect());
        }
        let (done, open): (Vec<_>, Vec<_>) = objects
            .into_iter()
            .enumerate()
            .partition(|(_, object)| str_at(object, &["apiVersion"]) == desired || is_empty(object));
        let (places, open): (Vec<usize>, Vec<Value>) = open.into_iter().unzip();
        let mut out = done;
        for (_, object) in &mut out {
            object["apiVersion"] = desired.clone().into();
        }
        if !open.is_empty() {
            let converted =
                self.call(family, &open, &desired).await.map_err(|why| Status::failure(500, "", why))?;
            out.extend(places.into_iter().zip(converted).map(|(at, mut object)| {
                family.finish(&mut object, version);
                (at, object)
            }));
            out.sort_by_key(|(at, _)| *at);
        }
        Ok(out.into_iter().map(|(_, object)| object).collect())
    }

    async fn call(&self, family: &Family, objects: &[Value], desired: &str) -> Result<Vec<Value>, String> {
        let webhook = get(&family.conversion, &["webhook"]);
        let uid = uuid::Uuid::new_v4().to_string();
        let kind = match objects {
            [one] => format!("{}, Kind={}", str_at(one, &["apiVersion"]), family.kind),
            _ => format!("{desired}, Kind={}List", family.kind),
        };
        let failed = |why: String| format!("conversion webhook for {kind} failed: {why}");
        let review = review::request(webhook, objects, desired, &uid)?;
        let Some(services) = self.objects.get() else { return Err(failed("the server is starting".into())) };
        let answer = self.clients.post(webhook, &**services, &review, TIMEOUT).await.map_err(failed)?;
        let converted = review::answered(&answer, &review).map_err(failed)?;
        if converted.len() != objects.len() {
            return Err(format!(
                "conversion webhook for {kind} returned {} objects, expected {}",
                converted.len(),
                objects.len()
            ));
        }
        let single = objects.len() == 1;
        let check = |(i, (original, converted)): (usize, (&Value, Value))| {
            let at =
                if single { "object at index 0".into() } else { format!("converted object at index {i}") };
            review::checked(original, converted, desired, &at)
                .map_err(|why| format!("conversion webhook for {kind} {why}"))
        };
        objects.iter().zip(converted).enumerate().map(check).collect()
    }
}

/// Whether an object has nothing but its type: that converts to itself.
fn is_empty(object: &Value) -> bool {
    object.as_object().is_none_or(|map| map.keys().all(|k| k == "apiVersion" || k == "kind"))
}

/// The objects of a custom resource as one of its versions shows them.
pub struct View {
    converter: Arc<Converter>,
    family: Arc<Family>,
    version: Arc<str>,
    /// Reads objects of the version.
    codec: Arc<dyn Codec>,
}

impl View {
    /// The view of a version. `codec` is that version's.
    pub fn new(
        converter: Arc<Converter>,
        family: Arc<Family>,
        version: Arc<str>,
        codec: Arc<dyn Codec>,
    ) -> View {
        View { converter, family, version, codec }
    }

    /// Whether every object is shown as it is stored, whichever version that is.
    pub fn is_plain(&self) -> bool {
        self.family.versions.iter().all(|v| self.family.same(&v.version, &self.version))
    }

    /// An object of this version in another one.
    pub async fn convert(&self, object: Value, version: &str) -> Result<Value, Status> {
        let mut done = self.converter.convert(&self.family, vec![object], version).await?;
        done.pop().ok_or_else(|| Status::internal("a conversion gave nothing"))
    }

    /// An object of this version as it is to be stored.
    pub async fn to_stored(&self, mut object: Value) -> Result<Value, Status> {
        object["apiVersion"] = self.family.api_version(&self.version).into();
        object["kind"] = self.family.kind.clone().into();
        self.convert(object, &self.family.storage).await
    }

    /// Entries in this version. Each is converted once, and kept beside the stored one.
    pub async fn show(&self, mut entries: Vec<Arc<Entry>>) -> Result<Vec<Arc<Entry>>, Status> {
        let mut open = Vec::new();
        for (i, entry) in entries.iter_mut().enumerate() {
            let Some(stored) = entry.version() else { continue };
            if self.family.same(stored, &self.version) {
                continue;
            }
            match entry.shown_as(&self.version) {
                Some(known) => *entry = known,
                None => open.push(i),
            }
        }
        if open.is_empty() {
            return Ok(entries);
        }
        let objects = open.iter().map(|i| self.whole(&entries[*i])).collect();
        let converted = self.converter.convert(&self.family, objects, &self.version).await?;
        for (i, object) in open.into_iter().zip(converted) {
            let stored = &entries[i];
            let made = Entry::new(&*self.codec, &stored.key, stored.revision, Arc::new(object), None);
            entries[i] = stored.keep_shown(&self.version, Arc::new(made));
        }
        Ok(entries)
    }

    fn whole(&self, entry: &Entry) -> Value {
        let mut object = (*entry.object()).clone();
        object["apiVersion"] =
            self.family.api_version(entry.version().unwrap_or(&self.family.storage)).into();
        object["kind"] = self.family.kind.clone().into();
        object
    }
}
