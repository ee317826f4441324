//! Leader election by a `Lease`, as client-go does it: whoever holds the lease renews it; a lease that was not
//! renewed for its duration, by the observer's own clock, may be taken.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use pilothouse_component_base::signals::Stop;
use tokio::time::Instant;

/// What to elect for and how fast. The defaults are those of `--leader-elect-*`.
#[derive(Debug, Clone)]
pub struct Election {
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
    /// Who we are: `<host>_<uuid>`.
    pub identity: String,
    /// How long others wait for a renewal.
    pub lease_duration: Duration,
    /// How long we try to renew before we give up.
    pub renew_deadline: Duration,
    /// Pause between tries.
    pub retry_period: Duration,
}

struct Observed {
    version: Option<String>,
    at: Instant,
}

impl Election {
    /// An election in `kube-system` with Kubernetes' default times: 15 s, 10 s, 2 s.
    pub fn new(name: &str, identity: String) -> Self {
        Election {
            namespace: "kube-system".into(),
            name: name.into(),
            identity,
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    /// Returns `true` when we lead, `false` when `stop` fired first.
    pub async fn acquire(&self, client: &Client, stop: &Stop) -> bool {
        let mut seen = Observed { version: None, at: Instant::now() };
        loop {
            match self.try_once(client, &mut seen).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(e) => tracing::debug!(lease = self.name, "leader election: {e}"),
            }
            tokio::select! { _ = stop.wait() => return false, _ = tokio::time::sleep(self.retry_period) => {} }
        }
    }

    /// Renews until we fail to for the renew deadline (`Err`: the caller must end, others may lead) or `stop` fires;
    /// then the lease is given back so that another can lead at once.
    pub async fn hold(&self, client: &Client, stop: &Stop) -> Result<(), LeadershipLost> {
        let mut seen = Observed { version: None, at: Instant::now() };
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                _ = stop.wait() => {
                    let _ = tokio::time::timeout(Duration::from_secs(2), self.release(client)).await;
                    return Ok(());
                }
                _ = tokio::time::sleep(self.retry_period) => {}
            }
            let left = self.renew_deadline.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left.max(self.retry_period), self.try_once(client, &mut seen)).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return Err(LeadershipLost(self.name.clone())),
                Ok(Err(e)) => tracing::debug!(lease = self.name, "renew: {e}"),
                Err(_) => tracing::debug!(lease = self.name, "renew: timed out"),
            }
            if renewed.elapsed() >= self.renew_deadline {
                return Err(LeadershipLost(self.name.clone()));
            }
        }
    }

    async fn try_once(&self, client: &Client, seen: &mut Observed) -> Result<bool, kube::Error> {
        let api: Api<Lease> = Api::namespaced(client.clone(), &self.namespace);
        let now = MicroTime(Timestamp::now());
        let Some(mut lease) = api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    namespace: Some(self.namespace.clone()),
                    ..Default::default()
                },
                spec: Some(LeaseSpec {
                    holder_identity: Some(self.identity.clone()),
                    lease_duration_seconds: Some(self.lease_duration.as_secs() as i32),
                    acquire_time: Some(now.clone()),
                    renew_time: Some(now),
                    lease_transitions: Some(0),
                    ..Default::default()
                }),
            };
            return match api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
                Err(e) => Err(e),
            };
        };
        if seen.version != lease.metadata.resource_version {
            *seen = Observed { version: lease.metadata.resource_version.clone(), at: Instant::now() };
        }
        let spec = lease.spec.get_or_insert_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let ours = holder == self.identity;
        if !ours && !holder.is_empty() && seen.at.elapsed() < self.lease_duration {
            return Ok(false);
        }
        spec.renew_time = Some(now.clone());
        spec.lease_duration_seconds = Some(self.lease_duration.as_secs() as i32);
        if !ours {
            spec.holder_identity = Some(self.identity.clone());
            spec.acquire_time = Some(now);
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
        }
        match api.replace(&self.name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(e)) if e.code == 409 => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn release(&self, client: &Client) -> Result<(), kube::Error> {
        let api: Api<Lease> = Api::namespaced(client.clone(), &self.namespace);
        let mut lease = api.get(&self.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

/// We no longer lead.
#[derive(Debug, thiserror::Error)]
#[error("leaderelection lost: {0}")]
pub struct LeadershipLost(String);
