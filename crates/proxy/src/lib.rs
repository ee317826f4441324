//! kube-proxy: services become nftables rules, or virtual servers of IPVS.
//!
//! What the API says ([`model`]) becomes a rule set ([`rules`], a plain function), and what differs from the rule
//! set in the kernel is applied in one transaction ([`nft`]): a packet sees the old rules or the new ones, never
//! something between. In mode `ipvs`, on a kernel that has IPVS, services are virtual servers instead ([`ipvs`]).

pub mod config;
pub mod family;
pub mod health;
pub mod ipvs;
pub mod model;
pub mod nft;
pub mod proxier;
pub mod rules;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::DynamicObject;
use kube::runtime::watcher;
use pilothouse_client::{Informer, served};
use pilothouse_component_base::metrics::Metrics;
use pilothouse_component_base::notify;
use pilothouse_component_base::serve::{self, Health};
use pilothouse_component_base::signals::Stop;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use config::Config;

use crate::proxier::Proxier;

/// The flag table.
pub const FLAGS: &str = include_str!("flags.tsv");

/// Changes within this time become one transaction.
const GATHER: Duration = Duration::from_millis(20);
/// After a failure it is tried again.
const RETRY: Duration = Duration::from_secs(2);

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
    let health = Health { checks: Vec::new(), metrics };
    for addr in [config.healthz_bind_address, config.metrics_bind_address].into_iter().flatten() {
        serve::serve(addr, None, health.clone(), stop.clone()).await?;
    }
    let client = pilothouse_client::config::connect(&config.kubeconfig, "kube-proxy").await?;
    let resource = served::find(&client, served::ENDPOINT_SLICE)
        .await?
        .ok_or_else(|| anyhow::anyhow!("the server has no EndpointSlices"))?;
    let changed = Arc::new(Notify::new());
    let services: Informer<Service> = Informer::new();
    let slices: Informer<DynamicObject> = Informer::new();
    let n = changed.clone();
    services.on_change(move |_| n.notify_one());
    let n = changed.clone();
    slices.on_change(move |_| n.notify_one());
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
                if !std::mem::replace(&mut ready, true) {
                    notify::ready("kube-proxy", "services are programmed");
                }
                if synced.changed {
                    syncs.inc();
                }
                last_sync.set(jiff::Timestamp::now().as_second());
                again = synced.again;
            }
            Err(e) => {
                tracing::error!("{e:#}");
                again = Some(RETRY);
            }
        }
    }
}
