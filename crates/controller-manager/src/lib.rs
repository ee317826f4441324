//! kube-controller-manager: one file per controller.
//!
//! A controller is a `start` function listed in [`controllers`]: it takes informers and a client from its
//! [`Context`], and runs a work queue whose `sync` reads the local copies, decides with plain functions, and writes
//! through the API. It knows nothing of the other controllers.

pub mod accounts;
pub mod autoscaling;
pub mod batch;
pub mod certificates;
pub mod config;
pub mod context;
pub mod control;
pub mod controllers;
pub mod credentials;
pub mod endpoints;
pub mod gc;
pub mod node;
pub mod policy;
pub mod volume;
pub mod workloads;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use pilothouse_client::leader::Election;
use pilothouse_component_base::metrics::Metrics;
use pilothouse_component_base::notify;
use pilothouse_component_base::serve::{self, Health};
use pilothouse_component_base::signals::Stop;

pub use config::Config;
use context::Context;

/// The flag table.
pub const FLAGS: &str = include_str!("flags.tsv");

/// Runs the controllers until `stop`. With `--leader-elect`, waits to lead first, and ends with an error when the
/// lease is lost.
pub async fn run(config: Config, stop: Stop) -> anyhow::Result<()> {
    let config = Arc::new(config);
    // Known now and not only when it leads.
    for (cert, key) in config.cluster_signing.values() {
        pilothouse_pki::Authority::load(cert, key).context("cluster signing certificate")?;
    }
    if let Some(file) = &config.root_ca_file {
        let text = pilothouse_pki::files::read(file)?;
        let mut blocks = x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()).flatten();
        if !blocks.any(|block| block.parse_x509().is_ok()) {
            let what = "data does not contain any valid RSA or ECDSA certificates";
            anyhow::bail!("error parsing root-ca-file at {}: {what}", file.display());
        }
    }
    let health = Health { metrics: Metrics::default(), ..Health::default() };
    if config.insecure_port != 0 {
        let addr = SocketAddr::new(config.insecure_address, config.insecure_port);
        serve::serve(addr, None, health.clone(), stop.clone()).await?;
    }
    if config.secure_port != 0 {
        let addr = SocketAddr::new(config.bind_address, config.secure_port);
        let tls = serving_certificate(&config)?;
        serve::serve(addr, Some(tls), health, stop.clone()).await?;
    }
    let client = pilothouse_client::config::connect(&config.kubeconfig, NAME).await?;
    let election = Election {
        namespace: config.leader_elect_namespace.clone(),
        name: config.leader_elect_name.clone(),
        lease_duration: config.lease_duration,
        renew_deadline: config.renew_deadline,
        retry_period: config.retry_period,
        ..Election::new(NAME, identity())
    };
    notify::ready("kube-controller-manager", "waiting to lead");
    if config.leader_elect && !election.acquire(&client, &stop).await {
        return Ok(());
    }
    // The lease is renewed whatever the controllers' limit.
    let limited = pilothouse_client::config::connect_limited(&config.kubeconfig, NAME, config.limit).await?;
    let context = Context::new(limited, config.clone(), stop.clone()).await?;
    controllers::start(&context).await?;
    notify::ready("kube-controller-manager", "leading");
    if config.leader_elect {
        election.hold(&client, &stop).await?;
    } else {
        stop.wait().await;
    }
    Ok(())
}

/// What we are called.
pub(crate) const NAME: &str = "kube-controller-manager";

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
