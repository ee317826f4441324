//! What every request needs to know of the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pilothouse_api::scheme::Scheme;
use pilothouse_apimachinery::version::Release;
use pilothouse_component_base::signals::Stop;
use pilothouse_store::Store;

use crate::admission::steps::Plugins;
use crate::aggregation::Aggregator;
use crate::cache::resource::Window;
use crate::cache::{Cache, Feed};
use crate::config::Config;
use crate::fairness::Fairness;
use crate::health::Health;
use crate::limits::Limits;
use crate::metered_store::MeteredStore;
use crate::metrics::ServerMetrics;
use crate::objects::ServerObjects;
use crate::openapi::OpenApi;
use crate::registry::Registry;
use crate::request::{Audit, Authenticator, Authorizer, Objects};
use crate::special::SpecialRest;
use crate::{admission, audit, authentication, authorization, rest};

/// How long the health check waits for the store.
const STORE_HEALTH: Duration = Duration::from_secs(2);

/// The server's parts, built once at start.
pub struct ServerState {
    /// Configuration.
    pub config: Arc<Config>,
    /// Release served.
    pub release: Release,
    /// Where the server listens.
    pub address: SocketAddr,
    /// Where objects are.
    pub store: Arc<dyn Store>,
    /// The watch cache.
    pub cache: Arc<Cache>,
    /// Which resources there are.
    pub registry: Arc<Registry>,
    /// Reads and writes objects without HTTP, authorization and admission.
    pub objects: Arc<dyn Objects>,
    /// Finds out who asks; `None` of it makes the request anonymous where that is allowed.
    pub authenticator: Arc<dyn Authenticator>,
    /// Decides who may do what.
    pub authorizer: Arc<dyn Authorizer>,
    /// Admission plug-ins in their order.
    pub admission: Plugins,
    /// The audit log, where there is one.
    pub audit: Option<Arc<dyn Audit>>,
    /// Resources with handlers of their own, and storage hooks.
    pub special: SpecialRest,
    /// Requests at the same time, by class: counted, and limited where there is no [`ServerState::fairness`].
    pub limits: Limits,
    /// Priority and fairness, where it is on.
    pub fairness: Option<Fairness>,
    /// Metrics.
    pub metrics: ServerMetrics,
    /// Health checks.
    pub health: Health,
    /// Other servers' API groups.
    pub aggregator: Aggregator,
    /// OpenAPI documents.
    pub openapi: OpenApi,
    /// Tells long-running requests to end.
    pub drain: Stop,
}

impl ServerState {
    /// Builds the parts. The feed that fills the cache is to be run by the caller.
    pub fn build(
        config: &Arc<Config>,
        store: Arc<dyn Store>,
        address: SocketAddr,
        drain: Stop,
    ) -> anyhow::Result<(Arc<ServerState>, Feed)> {
        let root = format!("/{}/", config.etcd_prefix.trim_matches('/'));
        let metrics = ServerMetrics::new(config.release);
        let scheme = Scheme::new(config.release);
        let store: Arc<dyn Store> = MeteredStore::new(store, &root, &scheme, &metrics.registry);
        let (cache, feed) = Cache::new(store.clone(), &root, Window::default());
        let registry = Arc::new(Registry::new(config, store.clone(), cache.clone()));
        let server_objects = Arc::new(ServerObjects::new(registry.clone()));
        let objects: Arc<dyn Objects> = server_objects.clone();
        registry.converter().set_objects(objects.clone());
        let fault = anyhow::Error::msg::<String>;
        let authenticator = authentication::build(config, &objects).map_err(fault)?;
        let authorizer = authorization::build(config, &objects).map_err(fault)?;
        let admission =
            admission::build(config, &objects, &authorizer, metrics.admission.clone()).map_err(fault)?;
        let audit = audit::build(config).map_err(fault)?;
        let mut special = SpecialRest::default();
        rest::register(&mut special, config, &objects, &store).map_err(fault)?;
        server_objects.set_hooks(special.clone());
        let state = ServerState {
            config: config.clone(),
            release: config.release,
            address,
            cache,
            registry,
            objects,
            authenticator,
            authorizer,
            admission,
            audit,
            special,
            limits: match config.fairness {
                true => Limits::new(0, 0),
                false => Limits::new(config.max_requests, config.max_mutating_requests),
            },
            fairness: config.fairness.then(|| {
                let total = config.max_requests + config.max_mutating_requests;
                Fairness::new(total, config.request_timeout / 4, config.release > Release::V1_20)
            }),
            metrics,
            health: Health::new(store.clone(), STORE_HEALTH),
            aggregator: Aggregator::new(config.proxy_client.as_ref()).map_err(fault)?,
            openapi: OpenApi::default(),
            store,
            drain,
        };
        Ok((Arc::new(state), feed))
    }
}
