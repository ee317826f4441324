//! Proxy mode `ipvs`: services are virtual servers of the kernel's IPVS, and their addresses are on `kube-ipvs0`.
//!
//! [`desired`] makes virtual servers of services, [`plan`] compares them with those of the kernel, and [`kernel`] carries
//! the difference out, over generic netlink. What IPVS does not do (masquerading, source ranges, refusals) is a small
//! nft table beside it ([`rules`]).

pub mod desired;
pub mod device;
pub mod kernel;
pub mod netlink;
pub mod plan;
pub mod rules;
pub mod sysctl;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::process::Command;

use self::kernel::Ipvs;
use self::plan::{Change, Key, Plan, Protocol, VirtualServer};
use crate::family::Family;
use crate::model::ServiceEntry;
use crate::proxier::Synced;
use crate::{nft, rules as nft_rules};

/// What is used where no scheduler is named.
pub const DEFAULT_SCHEDULER: &str = "rr";
/// Those that may be named.
pub const SCHEDULERS: [&str; 11] = ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh"];
/// How often real servers that wait for their connections to end are looked at.
const DRAIN: Duration = Duration::from_secs(5);
/// An address of documentation's: a virtual server there tells whether the kernel has a scheduler.
const PROBE: Key =
    Key { ip: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 0)), protocol: Protocol::Tcp, port: 20_000 };

/// The configuration's part about IPVS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How a real server is chosen.
    pub scheduler: String,
    /// Whether the node does not answer ARP for services' addresses.
    pub strict_arp: bool,
    /// Virtual servers that are others'.
    pub exclude_cidrs: Vec<IpNet>,
    /// How often all is compared.
    pub sync_period: Duration,
    /// The shortest time between two comparisons.
    pub min_sync_period: Duration,
    /// Timeout of idle TCP connections; zero for the kernel's.
    pub tcp_timeout: Duration,
    /// Timeout of TCP connections that are ending; zero for the kernel's.
    pub tcp_fin_timeout: Duration,
    /// Timeout of UDP; zero for the kernel's.
    pub udp_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            scheduler: DEFAULT_SCHEDULER.into(),
            strict_arp: false,
            exclude_cidrs: Vec::new(),
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            tcp_timeout: Duration::ZERO,
            tcp_fin_timeout: Duration::ZERO,
            udp_timeout: Duration::ZERO,
        }
    }
}

/// A proxier that works by IPVS.
pub struct Proxier {
    options: Options,
    rules: nft_rules::Options,
    ipvs: Arc<Mutex<Ipvs>>,
    tables: nft::Tables,
    /// When all was compared the last time, nft's table included.
    whole: Instant,
}

impl Proxier {
    /// Loads what of the kernel is needed and sets it up. The error says why IPVS cannot be used.
    pub async fn open(options: Options, rules: nft_rules::Options) -> anyhow::Result<Proxier> {
        for module in ["ip_vs", &format!("ip_vs_{}", options.scheduler), "nf_conntrack", "dummy"] {
            load(module).await;
        }
        let mut ipvs = Ipvs::open().context("the kernel has no IPVS")?;
        let probe = VirtualServer { scheduler: options.scheduler.clone(), flags: 0, timeout: 0 };
        ipvs.change(&Change::DeleteServer(PROBE)).context("IPVS")?;
        ipvs.change(&Change::AddServer(PROBE, probe))
            .with_context(|| format!("the kernel has no IPVS scheduler {:?}", options.scheduler))?;
        ipvs.change(&Change::DeleteServer(PROBE)).context("IPVS")?;
        device::ensure().await.context("no dummy device")?;
        sysctl::set(&sysctl::wanted(options.strict_arp, sysctl::kernel())).map_err(|e| anyhow!(e))?;
        ipvs.set_timeouts(options.tcp_timeout, options.tcp_fin_timeout, options.udp_timeout)
            .context("IPVS timeouts")?;
        let ipvs = Arc::new(Mutex::new(ipvs));
        Ok(Proxier { options, rules, ipvs, tables: nft::Tables::default(), whole: Instant::now() })
    }

    /// Brings the kernel to what `services` ask for. What can be done is done also where something cannot; then the
    /// error names the first that failed.
    pub async fn sync(&mut self, services: &[ServiceEntry]) -> anyhow::Result<Synced> {
        if self.whole.elapsed() >= self.options.sync_period {
            // Another may have changed the tables.
            self.tables.doubt();
            self.whole = Instant::now();
        }
        device::ensure().await?;
        let addresses = device::addresses().context("the node's addresses")?;
        let node_ports = addresses.node_ports(&self.rules.node_port_addresses);
        let desired = desired::desired(services, &addresses.own, &node_ports, &self.options.scheduler);

        let wanted = Family::ALL.map(|f| rules::render(services, &desired.addresses, &self.rules, f));
        let masquerades = self.tables.program(wanted.into()).await?;

        let (ipvs, excluded) = (self.ipvs.clone(), self.options.exclude_cidrs.clone());
        let servers = desired.servers;
        let carried_out = tokio::task::spawn_blocking(move || {
            let mut ipvs = ipvs.lock();
            let plan = plan::plan(&ipvs.list()?, &servers, &excluded);
            carry_out(&mut ipvs, plan)
        });
        let (plan, failure) = carried_out.await?.context("IPVS")?;
        // An address comes after its virtual servers, and goes after them.
        device::bind(&addresses.bound, &desired.addresses, &self.options.exclude_cidrs).await?;
        if let Some(failure) = failure {
            bail!(failure);
        }
        let bound = desired.addresses != addresses.bound;
        Ok(Synced {
            changed: bound || masquerades || !plan.changes.is_empty(),
            again: Some(if plan.draining {
                DRAIN.min(self.options.sync_period)
            } else {
                self.options.sync_period
            }),
        })
    }

    /// The shortest time between two calls of [`Proxier::sync`].
    pub fn min_sync_period(&self) -> Duration {
        self.options.min_sync_period
    }
}

/// Makes all changes of a plan; the first that failed.
fn carry_out(ipvs: &mut Ipvs, plan: Plan) -> std::io::Result<(Plan, Option<String>)> {
    let mut failure = None;
    for change in &plan.changes {
        if let Err(e) = ipvs.change(change) {
            failure.get_or_insert_with(|| format!("IPVS: {change:?}: {e}"));
        }
    }
    Ok((plan, failure))
}

/// Removes what a proxier has left: virtual servers and the device. Nothing where there is no device of that name:
/// then they are another's.
pub async fn remove(excluded: &[IpNet]) -> anyhow::Result<()> {
    if !device::exists() {
        return Ok(());
    }
    let mut ipvs = match Ipvs::open() {
        Ok(ipvs) => ipvs,
        Err(_) => return device::remove().await,
    };
    let plan = plan::plan(&ipvs.list()?, &BTreeMap::new(), excluded);
    let (_, failure) = carry_out(&mut ipvs, plan)?;
    device::remove().await?;
    failure.map_or(Ok(()), |f| Err(anyhow!(f)))
}

/// Loads a module where the kernel has modules; what is built in, or loaded by need, is there without.
async fn load(module: &str) {
    let result = Command::new("modprobe")
        .args(["-q", "--", module])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await;
    match result {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::debug!("modprobe {module}: {status}"),
        Err(e) => tracing::debug!("modprobe {module}: {e}"),
    }
}
