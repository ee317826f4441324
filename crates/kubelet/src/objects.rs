//! Config maps and secrets, one at a time: a kubelet may read only those that its own pods refer to. Runtime classes
//! too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Where they come from.
#[async_trait]
pub trait Objects: Send + Sync {
    /// A config map, no older than `max_age`; `None` where it does not exist.
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        max_age: Duration,
    ) -> Result<Option<Arc<ConfigMap>>, String>;
    /// A secret, no older than `max_age`; `None` where it does not exist.
    async fn secret(
        &self,
        namespace: &str,
        name: &str,
        max_age: Duration,
    ) -> Result<Option<Arc<Secret>>, String>;
    /// The runtime's handler of a RuntimeClass.
    async fn runtime_handler(&self, class: &str) -> Result<String, String>;
}

type Cached<K> = Mutex<HashMap<(String, String), (Instant, Option<Arc<K>>)>>;
/// What nobody asked for that long is forgotten.
const FORGET: Duration = Duration::from_secs(300);

/// From the API server.
pub struct ApiObjects {
    client: Client,
    config_maps: Cached<ConfigMap>,
    secrets: Cached<Secret>,
}

impl ApiObjects {
    /// With the kubelet's own credentials.
    pub fn new(client: Client) -> ApiObjects {
        ApiObjects { client, config_maps: Mutex::default(), secrets: Mutex::default() }
    }
}

async fn get<K>(
    client: &Client,
    cache: &Cached<K>,
    namespace: &str,
    name: &str,
    max_age: Duration,
) -> Result<Option<Arc<K>>, String>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let key = (namespace.to_string(), name.to_string());
    let now = Instant::now();
    {
        let mut cache = cache.lock();
        cache.retain(|_, (at, _)| now.duration_since(*at) < FORGET);
        if let Some((at, object)) = cache.get(&key)
            && now.duration_since(*at) < max_age
        {
            return Ok(object.clone());
        }
    }
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let object = match api.get_opt(name).await {
        Ok(o) => o.map(Arc::new),
        Err(kube::Error::Api(e)) => return Err(e.message.clone()),
        Err(e) => return Err(e.to_string()),
    };
    cache.lock().insert(key, (now, object.clone()));
    Ok(object)
}

#[async_trait]
impl Objects for ApiObjects {
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        max_age: Duration,
    ) -> Result<Option<Arc<ConfigMap>>, String> {
        get(&self.client, &self.config_maps, namespace, name, max_age).await
    }

    async fn secret(
        &self,
        namespace: &str,
        name: &str,
        max_age: Duration,
    ) -> Result<Option<Arc<Secret>>, String> {
        get(&self.client, &self.secrets, namespace, name, max_age).await
    }

    async fn runtime_handler(&self, class: &str) -> Result<String, String> {
        let api: Api<RuntimeClass> = Api::all(self.client.clone());
        match api.get_opt(class).await {
            Ok(Some(c)) => Ok(c.handler),
            Ok(None) => Err(format!("runtimeclass.node.k8s.io \"{class}\" not found")),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// A fixed set, for tests and hollow nodes.
#[derive(Default)]
pub struct FixedObjects {
    /// Config maps by namespace and name.
    pub config_maps: Mutex<HashMap<(String, String), Arc<ConfigMap>>>,
    /// Secrets by namespace and name.
    pub secrets: Mutex<HashMap<(String, String), Arc<Secret>>>,
}

#[async_trait]
impl Objects for FixedObjects {
    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        _: Duration,
    ) -> Result<Option<Arc<ConfigMap>>, String> {
        Ok(self.config_maps.lock().get(&(namespace.to_string(), name.to_string())).cloned())
    }

    async fn secret(&self, namespace: &str, name: &str, _: Duration) -> Result<Option<Arc<Secret>>, String> {
        Ok(self.secrets.lock().get(&(namespace.to_string(), name.to_string())).cloned())
    }

    async fn runtime_handler(&self, class: &str) -> Result<String, String> {
        Ok(class.to_string())
    }
}
