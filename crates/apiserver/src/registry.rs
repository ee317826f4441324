//! Which resources there are and where their objects are. Grows and shrinks with CustomResourceDefinitions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use pilothouse_api::kinds::Context;
use pilothouse_api::scheme::{Resource, Scheme};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::version::Release;
use pilothouse_store::Store;
use tokio::sync::watch;

use crate::cache::Cache;
use crate::cache::entry::Codec;
use crate::config::Config;
use crate::conversion::{Converter, View};
use crate::metrics::Count;
use crate::storage::{Encode, Storage, Stored};

/// A resource in one version, with its objects.
#[derive(Clone)]
pub struct Endpoint {
    /// The resource in the version of the request.
    pub resource: Arc<Resource>,
    /// The same in the version that objects have in memory.
    pub hub: Arc<Resource>,
    /// Its objects.
    pub storage: Arc<Storage>,
}

/// How objects of a resource are read from and written to the store.
struct ResourceCodec {
    hub: Arc<Resource>,
    ttl: Option<Duration>,
    /// Kind and version of what is stored, where it differs from the hub version in nothing else.
    stored_as: Option<(Arc<str>, Arc<str>)>,
    keep_parsed: bool,
    /// Whether objects are stored as protobuf.
    protobuf: bool,
}

impl Codec for ResourceCodec {
    fn decode(&self, value: &[u8]) -> Result<Value, String> {
        self.hub.decode_stored(value)
    }

    fn version(&self, object: &Value) -> Option<Arc<str>> {
        let family = self.hub.family()?;
        let version = family.of_api_version(object.get("apiVersion")?.as_str()?)?;
        Some(version.version.as_str().into())
    }

    fn fields(&self, object: &Value) -> Vec<(Arc<str>, String)> {
        let mut fields = self.hub.selectable(object);
        // Name and namespace are in the key.
        fields.retain(|(name, _)| !matches!(&**name, "metadata.name" | "metadata.namespace"));
        fields
    }

    fn namespaced(&self) -> bool {
        self.hub.namespaced
    }

    fn indexed_field(&self) -> Option<&str> {
        (self.hub.group.is_empty() && &*self.hub.plural == "pods").then_some("spec.nodeName")
    }

    fn raw_field(&self) -> Option<&'static str> {
        self.hub.as_kind().and_then(|kind| kind.raw_field).map(|field| field.name)
    }

    fn keep_parsed(&self) -> bool {
        self.keep_parsed
    }
}

/// Whether plug-ins and authorizers look at objects of the resource with almost every request; the others stay bytes.
fn looked_at_often(hub: &Resource) -> bool {
    &*hub.group == "rbac.authorization.k8s.io"
        || matches!(&*hub.group, "admissionregistration.k8s.io" | "apiregistration.k8s.io")
        || matches!(
            &*hub.plural,
            "namespaces"
                | "nodes"
                | "serviceaccounts"
                | "limitranges"
                | "resourcequotas"
                | "priorityclasses"
                | "storageclasses"
                | "runtimeclasses"
                | "customresourcedefinitions"
        )
}

impl Encode for ResourceCodec {
    fn stored(&self, object: &Value) -> Stored {
        if self.protobuf
            && let Some(bytes) = self.hub.to_stored_protobuf(object.clone())
        {
            return Stored::Encoded(bytes);
        }
        match self.stored_as.clone() {
            Some((kind, api_version)) => Stored::Same { kind, api_version },
            None => Stored::Converted(self.hub.to_stored(object.clone())),
        }
    }

    fn ttl(&self) -> Option<Duration> {
        self.ttl
    }
}

/// The name of a custom resource's storage as one version shows it.
fn view_key(resource: &Resource) -> String {
    format!("{} {}", resource.storage_prefix(), resource.version)
}

fn is_view_of(key: &str, prefix: &str) -> bool {
    key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(' '))
}

/// All resources.
pub struct Registry {
    release: Release,
    allow_privileged: bool,
    gates: &'static [String],
    event_ttl: Duration,
    protobuf: bool,
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
    scheme: watch::Sender<Arc<Scheme>>,
    storages: RwLock<HashMap<String, Arc<Storage>, foldhash::fast::RandomState>>,
    converter: Arc<Converter>,
}

impl Registry {
    /// The built-in resources, in a cache that has not been filled yet.
    pub fn new(config: &Config, store: Arc<dyn Store>, cache: Arc<Cache>) -> Registry {
        let scheme = Scheme::new(config.release);
        let scheme = match &config.runtime {
            runtime if runtime.is_default() => scheme,
            runtime => scheme.restricted(|r| runtime.enables(r)),
        };
        let on = config.feature_gates.iter().filter(|(_, value)| value.eq_ignore_ascii_case("true"));
        let gates: Vec<String> = on.map(|(gate, _)| gate.clone()).collect();
        let registry = Registry {
            release: config.release,
            allow_privileged: config.allow_privileged,
            gates: gates.leak(),
            event_ttl: config.event_ttl,
            protobuf: config.protobuf_storage,
            store,
            cache,
            scheme: watch::Sender::new(Arc::new(scheme.clone())),
            storages: RwLock::default(),
            converter: Arc::default(),
        };
        for hub in scheme.hubs() {
            let prefix = hub.storage_prefix().to_string();
            if registry.storages.read().contains_key(&prefix) {
                continue;
            }
            let codec = registry.codec(hub);
            let objects = registry.cache.add_early(&prefix, codec.clone());
            let storage =
                Storage::new(registry.store.clone(), registry.cache.clone(), codec, &prefix, objects);
            registry.storages.write().insert(prefix, Arc::new(storage));
        }
        registry
    }

    fn codec(&self, hub: &Arc<Resource>) -> Arc<ResourceCodec> {
        let ttl = Some(self.event_ttl).filter(|t| hub.ttl_seconds() > 0 && !t.is_zero());
        let stored_as = hub.stored_as();
        // Definitions and APIServices are those of other servers in the original, which store JSON.
        let own = !matches!(&*hub.group, "apiextensions.k8s.io" | "apiregistration.k8s.io")
            // A field whose text matters has that text in JSON only.
            && hub.as_kind().is_some_and(|kind| kind.raw_field.is_none());
        Arc::new(ResourceCodec {
            hub: hub.clone(),
            ttl,
            stored_as,
            keep_parsed: looked_at_often(hub),
            protobuf: self.protobuf && own,
        })
    }

    /// What calls conversion webhooks.
    pub fn converter(&self) -> &Arc<Converter> {
        &self.converter
    }

    /// The release served.
    pub fn release(&self) -> Release {
        self.release
    }

    /// The watch cache.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// All kinds as of now.
    pub fn scheme(&self) -> Arc<Scheme> {
        self.scheme.borrow().clone()
    }

    /// The same, and every later state of it.
    pub fn schemes(&self) -> watch::Receiver<Arc<Scheme>> {
        self.scheme.subscribe()
    }

    /// A resource in a version.
    pub fn endpoint(&self, group: &str, version: &str, plural: &str) -> Option<Endpoint> {
        let scheme = self.scheme();
        let resource = scheme.resource(group, version, plural)?;
        self.with_storage(&scheme, resource)
    }

    /// A resource in its hub version.
    pub fn hub(&self, group: &str, plural: &str) -> Option<Endpoint> {
        let scheme = self.scheme();
        let resource = scheme.hub(group, plural)?;
        self.with_storage(&scheme, resource)
    }

    fn with_storage(&self, scheme: &Scheme, resource: Arc<Resource>) -> Option<Endpoint> {
        if resource.is_custom() {
            // Worked on in the version of the request; what is stored in another one is converted.
            let storage = self.storages.read().get(&view_key(&resource))?.clone();
            return Some(Endpoint { hub: resource.clone(), resource, storage });
        }
        let hub = scheme.hub(&resource.group, &resource.plural)?;
        let storage = self.storages.read().get(hub.storage_prefix())?.clone();
        Some(Endpoint { resource, hub, storage })
    }

    /// What there is of each kind, for metrics.
    pub fn counts(&self) -> Vec<Count> {
        let scheme = self.scheme();
        let storages = self.storages.read();
        let count = |hub: &Arc<Resource>| {
            let s = storages.get(hub.storage_prefix())?;
            Some(Count {
                group: hub.group.to_string(),
                version: hub.version.to_string(),
                kind: hub.kind.to_string(),
                plural: hub.plural.to_string(),
                objects: s.objects.len(),
                watchers: s.objects.watchers(),
            })
        };
        scheme.hubs().filter_map(count).collect()
    }

    /// Serves the versions of a CustomResourceDefinition, in place of those that it had before.
    pub async fn add_custom(&self, crd: &Value) {
        let next = self.scheme().with_crd(crd);
        let group = crd.pointer("/spec/group").and_then(Value::as_str).unwrap_or("");
        let plural = crd.pointer("/spec/names/plural").and_then(Value::as_str).unwrap_or("");
        let Some(hub) = next.hub(group, plural) else { return };
        let prefix = hub.storage_prefix().to_string();
        let codec = self.codec(&hub);
        let Some(objects) = self.cache.add(&prefix, codec.clone()).await else { return };
        let storage = Storage::new(self.store.clone(), self.cache.clone(), codec, &prefix, objects);
        let mut storages = self.storages.write();
        storages.retain(|key, _| !is_view_of(key, &prefix));
        for resource in next.resources().filter(|r| r.storage_prefix() == prefix) {
            let Some(family) = resource.family() else { continue };
            let codec = self.codec(resource);
            let view = View::new(self.converter.clone(), family.clone(), resource.version.clone(), codec);
            storages.insert(view_key(resource), Arc::new(storage.viewed(Arc::new(view))));
        }
        storages.insert(prefix, Arc::new(storage));
        drop(storages);
        self.scheme.send_replace(Arc::new(next));
    }

    /// Serves a CustomResourceDefinition no longer. Objects, if there are any left, stay in the store.
    pub fn remove_custom(&self, group: &str, plural: &str) {
        let scheme = self.scheme();
        let Some(hub) = scheme.hub(group, plural).filter(|h| h.is_custom()) else { return };
        self.scheme.send_replace(Arc::new(scheme.without_crd(group, plural)));
        let prefix = hub.storage_prefix();
        self.storages.write().retain(|key, _| key != prefix && !is_view_of(key, prefix));
        self.cache.remove(prefix);
    }

    /// What kinds' own functions need to know of a request for an endpoint.
    pub fn context(&self, resource: &Resource, subresource: &'static str) -> Context {
        Context { gates: self.gates, ..resource.context(subresource, self.allow_privileged) }
    }
}
