//! kube-proxy: services become nftables rules, or virtual servers of IPVS.
//!
//! What the API says ([`model`]) becomes a rule set ([`rules`], a plain function), and what differs from the rule
//! set in the kernel is applied in one transaction ([`nft`]): a packet sees the old rules or the new ones, never
//! something between. In mode `ipvs`, on a kernel that has IPVS, services are virtual servers instead ([`ipvs`]).

pub mod config;
pub mod conntrack;
pub mod family;
pub mod health;
pub mod healthz;
pub mod ipvs;
pub mod model;
pub mod nft;
pub mod proxier;
pub mod rules;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::StatusCode;
use k8s_openapi::api::core::v1::Service;
use kube::api::DynamicObject;
use kube::runtime::watcher;
use kube::{Api, Client};
use pilothouse_client::{Informer, served};
use pilothouse_component_base::metrics::Metrics;
use pilothouse_component_base::notify;
use pilothouse_component_base::serve::{self, Health, Page};
use pilothouse_component_base::signals::Stop;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use config::Config;

use crate::healthz::Healthz;
use crate::proxier::Proxier;

/// The flag table.
pub const FLAGS: &str = include_str!("flags.tsv");

/// Changes within this time become one transaction.
const GATHER: Duration = Duration::from_millis(20);
/// After a failure it is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Settings of connection tracking.
const SETTINGS: &str = "/proc/sys/net/netfilter";

/// A port that could not be opened is tried again.
const PORT_RETRY: Duration = Duration::from_secs(5);

/// Services that do not want this proxy say so by this label.
const SKIP: &str = "service.kubernetes.io/service-proxy-name";

/// Runs the proxy until `stop`. The rules stay in place when it ends: connections go on.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    if config.cleanup {
        return proxier::cleanup(&config).await;
    }
    let mut proxier = Proxier::choose(&config).await;
    let metrics = Metrics::default();
    let last_sync = Gauge::<i64>::default();
    let syncs = Counter::<u64>::default();
    metrics.register(|r| {
        r.register(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "The last time proxy rules were successfully synced",
            last_sync.clone(),
        );
        r.register("kubeproxy_sync_proxy_rules_total", "Transactions applied", syncs.clone());
    });
    let healthz = Healthz::default();
    let mode = proxier.mode();
    let proxy_mode: Page = Arc::new(move || (StatusCode::OK, serve::PLAIN, mode.to_string()));
    let ports = [
        (config.healthz_bind_address, vec![("/healthz".to_string(), healthz.page())]),
        (config.metrics_bind_address, vec![("/proxyMode".to_string(), proxy_mode)]),
    ];
    for (address, pages) in ports {
        let Some(address) = address else { continue };
        let health = Health { pages, metrics: metrics.clone(), ..Health::default() };
        open_port(address, health, config.bind_address_hard_fail, &stop).await?;
    }
    let client = connect(&config).await?;
    // Units that come after this one are not to wait for the API server.
    let waiting = || notify::ready("kube-proxy", "waiting for the API server");
    let found = tokio::select! {
        _ = stop.wait() => return Ok(()),
        found = served::find_when_there(&client, served::ENDPOINT_SLICE, waiting) => found,
    };
    let resource = found.ok_or_else(|| anyhow::anyhow!("the server has no EndpointSlices"))?;
    let changed = Arc::new(Notify::new());
    let services: Informer<Service> = Informer::new();
    let slices: Informer<DynamicObject> = Informer::new();
    let (n, h) = (changed.clone(), healthz.clone());
    services.on_change(move |_| {
        h.queued();
        n.notify_one()
    });
    let (n, h) = (changed.clone(), healthz.clone());
    slices.on_change(move |_| {
        h.queued();
        n.notify_one()
    });
    let wanted = watcher::Config::default().labels(&format!("!{SKIP}"));
    services.run(Api::all(client.clone()), wanted, stop.clone());
    slices.run(Api::all_with(client.clone(), &resource), watcher::Config::default(), stop.clone());
    tokio::select! {
        _ = stop.wait() => return Ok(()),
        _ = async { services.wait_synced().await; slices.wait_synced().await } => {}
    }
    let mut health_checks = health::Servers::default();
    let (mut ready, mut again, mut last) = (false, None, None::<Instant>);
    changed.notify_one();
    loop {
        tokio::select! {
            _ = stop.wait() => return Ok(()),
            _ = changed.notified() => {}
            _ = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
        let early = last.map_or(Duration::ZERO, |l| proxier.min_sync_period().saturating_sub(l.elapsed()));
        tokio::select! { _ = stop.wait() => return Ok(()), _ = tokio::time::sleep(early.max(GATHER)) => {} }
        last = Some(Instant::now());
        let all = services.list();
        let model = model::build(&all, &slices.list(), &config.node_name);
        health_checks.sync(health::wanted(&all, &model)).await;
        match proxier.sync(&model).await {
            Ok(synced) => {
                healthz.updated();
                if !std::mem::replace(&mut ready, true) {
                    // The kernel tracks connections once there are rules for them, and has no settings before.
                    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
                    conntrack::set(Path::new(SETTINGS), &conntrack::wanted(&config.conntrack, processors));
                    notify::ready("kube-proxy", "services are programmed");
                }
                if synced.changed {
                    syncs.inc();
                }
                last_sync.set(jiff::Timestamp::now().as_second());
                again = synced.again;
            }
            Err(e) => {
                healthz.queued();
                tracing::error!("{e:#}");
                again = Some(RETRY);
            }
        }
    }
}

/// Serves a port. One that cannot be opened ends the proxy where it is told so; else it is tried again and again, and
/// services are programmed meanwhile.
async fn open_port(address: SocketAddr, health: Health, hard_fail: bool, stop: &Stop) -> std::io::Result<()> {
    let Err(e) = serve::serve(address, None, health.clone(), stop.clone()).await else { return Ok(()) };
    if hard_fail {
        return Err(e);
    }
    tracing::error!("{e}");
    let stop = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(PORT_RETRY) => {} }
            match serve::serve(address, None, health.clone(), stop.clone()).await {
                Ok(()) => return,
                Err(e) => tracing::error!("{e}"),
            }
        }
    });
    Ok(())
}

async fn connect(config: &Config) -> anyhow::Result<Client> {
    use pilothouse_client::config::{client, load_named};
    let mut kube = match config.kubeconfig.as_os_str().is_empty() {
        true => kube::Config::new(Default::default()),
        false => load_named(&config.kubeconfig, "kube-proxy").await?,
    };
    if let Some(master) = &config.master {
        let url = if master.contains("://") { master.clone() } else { format!("http://{master}") };
        kube.cluster_url = url.parse().with_context(|| format!("--master={url}"))?;
    }
    client(kube, config.limit).with_context(|| format!("kubeconfig {}", config.kubeconfig.display()))
}
