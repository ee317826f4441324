//! The cluster's DNS: services and pods by name, other names by forwarding.
//!
//! What is answered follows the DNS specification of Kubernetes, version 1.1.0
//! (<https://github.com/kubernetes/dns/blob/master/docs/specification.md>).

pub mod answer;
pub mod config;
pub mod forward;
pub mod server;
pub mod zone;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::Api;
use kube::api::DynamicObject;
use kube::runtime::watcher;
use parking_lot::RwLock;
use pilothouse_client::{Informer, served};
use pilothouse_component_base::metrics::Metrics;
use pilothouse_component_base::serve::{self, Health};
use pilothouse_component_base::signals::Stop;
use tokio::sync::Notify;

pub use config::Config;
use forward::Forwarder;
use server::Resolver;
use zone::Zone;

/// The flag table.
pub const FLAGS: &str = include_str!("flags.tsv");

/// Changes within this time become one new zone.
const GATHER: Duration = Duration::from_millis(10);

/// Answers until `stop`.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let metrics = Metrics::default();
    let counters = server::Counters::register(&metrics);
    if let Some(addr) = config.metrics_bind_address {
        serve::serve(addr, None, Health { metrics, ..Health::default() }, stop.clone()).await?;
    }
    let client = pilothouse_client::config::connect(&config.kubeconfig, "cluster-dns").await?;
    let found = tokio::select! {
        _ = stop.wait() => return Ok(()),
        found = served::find_when_there(&client, served::ENDPOINT_SLICE, || ()) => found,
    };
    let resource = found.ok_or_else(|| anyhow::anyhow!("the server has no EndpointSlices"))?;
    let changed = Arc::new(Notify::new());
    let (services, slices, namespaces) =
        (Informer::<Service>::new(), Informer::<DynamicObject>::new(), Informer::<Namespace>::new());
    let n = changed.clone();
    services.on_change(move |_| n.notify_one());
    let n = changed.clone();
    slices.on_change(move |_| n.notify_one());
    let n = changed.clone();
    namespaces.on_change(move |_| n.notify_one());
    services.run(Api::all(client.clone()), watcher::Config::default(), stop.clone());
    slices.run(Api::all_with(client.clone(), &resource), watcher::Config::default(), stop.clone());
    namespaces.run(Api::all(client), watcher::Config::default(), stop.clone());
    tokio::select! {
        _ = stop.wait() => return Ok(()),
        _ = async {
            services.wait_synced().await;
            slices.wait_synced().await;
            namespaces.wait_synced().await;
        } => {}
    }
    let build = {
        let domain = config.domain.clone();
        move || Arc::new(Zone::build(&domain, &services.list(), &slices.list(), &namespaces.list()))
    };
    let zone = Arc::new(RwLock::new(build()));
    let resolver = Arc::new(Resolver {
        zone: zone.clone(),
        ttl: config.ttl,
        forwarder: Forwarder::new(config.upstream.clone()),
        counters,
    });
    let addr = SocketAddr::new(config.bind_address, config.port);
    server::listen(addr, resolver, stop.clone()).await?;
    loop {
        tokio::select! { _ = stop.wait() => return Ok(()), _ = changed.notified() => {} }
        tokio::time::sleep(GATHER).await;
        let new = build();
        *zone.write() = new;
    }
}
