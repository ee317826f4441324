//! What programs services: nftables alone, or IPVS with a little of it.

use std::time::Duration;

use crate::config::Config;
use crate::family::Family;
use crate::model::ServiceEntry;
use crate::{ipvs, nft, rules};

/// What one round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Synced {
    /// Whether something was changed.
    pub changed: bool,
    /// When to look again though nothing changed.
    pub again: Option<Duration>,
}

/// One way of programming services.
pub enum Proxier {
    /// By nftables.
    Nftables {
        /// What the rules depend on beside the services.
        options: rules::Options,
        /// What the kernel has from us.
        tables: nft::Tables,
        /// The shortest time between two changes.
        min_sync_period: Duration,
    },
    /// By IPVS.
    Ipvs(Box<ipvs::Proxier>),
}

impl Proxier {
    /// The one that the configuration asks for, or nftables where the kernel does not have it.
    pub async fn choose(config: &Config) -> Proxier {
        if config.mode == "ipvs" {
            match ipvs::Proxier::open(config.ipvs.clone(), config.rules.clone()).await {
                Ok(proxier) => {
                    tracing::info!("Using ipvs Proxier: scheduler {:?}", config.ipvs.scheduler);
                    return Proxier::Ipvs(Box::new(proxier));
                }
                Err(e) => tracing::warn!(
                    "Can't use the IPVS proxier ({e:#}): services are programmed by nftables, which serves in its place"
                ),
            }
        } else if !config.mode.is_empty() && config.mode != "nftables" {
            let mode = &config.mode;
            tracing::warn!(
                "proxy mode {mode:?}: services are programmed by nftables, which serves in its place"
            );
        }
        if let Err(e) = ipvs::remove(&config.ipvs.exclude_cidrs).await {
            tracing::warn!("what proxy mode \"ipvs\" left could not be removed: {e:#}");
        }
        Proxier::Nftables {
            options: config.rules.clone(),
            tables: nft::Tables::default(),
            min_sync_period: config.min_sync_period,
        }
    }

    /// Brings the kernel to what `services` ask for.
    pub async fn sync(&mut self, services: &[ServiceEntry]) -> anyhow::Result<Synced> {
        match self {
            Proxier::Ipvs(proxier) => proxier.sync(services).await,
            Proxier::Nftables { options, tables, .. } => {
                let wanted = Family::ALL.map(|family| rules::render(services, options, family));
                Ok(Synced { changed: tables.program(wanted.into()).await?, again: None })
            }
        }
    }

    /// What programs services, by Kubernetes' name.
    pub fn mode(&self) -> &'static str {
        match self {
            Proxier::Ipvs(_) => "ipvs",
            Proxier::Nftables { .. } => "nftables",
        }
    }

    /// The shortest time between two calls of [`Proxier::sync`].
    pub fn min_sync_period(&self) -> Duration {
        match self {
            Proxier::Ipvs(proxier) => proxier.min_sync_period(),
            Proxier::Nftables { min_sync_period, .. } => *min_sync_period,
        }
    }
}

/// Removes all that a proxy has programmed; IPVS' part where `ipvs` says so.
pub async fn cleanup(config: &Config) -> anyhow::Result<()> {
    nft::remove().await?;
    if config.cleanup_ipvs { ipvs::remove(&config.ipvs.exclude_cidrs).await } else { Ok(()) }
}
