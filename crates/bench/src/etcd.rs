//! Raw puts by an etcd client: what the store does without an API server in front.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use etcd_client::{Certificate, Client, ConnectOptions, DeleteOptions, Identity, TlsOptions};
use http::Uri;

use crate::args;
use crate::load::{self, Outcome, Plan};
use crate::target::require_loopback;

/// Connections to an etcd that writers share.
#[derive(Clone)]
pub struct Puts(Vec<Client>);

impl Puts {
    /// Opens `connections`.
    pub async fn connect(args: &args::Etcd, connections: usize, allow_remote: bool) -> Result<Puts> {
        for endpoint in &args.endpoints {
            let uri: Uri = endpoint.parse().with_context(|| format!("etcd endpoint {endpoint:?}"))?;
            let host = uri.host().ok_or_else(|| anyhow!("etcd endpoint {endpoint:?} has no host"))?;
            require_loopback(host.trim_start_matches('[').trim_end_matches(']'), allow_remote)?;
        }
        let mut options = ConnectOptions::new().with_connect_timeout(Duration::from_secs(5));
        if args.etcd_cafile.is_some() || args.etcd_certfile.is_some() {
            let mut tls = TlsOptions::new();
            if let Some(path) = &args.etcd_cafile {
                tls = tls.ca_certificate(Certificate::from_pem(std::fs::read(path)?));
            }
            if let (Some(certificate), Some(key)) = (&args.etcd_certfile, &args.etcd_keyfile) {
                tls = tls.identity(Identity::from_pem(std::fs::read(certificate)?, std::fs::read(key)?));
            }
            options = options.with_tls(tls);
        }
        let mut clients = Vec::new();
        for _ in 0..connections.max(1) {
            let mut client = Client::connect(&args.endpoints, Some(options.clone())).await?;
            client.status().await.with_context(|| format!("etcd at {}", args.endpoints.join(",")))?;
            clients.push(client);
        }
        Ok(Puts(clients))
    }

    /// Puts `plan.n` values of `size` bytes below a prefix of its own, and removes them afterwards.
    pub async fn run(&self, plan: Plan, size: usize) -> Result<Outcome> {
        let prefix = format!("/pilothouse-bench/{}/", crate::commands::unique());
        let value = vec![b'x'; size];
        let (clients, keys) = (self.0.clone(), prefix.clone());
        let outcome = load::run(plan, move |client, index| {
            let mut kv = clients[client % clients.len()].kv_client();
            let (key, value) = (format!("{keys}{index:08}"), value.clone());
            async move {
                kv.put(key, value, None).await?;
                Ok(())
            }
        })
        .await;
        self.0[0].kv_client().delete(prefix, Some(DeleteOptions::new().with_prefix())).await?;
        Ok(outcome)
    }
}
