//! From a configuration to a kubelet that runs.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use pilothouse_client::config::{connect, replaceable};
use pilothouse_client::{Change, EventRecorder, Informer};
use pilothouse_component_base::metrics::Metrics as Registry;
use pilothouse_component_base::notify;
use pilothouse_component_base::serve::{Check, Health, serve};
use pilothouse_component_base::signals::Stop;

use crate::api::KubeApi;
use crate::bootstrap::{self, USER_AGENT};
use crate::certificates;
use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::eviction;
use crate::images::gc;
use crate::images::keyring::Keyring;
use crate::kubelet::{Dependencies, Kubelet};
use crate::metrics::Metrics;
use crate::node::machine::Machine;
use crate::node::register::{NodeReporter, node_reference};
use crate::node::status::{self, Facts, Pressure};
use crate::node::{NodeView, lease};
use crate::objects::ApiObjects;
use crate::pods::sources::file::FileSource;
use crate::runtime::Cri;
use crate::runtime::grpc::GrpcCri;
use crate::server;
use crate::stats::Stats;
use crate::volumes::manager::Volumes;

/// Runs a kubelet until `stop`.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    if config.fail_swap_on {
        check_swap(&std::fs::read_to_string("/proc/swaps").unwrap_or_default())?;
    }
    for dir in [&config.root_dir, &config.pod_logs, &config.container_links] {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    std::fs::create_dir_all(config.root_dir.join("pods"))?;
    run_once(&config, &stop).await
}

fn check_swap(swaps: &str) -> anyhow::Result<()> {
    let lines: Vec<&str> = swaps.lines().collect();
    if lines.len() > 1 {
        bail!(
            "running with swap on is not supported, please disable swap! or set --fail-swap-on flag to false. /proc/swaps contained: {lines:?}"
        );
    }
    Ok(())
}

async fn run_once(config: &Config, stop: &Stop) -> anyhow::Result<()> {
    bootstrap::bootstrap(config, stop).await?;
    if stop.stopped() {
        return Ok(());
    }
    let kubeconfig =
        config.kubeconfig.as_deref().ok_or_else(|| anyhow!("no kubeconfig: --kubeconfig is required"))?;
    bootstrap::check_own_name(kubeconfig, &config.node_name)?;
    let (client, replace) = replaceable(connect(kubeconfig, USER_AGENT).await?);
    let registry = Registry::default();
    let metrics = Metrics::new(&registry, &config.node_name);
    let ip = match config.node_ip {
        Some(ip) => ip,
        None => own_address(&config.node_name)
            .await
            .context("can't get ip address of node; give it with --node-ip")?,
    };
    let machine = Machine::read();
    let cri: Arc<dyn Cri> = Arc::new(GrpcCri::new(
        &config.runtime_endpoint,
        &config.image_endpoint,
        config.runtime_request_timeout,
        metrics.clone(),
    ));
    let cgroups = set_up_cgroups(config, &machine, &metrics).await?;
    let objects = Arc::new(ApiObjects::new(client.clone()));
    let node = NodeView::new(first_node(config, &machine, ip), ip.to_string(), machine.memory);
    let release = node.release().clone();
    let volumes = Arc::new(Volumes::new(&config.root_dir, client.clone(), objects.clone(), release));
    let capacity = status::capacity(config, &machine);
    volumes.set_allocatable(status::allocatable(config, &capacity));
    let recorder = EventRecorder::new(client.clone(), "kubelet", Some(&config.node_name));
    let services: Informer<Service> = Informer::new();
    let kubelet = Kubelet::new(
        config.clone(),
        Dependencies {
            cri,
            volumes,
            objects,
            api: Arc::new(KubeApi(client.clone())),
            recorder: recorder.clone(),
            services: services.clone(),
            metrics,
            cgroups,
            node,
            keyring: node_keyring(config),
        },
    );
    let (inner, stopped) = Stop::new();
    let result = tokio::select! {
        r = start(&kubelet, &client, &registry, machine, services, ip, stopped) => r,
        _ = stop.wait() => Ok(()),
        r = bootstrap::keep_renewed(config, client.clone(), replace) => r,
    };
    inner.stop();
    kubelet.shut_down();
    result
}

/// Starts everything; returns only with an error.
async fn start(
    kubelet: &Arc<Kubelet>,
    client: &Client,
    registry: &Registry,
    machine: Machine,
    services: Informer<Service>,
    ip: IpAddr,
    stop: Stop,
) -> anyhow::Result<()> {
    let config = &kubelet.config;
    wait_for_runtime(kubelet, &stop).await;
    serving_certificate(config, client, ip, &stop)?;
    serve_health(kubelet, registry, &stop);
    notify::ready(USER_AGENT, "running");
    kubelet.recorder.normal(&node_reference(&config.node_name), "Starting", "Starting kubelet.");

    let pressure = Arc::new(Mutex::new(Pressure::default()));
    watch_usage(kubelet, client, registry, &pressure, &stop).await?;
    let reporter = Arc::new(NodeReporter::new(kubelet.clone(), client.clone(), machine, pressure));
    reporter.look_at_runtime().await;
    tokio::spawn(reporter.clone().watch_runtime(stop.clone()));
    tokio::spawn(reporter.run(stop.clone()));
    let of_node = kubelet.clone();
    tokio::spawn(lease::keep(
        client.clone(),
        config.node_name.clone(),
        move || of_node.node.get().metadata.uid.clone(),
        config.node_lease_duration_seconds,
        stop.clone(),
    ));
    tokio::spawn(kubelet.clone().watch_runtime(stop.clone()));
    tokio::spawn(kubelet.clone().rotate_logs(stop.clone()));

    let files_read = watch_files(kubelet, &stop);
    watch_node(kubelet, client, &stop).wait_synced().await;
    services.run(Api::all(client.clone()), watcher::Config::default(), stop.clone());
    services.wait_synced().await;
    let pods = watch_pods(kubelet, client, &stop);
    pods.wait_synced().await;
    let _ = files_read.await;
    tokio::spawn(kubelet.clone().keep_house(stop.clone()));
    std::future::pending().await
}

async fn set_up_cgroups(
    config: &Config,
    machine: &Machine,
    metrics: &Metrics,
) -> anyhow::Result<Option<Cgroups>> {
    if !config.cgroups_per_qos {
        return Ok(None);
    }
    let cgroups = Cgroups::detect(config, metrics.clone()).context("failed to get cgroup subsystems")?;
    let enforced = config.enforce_node_allocatable.iter().any(|e| e == "pods");
    let capacity = status::capacity(config, machine);
    let allocatable = status::allocatable(config, &capacity);
    let memory = enforced.then(|| crate::resources::value(&allocatable, "memory"));
    cgroups.setup(machine.cpus, memory).await.context("failed to initialize top level QOS containers")?;
    Ok(Some(cgroups))
}

/// The node before the API server has shown it.
fn first_node(config: &Config, machine: &Machine, ip: IpAddr) -> Node {
    let ip = ip.to_string();
    let facts = Facts {
        config,
        machine,
        ip: &ip,
        version: "",
        runtime: "",
        images: &[],
        pressure: Pressure::default(),
        errors: &[],
        volumes_in_use: Vec::new(),
    };
    status::new_node(&facts, crate::clock::now())
}

/// The node's own credentials: `config.json` in the kubelet's folder or in root's home.
fn node_keyring(config: &Config) -> Keyring {
    [config.root_dir.join("config.json"), "/root/.docker/config.json".into()]
        .iter()
        .find_map(|p| std::fs::read(p).ok())
        .map(|text| Keyring::from_docker_config(&text))
        .unwrap_or_default()
}

/// The node's address where none is given: its name if that is one, else what its name resolves to, else the address
/// from which it would speak to the world.
async fn own_address(name: &str) -> Option<IpAddr> {
    if let Ok(ip) = name.parse() {
        return Some(ip);
    }
    let usable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
    if let Ok(found) = tokio::net::lookup_host((name, 0)).await {
        let mut all: Vec<IpAddr> = found.map(|a| a.ip()).filter(usable).collect();
        all.sort_by_key(IpAddr::is_ipv6);
        if let Some(ip) = all.first() {
            return Some(*ip);
        }
    }
    // Connecting a datagram socket sends nothing; it only asks the kernel for the way.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    if socket.connect("192.0.2.1:9").is_ok()
        && let Some(ip) = socket.local_addr().ok().map(|a| a.ip()).filter(usable)
    {
        return Some(ip);
    }
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    interfaces.filter_map(|i| i.address?.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()))).find(usable)
}

async fn wait_for_runtime(kubelet: &Kubelet, stop: &Stop) {
    while let Err(e) = kubelet.cri.version().await {
        tracing::warn!("container runtime at {} does not answer: {e}", kubelet.config.runtime_endpoint);
        tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(Duration::from_secs(1)) => {} }
    }
}

/// What looks at how much is used: statistics, image garbage collection, eviction; and the server that shows them.
async fn watch_usage(
    kubelet: &Arc<Kubelet>,
    client: &Client,
    registry: &Registry,
    pressure: &Arc<Mutex<Pressure>>,
    stop: &Stop,
) -> anyhow::Result<()> {
    let config = &kubelet.config;
    let node = node_reference(&config.node_name);
    let stats = Stats::new(kubelet.clone());
    let policy = gc::Policy::from_config(config).map_err(anyhow::Error::msg)?;
    let images = gc::ImageGc::new(
        kubelet.cri.clone(),
        kubelet.recorder.clone(),
        node.clone(),
        policy,
        &config.infra_image,
    );
    let images = Arc::new(images);
    let shortage = eviction::Pressure::new(pressure.clone());
    let manager = eviction::Manager::new(kubelet.clone(), images.clone(), node, shortage.clone());
    let manager = manager.map_err(anyhow::Error::msg)?;
    kubelet.add_admit_handler(Arc::new(move |pod| shortage.admit(pod)));
    let shown = server::Shown { kubelet: kubelet.clone(), stats: stats.clone(), metrics: registry.clone() };
    server::start(shown, Some(client.clone()), stop.clone()).await.map_err(anyhow::Error::msg)?;
    tokio::spawn(images.run(stats.clone(), stop.clone()));
    tokio::spawn(manager.run(stats.clone(), stop.clone()));
    tokio::spawn(stats.run(stop.clone()));
    Ok(())
}

/// Makes sure that the files of the serving certificate are there.
fn serving_certificate(config: &Config, client: &Client, ip: IpAddr, stop: &Stop) -> anyhow::Result<()> {
    if let (Some(cert), Some(key)) = (&config.tls_cert_file, &config.tls_private_key_file) {
        return certificates::self_signed(cert, key, &config.node_name, &ip.to_string());
    }
    std::fs::create_dir_all(&config.cert_dir)?;
    // It waits for somebody to approve it, and pods do not.
    let (config, client, stop) = (config.clone(), client.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = keep_serving_certificate(&config, &client, ip) => {}
            _ = stop.wait() => {}
        }
    });
    Ok(())
}

/// Asks for a serving certificate where there is none, and for another whenever it is time.
async fn keep_serving_certificate(config: &Config, client: &Client, ip: IpAddr) {
    let store = certificates::Store::server(&config.cert_dir);
    let mut subject = certificates::node_subject(&config.node_name);
    subject.hosts = vec![config.node_name.clone()];
    subject.hosts.extend(Some(ip.to_string()).filter(|i| *i != config.node_name));
    let usages = ["digital signature", "key encipherment", "server auth"];
    let signer = certificates::SERVING_SIGNER;
    loop {
        if let Some((from, to)) = store.validity() {
            certificates::wait_for_renewal(from, to).await;
        }
        if let Err(e) = certificates::ask(client, &store, "csr-", signer, &usages, &subject, |_| {}).await {
            tracing::warn!("no serving certificate: {e:#}");
            tokio::time::sleep(bootstrap::RETRY).await;
        }
    }
}

fn serve_health(kubelet: &Arc<Kubelet>, registry: &Registry, stop: &Stop) {
    let config = &kubelet.config;
    if config.healthz_port == 0 {
        return;
    }
    let me = Arc::downgrade(kubelet);
    let looks = move || match me.upgrade().and_then(|k| k.since_look()) {
        Some(ago) if ago > Duration::from_secs(180) => {
            Err(format!("last look at the runtime {}s ago", ago.as_secs()))
        }
        _ => Ok(()),
    };
    let looks: Check = Arc::new(looks);
    let registry = registry.clone();
    let address = SocketAddr::new(config.healthz_address, config.healthz_port);
    let stop = stop.clone();
    // A port that is taken keeps no pod from running: it is tried again and again.
    tokio::spawn(async move {
        loop {
            let health = Health {
                checks: vec![("syncloop".into(), looks.clone())],
                metrics: registry.clone(),
                ..Health::default()
            };
            let Err(e) = serve(address, None, health, stop.clone()).await else { return };
            tracing::error!("Starting healthz server failed: {e}");
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(Duration::from_secs(5)) => {} }
        }
    });
}

fn watch_node(kubelet: &Arc<Kubelet>, client: &Client, stop: &Stop) -> Informer<Node> {
    let node: Informer<Node> = Informer::new();
    let me = Arc::downgrade(kubelet);
    node.on_change(move |c| {
        if let (Some(k), Change::Added(n) | Change::Updated(_, n)) = (me.upgrade(), c) {
            k.node.set(n.clone());
        }
    });
    let selector = format!("metadata.name={}", kubelet.config.node_name);
    node.run(Api::all(client.clone()), watcher::Config::default().fields(&selector), stop.clone());
    node
}

fn watch_pods(kubelet: &Arc<Kubelet>, client: &Client, stop: &Stop) -> Informer<Pod> {
    let pods: Informer<Pod> = Informer::new();
    let me = Arc::downgrade(kubelet);
    pods.on_change(move |c| {
        let Some(k) = me.upgrade() else { return };
        match c {
            Change::Added(p) => k.set_pod(p.clone()),
            Change::Updated(old, new) => {
                // A name that passed to another pod between two looks.
                if old.meta().uid != new.meta().uid {
                    k.remove_pod(old);
                }
                k.set_pod(new.clone());
            }
            Change::Deleted(p) => k.remove_pod(p),
        }
    });
    let selector = format!("spec.nodeName={}", kubelet.config.node_name);
    pods.run(Api::all(client.clone()), watcher::Config::default().fields(&selector), stop.clone());
    pods
}

/// Watches the folder of static pods; what it gives is done when the folder was read once.
fn watch_files(kubelet: &Arc<Kubelet>, stop: &Stop) -> tokio::sync::oneshot::Receiver<()> {
    let (done, read) = tokio::sync::oneshot::channel();
    let Some(path) = kubelet.config.static_pod_path.clone() else {
        let _ = done.send(());
        return read;
    };
    let (me, stop) = (kubelet.clone(), stop.clone());
    // Looking at a few files costs next to nothing: changes are seen within a second.
    let period = me.config.file_check_frequency.min(Duration::from_secs(1));
    tokio::spawn(async move {
        let mut done = Some(done);
        let mut source = FileSource::new(Path::new(&path).to_path_buf(), me.config.node_name.clone());
        let mut known: Vec<Arc<Pod>> = Vec::new();
        loop {
            let now = source.read();
            let has = |list: &[Arc<Pod>], p: &Pod| list.iter().any(|o| o.metadata.uid == p.metadata.uid);
            for gone in known.iter().filter(|p| !has(&now, p)) {
                me.remove_pod(gone);
            }
            for new in now.iter().filter(|p| !has(&known, p)) {
                me.set_pod(new.clone());
            }
            known = now;
            if let Some(d) = done.take() {
                let _ = d.send(());
            }
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(period) => {} }
        }
    });
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_is_refused() {
        assert!(check_swap("Filename Type Size Used Priority\n").is_ok());
        let e = check_swap("Filename\n/dev/sda2 partition 1 0 -1\n").unwrap_err();
        assert!(e.to_string().contains("--fail-swap-on flag to false"));
    }

    #[tokio::test]
    async fn a_node_named_by_its_address_has_that_address() {
        assert_eq!(own_address("20.0.0.103").await, Some("20.0.0.103".parse().unwrap()));
    }
}
