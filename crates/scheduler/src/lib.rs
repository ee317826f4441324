//! kube-scheduler: which node each pod gets.
//!
//! [`queue`] holds the pods that wait, [`cache`] the cluster as it is known, [`framework`] says what a rule is,
//! [`plugins`] are the rules, [`profile`] puts them together, [`scheduler`] is the loop.

pub mod cache;
pub mod config;
pub mod extender;
pub mod framework;
pub mod labels;
pub mod listers;
pub mod metrics;
pub mod plugins;
pub mod policy;
pub mod profile;
pub mod queue;
pub mod scheduler;
#[cfg(test)]
mod testing;
pub mod types;
pub mod volumes;
pub mod writer;

use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::runtime::watcher;
use kube::{Api, Client};
use pilothouse_client::leader::Election;
use pilothouse_client::{EventRecorder, Informer, served};
use pilothouse_component_base::metrics::Metrics as Registry;
use pilothouse_component_base::notify;
use pilothouse_component_base::serve::{self, Health};
use pilothouse_component_base::signals::Stop;

pub use config::Config;

use crate::extender::Extender;
use crate::listers::Listers;
use crate::metrics::Metrics;
use crate::plugins::volume_binding::VolumeBinding;
use crate::profile::Profile;
use crate::queue::Queue;
use crate::scheduler::{Parts, Scheduler};
use crate::writer::KubeWriter;

/// The flag table.
pub const FLAGS: &str = include_str!("flags.tsv");

const NAME: &str = "kube-scheduler";

/// Schedules pods until `stop`. With `--leader-elect`, waits to lead first, and ends with an error when the lease is
/// lost.
pub async fn run(mut config: Config, stop: Stop) -> anyhow::Result<()> {
    let registry = Registry::default();
    let metrics = Metrics::new(&registry);
    let health = Health { metrics: registry, ..Health::default() };
    if let Some(addr) = config.insecure {
        serve::serve(addr, None, health.clone(), stop.clone()).await?;
    }
    if let Some(addr) = config.secure {
        serve::serve(addr, Some(serving_certificate(&config)?), health, stop.clone()).await?;
    }
    let client = connect(&config).await?;
    if let Some((namespace, name)) = config.policy_configmap.take() {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        let map = api
            .get(&name)
            .await
            .with_context(|| format!("couldn't get policy config map {namespace}/{name}"))?;
        let text = map.data.unwrap_or_default().remove("policy.cfg");
        let text = text.context("missing policy config map value at key \"policy.cfg\"")?;
        config.apply_policy(&text).map_err(|e| anyhow::anyhow!("invalid policy: {e}"))?;
    }
    let extenders = config.extenders.iter().cloned().map(Extender::new).collect::<Result<Vec<_>, _>>();
    let extenders = Arc::new(extenders.map_err(anyhow::Error::msg)?);
    let (pods, nodes, listers) = (Informer::new(), Informer::<Node>::new(), Listers::default());
    // Pods that have ended take no room.
    let living = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    pods.run(Api::all(client.clone()), living, stop.clone());
    nodes.run(Api::all(client.clone()), watcher::Config::default(), stop.clone());
    let minor = start_listers(&listers, &client, &stop).await?;

    let binding = VolumeBinding::default();
    let mut profiles = Vec::new();
    for p in &config.profiles {
        let mut arguments = p.arguments.clone();
        arguments.spread.counts_whole_domains = minor < COUNTS_ALLOWED_NODES;
        let mut binding = binding.clone();
        binding.timeout = p.arguments.bind_timeout.unwrap_or(binding.timeout);
        let mut profile = Profile::new(&p.name, &p.filters, &p.scores, p.preempts, &arguments, &binding)
            .map_err(anyhow::Error::msg)?;
        profile.percentage_of_nodes_to_score = config.percentage_of_nodes_to_score;
        profiles.push((profile, EventRecorder::new(client.clone(), &p.name, None)));
    }
    let scheduler = Scheduler::new(Parts {
        listers: Arc::new(listers.clone()),
        pods: pods.clone(),
        writer: Arc::new(KubeWriter(client.clone())),
        extenders,
        profiles,
        queue: Queue::new(config.initial_backoff, config.max_backoff),
        metrics,
        seed: rand::random(),
    });
    scheduler.follow(&nodes);
    let synced = async {
        pods.wait_synced().await;
        nodes.wait_synced().await;
        wait_listers(&listers).await;
    };
    tokio::select! { _ = stop.wait() => return Ok(()), _ = synced => {} }

    let election = &config.leader_election;
    let status = if election.enabled { "waiting to lead" } else { "scheduling" };
    notify::ready(NAME, status);
    let lease = Election {
        namespace: election.namespace.clone(),
        name: election.name.clone(),
        lease_duration: election.lease_duration,
        renew_deadline: election.renew_deadline,
        retry_period: election.retry_period,
        ..Election::new(NAME, identity())
    };
    if election.enabled && !lease.acquire(&client, &stop).await {
        return Ok(());
    }
    if election.enabled {
        notify::ready(NAME, "leading");
        tokio::select! {
            _ = scheduler.run(stop.clone()) => {}
            lost = lease.hold(&client, &stop) => return Ok(lost?),
        }
        // Gives the lease back.
        lease.hold(&client, &stop).await?;
    } else {
        scheduler.run(stop).await;
    }
    Ok(())
}

/// The minor release in which pod affinity terms began to select namespaces by label (KEP-2249).
const NAMESPACE_SELECTORS: u32 = 21;

/// The minor release in which topology spreading began to count only nodes that the pod may go to.
const COUNTS_ALLOWED_NODES: u32 = 24;

/// Starts the copies of the other kinds; the server's minor release.
async fn start_listers(l: &Listers, client: &Client, stop: &Stop) -> anyhow::Result<u32> {
    let all = watcher::Config::default;
    l.services.run(Api::all(client.clone()), all(), stop.clone());
    l.replication_controllers.run(Api::all(client.clone()), all(), stop.clone());
    l.replica_sets.run(Api::all(client.clone()), all(), stop.clone());
    l.stateful_sets.run(Api::all(client.clone()), all(), stop.clone());
    l.volumes.run(Api::all(client.clone()), all(), stop.clone());
    l.claims.run(Api::all(client.clone()), all(), stop.clone());
    l.classes.run(Api::all(client.clone()), all(), stop.clone());
    l.csi_nodes.run(Api::all(client.clone()), all(), stop.clone());
    let mut tries = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        tokio::select! { _ = stop.wait() => return Ok(0), _ = tries.tick() => {} }
        let minor: u32 = match client.apiserver_version().await {
            Ok(v) => v.minor.trim_end_matches('+').parse().unwrap_or(0),
            Err(e) => {
                tracing::warn!("waiting for the API server: {e}");
                continue;
            }
        };
        // Before namespace selectors there was no need for namespaces, and the scheduler's role did not have them.
        if minor < NAMESPACE_SELECTORS {
            l.namespaces.mark_synced();
        } else if !l.namespaces.synced() {
            l.namespaces.run(Api::all(client.clone()), all(), stop.clone());
        }
        match served::find(client, served::POD_DISRUPTION_BUDGET).await {
            Ok(Some(version)) => {
                l.budgets.run(Api::all_with(client.clone(), &version), all(), stop.clone());
                return Ok(minor);
            }
            Ok(None) => {
                l.budgets.mark_synced();
                return Ok(minor);
            }
            Err(e) => tracing::warn!("waiting for the API server: {e}"),
        }
    }
}

async fn wait_listers(l: &Listers) {
    l.namespaces.wait_synced().await;
    l.services.wait_synced().await;
    l.replication_controllers.wait_synced().await;
    l.replica_sets.wait_synced().await;
    l.stateful_sets.wait_synced().await;
    l.budgets.wait_synced().await;
    l.volumes.wait_synced().await;
    l.claims.wait_synced().await;
    l.classes.wait_synced().await;
    l.csi_nodes.wait_synced().await;
}

async fn connect(config: &Config) -> anyhow::Result<Client> {
    let url = match &config.master {
        None => None,
        Some(m) if m.contains("://") => Some(m.clone()),
        Some(m) => Some(format!("http://{m}")),
    };
    let url = url.map(|u| u.parse().with_context(|| format!("--master={u}"))).transpose()?;
    match (&config.kubeconfig, url) {
        (Some(file), None) => Ok(pilothouse_client::config::connect_limited(file, NAME, config.limit).await?),
        (Some(file), Some(url)) => {
            let mut kube = pilothouse_client::config::load(file).await?;
            kube.cluster_url = url;
            Ok(pilothouse_client::config::client(kube, config.limit)?)
        }
        (None, Some(url)) => Ok(pilothouse_client::config::client(kube::Config::new(url), config.limit)?),
        (None, None) => anyhow::bail!("--kubeconfig is required"),
    }
}

fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:032x}", host.trim(), rand::random::<u128>())
}

fn serving_certificate(config: &Config) -> anyhow::Result<Arc<rustls::ServerConfig>> {
    let (cert, key) = match (&config.tls_cert_file, &config.tls_private_key_file) {
        (Some(c), Some(k)) => (pilothouse_pki::files::read(c)?, pilothouse_pki::files::read(k)?),
        _ => {
            let hosts = ["localhost".to_string(), "127.0.0.1".to_string()];
            let issued = pilothouse_pki::authority::self_signed(NAME, &hosts)?;
            (issued.certificate, issued.key)
        }
    };
    serve::tls_config(cert.as_bytes(), key.as_bytes()).context("serving certificate")
}
