//! `pilothouse up`: a whole cluster on one machine.
//!
//! The components run as tasks of this process and are strangers to each other all the same: each is started by the
//! flags one would give it by hand, has a kubeconfig and a certificate of its own, and speaks HTTPS to the API
//! server. The kubelet joins as a remote one does, by bootstrap token and signing request. containerd is a child
//! process that outlives us, as the pods do: a restart finds them running.

mod bootstrap;
mod containerd;
mod layout;
mod mirror;
pub mod network;
pub mod reset;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use pilothouse_component_base::flags::{self, Flags};
use pilothouse_component_base::logs;
use pilothouse_component_base::signals::Stop;
use tokio::task::JoinSet;

use crate::components::{self, Component};
use layout::Layout;

const FLAGS: &str = include_str!("flags.tsv");

/// What `up` was asked to do.
pub struct Config {
    data_dir: PathBuf,
    bind_address: IpAddr,
    secure_port: u16,
    node_ip: IpAddr,
    node_name: String,
    service_cidr: ipnet::IpNet,
    node_ports: String,
    cluster_cidr: ipnet::Ipv4Net,
    cluster_domain: String,
    emulated_version: String,
    runtime_endpoint: Option<String>,
    pause_image: String,
    image_dir: Option<PathBuf>,
    etcd_servers: Vec<String>,
}

impl Config {
    fn from_flags(flags: &Flags) -> anyhow::Result<Config> {
        let parse_ip = |name: &str| -> anyhow::Result<IpAddr> {
            let v = flags.string(name);
            v.parse().with_context(|| format!("--{name}={v}"))
        };
        let service_cidr: ipnet::IpNet =
            flags.string("service-cluster-ip-range").parse().context("--service-cluster-ip-range")?;
        let cluster_cidr = flags.string("cluster-cidr").parse().context("--cluster-cidr")?;
        let node_ip = if flags.given("node-ip") { parse_ip("node-ip")? } else { network::own_address()? };
        let data_dir = PathBuf::from(flags.string("data-dir"));
        Ok(Config {
            data_dir: std::path::absolute(&data_dir).with_context(|| data_dir.display().to_string())?,
            bind_address: parse_ip("bind-address")?,
            secure_port: u16::try_from(flags.int("secure-port")).context("--secure-port")?,
            node_ip,
            node_name: match flags.opt("hostname-override") {
                Some(n) => n,
                None => network::host_name()?,
            },
            service_cidr,
            node_ports: flags.string("service-node-port-range"),
            cluster_cidr,
            cluster_domain: flags.string("cluster-domain"),
            emulated_version: flags.string("emulated-version"),
            runtime_endpoint: flags.opt("container-runtime-endpoint"),
            pause_image: flags.string("pod-infra-container-image"),
            image_dir: flags.opt("image-dir").map(PathBuf::from),
            etcd_servers: flags.strings("etcd-servers"),
        })
    }

    /// The n-th address of the service network: the first is the API server's, the tenth DNS's.
    fn service_ip(&self, n: u128) -> String {
        match self.service_cidr.network() {
            IpAddr::V4(a) => IpAddr::V4((u32::from(a) + n as u32).into()).to_string(),
            IpAddr::V6(a) => IpAddr::V6((u128::from(a) + n).into()).to_string(),
        }
    }

    fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.secure_port)
    }
}

/// Runs the cluster until SIGTERM or SIGINT.
pub fn main(args: &[String]) -> anyhow::Result<()> {
    let table = flags::table(FLAGS);
    let flags = Flags::parse(&table, args.iter().cloned())?;
    if flags.bool("help") {
        print!("{}", Flags::help("pilothouse up", &table));
        return Ok(());
    }
    let log_dir = flags.opt("log-dir").map(PathBuf::from);
    logs::init_with("pilothouse", flags.int("v"), log_dir.as_deref())?;
    let config = Config::from_flags(&flags)?;
    components::runtime()?.block_on(async {
        let stop = Stop::on_signals()?;
        run(config, stop).await
    })
}

async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let layout = Layout::create(&config)?;
    let _lock = layout.lock()?;
    network::fence(&config).await?;
    let endpoint = match &config.runtime_endpoint {
        Some(e) => e.clone(),
        None => {
            network::write_cni_config(&config, &layout)?;
            if let Some(dir) = &config.image_dir {
                let port =
                    mirror::serve(dir.clone(), containerd::last_mirror_port(&layout), stop.clone()).await?;
                containerd::use_mirror(&layout, port)?;
            }
            containerd::ensure_running(&config, &layout).await?
        }
    };

    let mut tasks = JoinSet::new();
    // The API server stops last: the others give back their leases and write their last statuses through it.
    let (stop_server, server_stop) = Stop::new();
    spawn(&mut tasks, "kube-apiserver", layout.apiserver_args(&config), server_stop);
    let admin = layout.kubeconfig("admin");
    tokio::select! {
        ready = bootstrap::wait_ready(&admin) => ready?,
        Some(ended) = tasks.join_next() => return Err(failure(ended)),
        _ = stop.wait() => return Ok(()),
    }
    bootstrap::apply(&config, &layout).await?;

    let mut others = JoinSet::new();
    for (name, args) in [
        ("kube-controller-manager", layout.controller_manager_args(&config)),
        ("kube-scheduler", layout.scheduler_args()),
        ("kube-proxy", layout.proxy_args(&config)),
        ("cluster-dns", layout.dns_args(&config)),
        ("kubelet", layout.kubelet_args(&config, &endpoint)),
    ] {
        spawn_restarting(&mut others, name, args, stop.clone());
    }
    tracing::info!(kubeconfig = %admin.display(), "cluster is up");

    let result = tokio::select! {
        _ = stop.wait() => Ok(()),
        Some(ended) = tasks.join_next() => Err(failure(ended)),
    };
    let _ =
        tokio::time::timeout(Duration::from_secs(20), async { while others.join_next().await.is_some() {} })
            .await;
    others.abort_all();
    stop_server.stop();
    let _ =
        tokio::time::timeout(Duration::from_secs(20), async { while tasks.join_next().await.is_some() {} })
            .await;
    result
}

type Ended = (&'static str, anyhow::Result<()>);

fn spawn(tasks: &mut JoinSet<Ended>, name: &'static str, args: Vec<String>, stop: Stop) {
    tasks.spawn(async move {
        let result = match Component::named(name) {
            Some(c) => c.run(&args, stop).await,
            None => Err(anyhow::anyhow!("no such component")),
        };
        (name, result)
    });
}

/// A component that ends (a lost lease, say) is started again, as systemd would do with a unit of its own.
fn spawn_restarting(tasks: &mut JoinSet<Ended>, name: &'static str, args: Vec<String>, stop: Stop) {
    tasks.spawn(async move {
        let mut delay = Duration::from_millis(500);
        loop {
            // A task of its own, so that a panic ends it alone.
            let (args, component_stop) = (args.clone(), stop.clone());
            let running = tokio::spawn(async move {
                match Component::named(name) {
                    Some(c) => c.run(&args, component_stop).await,
                    None => Err(anyhow::anyhow!("no such component")),
                }
            });
            let began = tokio::time::Instant::now();
            let ended = running.await;
            if stop.stopped() {
                return (name, Ok(()));
            }
            match ended {
                Ok(Ok(())) => tracing::error!(component = name, "ended; starting it again"),
                Ok(Err(e)) => tracing::error!(component = name, "{e:#}; starting it again"),
                Err(e) => tracing::error!(component = name, "{e}; starting it again"),
            }
            delay = if began.elapsed() > Duration::from_secs(60) {
                Duration::from_millis(500)
            } else {
                (delay * 2).min(Duration::from_secs(15))
            };
            tokio::select! { _ = stop.wait() => return (name, Ok(())), _ = tokio::time::sleep(delay) => {} }
        }
    });
}

fn failure(ended: Result<Ended, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok((name, Ok(()))) => anyhow::anyhow!("{name} ended"),
        Ok((name, Err(e))) => e.context(name),
        Err(e) => e.into(),
    }
}
