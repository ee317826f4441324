//! What controllers are started with.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use kube::api::ApiResource;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use pilothouse_client::served::{self, Candidates};
use pilothouse_client::{EventRecorder, Informer};
use pilothouse_component_base::signals::Stop;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;

use crate::config::Config;

/// An object in a namespace is gone.
#[derive(Debug, Clone)]
pub struct Removed {
    /// Its API group.
    pub group: String,
    /// Its resource.
    pub plural: String,
    /// Its namespace.
    pub namespace: String,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The client to act with: the controller's own with `--use-service-account-credentials`, else the controller
    /// manager's.
    pub client: Client,
    /// Where the server is, with `--use-service-account-credentials`.
    pub impersonal: Option<kube::Config>,
    reader: Client,
    /// Configuration.
    pub config: Arc<Config>,
    /// When to end.
    pub stop: Stop,
    /// Minor number of the server's release: what a controller does has changed over time.
    pub server_minor: u32,
    /// Tells of objects that are gone, of any kind; fed by the garbage collector, which watches them all.
    pub removed: broadcast::Sender<Removed>,
    informers: Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send + Sync>>>>,
    served: Arc<HashMap<&'static str, Option<ApiResource>>>,
}

impl Context {
    /// Finds out which versions of the kinds that have several the server has.
    pub async fn new(client: Client, config: Arc<Config>, stop: Stop) -> anyhow::Result<Context> {
        let minor = client.apiserver_version().await?.minor;
        let server_minor = minor.trim_end_matches('+').parse().unwrap_or(0);
        let mut found = HashMap::new();
        for c in [
            served::CRON_JOB,
            served::ENDPOINT_SLICE,
            served::HORIZONTAL_POD_AUTOSCALER,
            served::POD_DISRUPTION_BUDGET,
        ] {
            found.insert(c.kind, served::find(&client, c).await?);
        }
        let impersonal = match config.use_service_account_credentials {
            true => Some(pilothouse_client::config::load_named(&config.kubeconfig, crate::NAME).await?),
            false => None,
        };
        Ok(Context {
            removed: broadcast::channel(1024).0,
            reader: client.clone(),
            client,
            impersonal,
            config,
            stop,
            server_minor,
            informers: Default::default(),
            served: Arc::new(found),
        })
    }

    /// The version of a kind that the server has.
    pub fn served(&self, candidates: Candidates) -> Option<ApiResource> {
        self.served.get(candidates.kind).cloned().flatten()
    }

    /// The informer of a kind, all namespaces: shared by all controllers, started at its first use.
    pub fn informer<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.shared(|| Api::all(self.reader.clone()))
    }

    /// The same for a kind whose version was found by [`Context::served`].
    pub fn informer_of<K>(&self, resource: &ApiResource) -> Informer<K>
    where
        K: Resource<DynamicType = ApiResource> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.shared(|| Api::all_with(self.reader.clone(), resource))
    }

    fn shared<K>(&self, api: impl FnOnce() -> Api<K>) -> Informer<K>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let mut informers = self.informers.lock();
        if let Some(i) = informers.get(&TypeId::of::<K>()).and_then(|b| b.downcast_ref::<Informer<K>>()) {
            return i.clone();
        }
        let informer = Informer::<K>::new();
        informer.run(api(), watcher::Config::default(), self.stop.clone());
        informers.insert(TypeId::of::<K>(), Box::new(informer.clone()));
        informer
    }

    /// An event recorder that names `component` as the source, such as `job-controller`.
    pub fn recorder(&self, component: &str) -> EventRecorder {
        EventRecorder::new(self.client.clone(), component, None)
    }
}
