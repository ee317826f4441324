//! From flags and a KubeProxyConfiguration file to a typed configuration. With `--config`, the file counts and
//! flags are ignored, as with the original.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use pilothouse_client::limit::Limit;
use pilothouse_component_base::config_keys;
use pilothouse_component_base::flags::{Flags, parse_duration};
use serde::Deserialize;

use crate::{conntrack, ipvs, rules};

/// The keys of the file.
const KEYS: &str = include_str!("config_keys.tsv");

/// What the proxy was asked to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// `iptables`, `ipvs`, …: what the configuration names; nftables serves in place of all that cannot be had.
    pub mode: String,
    /// This node's name.
    pub node_name: String,
    /// Where `/healthz` is.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is.
    pub metrics_bind_address: Option<SocketAddr>,
    /// Whether a port that cannot be opened ends the proxy.
    pub bind_address_hard_fail: bool,
    /// How many requests may be made; any number where nothing says.
    pub limit: Option<Limit>,
    /// Address of the API server; wins over that of the kubeconfig.
    pub master: Option<String>,
    /// What connection tracking is to be like.
    pub conntrack: conntrack::Options,
    /// The shortest time between two changes of nftables' rules.
    pub min_sync_period: Duration,
    /// What the rules depend on.
    pub rules: rules::Options,
    /// What mode `ipvs` depends on.
    pub ipvs: ipvs::Options,
    /// Remove what a proxy has programmed, and end.
    pub cleanup: bool,
    /// Whether that includes what mode `ipvs` has left.
    pub cleanup_ipvs: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    kind: String,
    client_connection: ClientConnection,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    hostname_override: String,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    mode: String,
    bind_address_hard_fail: bool,
    node_port_addresses: Option<Vec<String>>,
    iptables: Iptables,
    ipvs: Ipvs,
    conntrack: Conntrack,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ClientConnection {
    kubeconfig: String,
    qps: f64,
    burst: i64,
}

/// KubeProxyConntrackConfiguration: durations as texts, defaults where nothing is said.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Conntrack {
    max_per_core: Option<i64>,
    min: Option<i64>,
    tcp_established_timeout: Option<String>,
    tcp_close_wait_timeout: Option<String>,
}

impl Conntrack {
    fn from_flags(flags: &Flags) -> Conntrack {
        Conntrack {
            max_per_core: Some(flags.int("conntrack-max-per-core")),
            min: Some(flags.int("conntrack-min")),
            tcp_established_timeout: flags.opt("conntrack-tcp-timeout-established"),
            tcp_close_wait_timeout: flags.opt("conntrack-tcp-timeout-close-wait"),
        }
    }

    fn options(self) -> Result<conntrack::Options, String> {
        let part = "KubeProxyConfiguration.KubeProxyConntrackConfiguration";
        let number = |field: &str, v: Option<i64>, default: u64| match v {
            None => Ok(default),
            Some(v) => u64::try_from(v).map_err(|_| {
                format!("{part}.{field}: Invalid value: {v}: must be greater than or equal to 0")
            }),
        };
        let duration = |field: &str, v: Option<String>, default: Duration| match v {
            None => Ok(default),
            Some(v) => parse_duration(&v).ok_or_else(|| {
                format!("{part}.{field}: Invalid value: {v:?}: must be greater than or equal to 0")
            }),
        };
        let defaults = conntrack::Options::default();
        Ok(conntrack::Options {
            max_per_core: number("MaxPerCore", self.max_per_core, defaults.max_per_core)?,
            min: number("Min", self.min, defaults.min)?,
            tcp_established: duration(
                "TCPEstablishedTimeout",
                self.tcp_established_timeout,
                defaults.tcp_established,
            )?,
            tcp_close_wait: duration(
                "TCPCloseWaitTimeout",
                self.tcp_close_wait_timeout,
                defaults.tcp_close_wait,
            )?,
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Iptables {
    masquerade_all: bool,
    sync_period: String,
    min_sync_period: String,
}

impl Iptables {
    fn from_flags(flags: &Flags) -> Iptables {
        // Its default keeps a slower way of changing rules from being used too often.
        let given = |name: &str| if flags.given(name) { flags.string(name) } else { String::new() };
        Iptables {
            masquerade_all: flags.bool("masquerade-all"),
            sync_period: flags.string("iptables-sync-period"),
            min_sync_period: given("iptables-min-sync-period"),
        }
    }

    /// The shortest time between two changes.
    fn min_sync_period(&self) -> Result<Duration, String> {
        let part = "KubeProxyConfiguration.KubeProxyIPTablesConfiguration";
        let duration = |field: &str, v: &str| match v {
            "" => Ok(Duration::ZERO),
            v => parse_duration(v).ok_or_else(|| {
                format!("{part}.{field}: Invalid value: {v:?}: must be greater than or equal to 0")
            }),
        };
        let sync = match duration("SyncPeriod", &self.sync_period)? {
            Duration::ZERO => Duration::from_secs(30),
            period => period,
        };
        let min = duration("MinSyncPeriod", &self.min_sync_period)?;
        if min > sync {
            return Err(format!(
                "{part}.SyncPeriod: Invalid value: {sync:?}: must be greater than or equal to {part}.MinSyncPeriod"
            ));
        }
        Ok(min)
    }
}

/// KubeProxyIPVSConfiguration: durations as texts.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ipvs {
    scheduler: String,
    #[serde(rename = "strictARP")]
    strict_arp: bool,
    #[serde(rename = "excludeCIDRs")]
    exclude_cidrs: Option<Vec<String>>,
    sync_period: String,
    min_sync_period: String,
    tcp_timeout: String,
    tcp_fin_timeout: String,
    udp_timeout: String,
}

impl Ipvs {
    fn from_flags(flags: &Flags) -> Ipvs {
        let duration = |name| flags.opt(name).unwrap_or_default();
        Ipvs {
            scheduler: flags.string("ipvs-scheduler"),
            strict_arp: flags.bool("ipvs-strict-arp"),
            exclude_cidrs: Some(flags.strings("ipvs-exclude-cidrs")),
            sync_period: duration("ipvs-sync-period"),
            min_sync_period: duration("ipvs-min-sync-period"),
            tcp_timeout: duration("ipvs-tcp-timeout"),
            tcp_fin_timeout: duration("ipvs-tcpfin-timeout"),
            udp_timeout: duration("ipvs-udp-timeout"),
        }
    }

    /// Defaults and checks it. The error names the field as the original does.
    fn options(self) -> Result<ipvs::Options, String> {
        let invalid = |field: &str, value: &str, why: &str| {
            format!(
                "KubeProxyConfiguration.KubeProxyIPVSConfiguration.{field}: Invalid value: {value:?}: {why}"
            )
        };
        let duration = |field: &str, v: &str| match v {
            "" => Ok(Duration::ZERO),
            v if v.starts_with('-') => Err(invalid(field, v, "must be greater than or equal to 0")),
            v => parse_duration(v).ok_or_else(|| invalid(field, v, "must be a duration")),
        };
        let defaults = ipvs::Options::default();
        let scheduler = match self.scheduler.as_str() {
            "" => defaults.scheduler,
            s if ipvs::SCHEDULERS.contains(&s) => self.scheduler,
            s => {
                let known = ipvs::SCHEDULERS.join(" ");
                let why =
                    format!("must be in [{known}], blank means the default algorithm method (currently rr)");
                return Err(invalid("Scheduler.Scheduler", s, &why));
            }
        };
        let sync_period = match duration("SyncPeriod", &self.sync_period)? {
            Duration::ZERO => defaults.sync_period,
            period => period,
        };
        let min_sync_period = duration("MinSyncPeriod", &self.min_sync_period)?;
        if min_sync_period > sync_period {
            let why = "must be greater than or equal to KubeProxyConfiguration.KubeProxyIPVSConfiguration.MinSyncPeriod";
            return Err(invalid("SyncPeriod", &self.sync_period, why));
        }
        let exclude_cidrs = self
            .exclude_cidrs
            .unwrap_or_default()
            .iter()
            .map(|c| c.parse().map_err(|_| invalid("ExcludeCidrs", c, "must be a valid IP block")))
            .collect::<Result<_, String>>()?;
        Ok(ipvs::Options {
            scheduler,
            strict_arp: self.strict_arp,
            exclude_cidrs,
            sync_period,
            min_sync_period,
            tcp_timeout: duration("TCPTimeout", &self.tcp_timeout)?,
            tcp_fin_timeout: duration("TCPFinTimeout", &self.tcp_fin_timeout)?,
            udp_timeout: duration("UDPTimeout", &self.udp_timeout)?,
        })
    }
}

impl Config {
    /// Reads flags and file. The error is one line that names the flag or the file.
    pub fn from_flags(flags: &Flags) -> Result<Config, String> {
        let file = match flags.opt("config") {
            Some(path) => read(Path::new(&path))?,
            None => File {
                client_connection: ClientConnection {
                    kubeconfig: flags.string("kubeconfig"),
                    ..ClientConnection::default()
                },
                cluster_cidr: flags.string("cluster-cidr"),
                hostname_override: flags.string("hostname-override"),
                healthz_bind_address: Some(by_port(flags, "healthz-bind-address", "healthz-port")?),
                metrics_bind_address: Some(by_port(flags, "metrics-bind-address", "metrics-port")?),
                bind_address_hard_fail: flags.bool("bind-address-hard-fail"),
                mode: flags.string("proxy-mode"),
                node_port_addresses: Some(flags.strings("nodeport-addresses")),
                iptables: Iptables::from_flags(flags),
                ipvs: Ipvs::from_flags(flags),
                conntrack: Conntrack::from_flags(flags),
                ..File::default()
            },
        };
        let address = |name: &str, v: Option<String>, default: &str| -> Result<Option<SocketAddr>, String> {
            match v.as_deref().unwrap_or(default) {
                "" => Ok(None),
                v => with_port(v, default).map(Some).ok_or_else(|| format!("{name}: {v:?} is no address")),
            }
        };
        // One network, or one of each family.
        let cidrs = |name: &str, v: &str| -> Result<Vec<IpNet>, String> {
            let list = v.split(',').map(str::trim).filter(|c| !c.is_empty());
            let nets: Vec<IpNet> = list
                .map(|c| c.parse().map_err(|e| format!("{name} {v:?}: {e}")))
                .collect::<Result<_, _>>()?;
            match nets.as_slice() {
                [] | [_] => Ok(nets),
                [a, b] if a.addr().is_ipv4() != b.addr().is_ipv4() => Ok(nets),
                _ => Err(format!("{name} {v:?}: more than one of a family")),
            }
        };
        let cleanup = flags.bool("cleanup");
        if file.client_connection.kubeconfig.is_empty() && !cleanup && !flags.given("master") {
            return Err("no kubeconfig: --kubeconfig, or clientConnection.kubeconfig in --config".into());
        }
        let node_name = match file.hostname_override.as_str() {
            "" => {
                std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase()
            }
            n => n.trim().to_lowercase(),
        };
        let node_port_addresses = file
            .node_port_addresses
            .unwrap_or_default()
            .iter()
            .map(|a| a.parse().map_err(|e| format!("nodePortAddresses: {a:?}: {e}")))
            .collect::<Result<Vec<IpNet>, String>>()?;
        // Of the other modes' configuration nobody asks.
        let ipvs = match file.mode.as_str() {
            "ipvs" => file.ipvs.options()?,
            _ => ipvs::Options::default(),
        };
        let limit = match flags.opt("config").is_some() {
            true => Limit::new(file.client_connection.qps, file.client_connection.burst),
            false => Limit::from_flags(flags),
        };
        Ok(Config {
            limit,
            master: flags.opt("master"),
            conntrack: file.conntrack.options()?,
            min_sync_period: file.iptables.min_sync_period()?,
            kubeconfig: PathBuf::from(file.client_connection.kubeconfig),
            mode: file.mode,
            node_name,
            healthz_bind_address: address("healthzBindAddress", file.healthz_bind_address, "0.0.0.0:10256")?,
            metrics_bind_address: address(
                "metricsBindAddress",
                file.metrics_bind_address,
                "127.0.0.1:10249",
            )?,
            bind_address_hard_fail: file.bind_address_hard_fail,
            rules: rules::Options {
                cluster_cidrs: cidrs("clusterCIDR", &file.cluster_cidr)?,
                service_cidrs: cidrs(
                    "--service-cluster-ip-range",
                    &flags.string("service-cluster-ip-range"),
                )?,
                masquerade_all: file.iptables.masquerade_all,
                node_port_addresses,
            },
            ipvs,
            cleanup,
            cleanup_ipvs: flags.bool("cleanup-ipvs"),
        })
    }
}

/// The address of one flag with the port of another, where that has none; nothing where the port is zero.
fn by_port(flags: &Flags, address: &str, port_flag: &str) -> Result<String, String> {
    let (address, port) = (flags.string(address), flags.int(port_flag));
    let port = u16::try_from(port).map_err(|_| format!("--{port_flag}: {port} is not a valid port"))?;
    if port == 0 || address.is_empty() {
        return Ok(String::new());
    }
    let ip = address.parse::<IpAddr>();
    Ok(ip.map_or(address, |ip| SocketAddr::new(ip, port).to_string()))
}

/// An address that may lack its port.
fn with_port(v: &str, default: &str) -> Option<SocketAddr> {
    let port = default.rsplit_once(':')?.1;
    v.parse()
        .ok()
        .or_else(|| format!("{v}:{port}").parse().ok())
        .or_else(|| format!("[{v}]:{port}").parse().ok())
}

fn read(path: &Path) -> Result<File, String> {
    let bad = |e: String| format!("{}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    let file: File = serde_yaml_ng::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let given: serde_json::Map<_, _> = serde_yaml_ng::from_str(&text).map_err(|e| bad(e.to_string()))?;
    for remark in config_keys::remarks(&config_keys::table(KEYS), &given, &serde_json::Value::Null) {
        tracing::warn!("{}: {remark}", path.display());
    }
    if file.kind != "KubeProxyConfiguration" {
        return Err(bad(format!("kind is {:?}, not KubeProxyConfiguration", file.kind)));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_component_base::flags;

    fn config(args: &[&str]) -> Result<Config, String> {
        Config::from_flags(&Flags::parse(&flags::table(crate::FLAGS), args.iter().copied()).unwrap())
    }

    #[test]
    fn the_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.yaml");
        std::fs::write(
            &path,
            "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nmode: ipvs\n\
             clientConnection:\n  kubeconfig: /k\nclusterCIDR: 10.244.0.0/16\nhostnameOverride: N1\n\
             metricsBindAddress: 0.0.0.0\n",
        )
        .unwrap();
        let c = config(&[&format!("--config={}", path.display())]).unwrap();
        assert_eq!((c.mode.as_str(), c.node_name.as_str()), ("ipvs", "n1"));
        assert_eq!(c.metrics_bind_address.unwrap().to_string(), "0.0.0.0:10249");
        assert_eq!(c.healthz_bind_address.unwrap().to_string(), "0.0.0.0:10256");
        std::fs::write(&path, "kind: Pod").unwrap();
        assert!(config(&[&format!("--config={}", path.display())]).unwrap_err().contains("p.yaml"));
    }

    #[test]
    fn the_classic_files_keys_have_a_meaning() {
        let table = config_keys::table(KEYS);
        assert_eq!(table.len(), 42);
        let remarks = |text: &str| {
            let file: serde_json::Map<_, _> = serde_yaml_ng::from_str(text).unwrap();
            config_keys::remarks(&table, &file, &serde_json::Value::Null)
        };
        let classic = "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
            bindAddress: 0.0.0.0\nmetricsBindAddress: 0.0.0.0:10249\nclientConnection: {kubeconfig: /k}\n\
            hostnameOverride: n\nclusterCIDR: 10.244.0.0/16\nmode: ipvs\nipvs: {scheduler: rr}\n\
            iptables: {masqueradeAll: true, masqueradeBit: null}\nwinkernel: null\nfeatureGates: {}\n";
        assert!(remarks(classic).is_empty(), "{:?}", remarks(classic));
        assert_eq!(remarks("address: 0.0.0.0"), ["unknown field \"address\""]);
    }

    #[test]
    fn ipvs_has_its_part() {
        let c = config(&["--kubeconfig=/k", "--proxy-mode=ipvs"]).unwrap();
        assert_eq!(c.ipvs, ipvs::Options::default());
        let c = config(&[
            "--kubeconfig=/k",
            "--proxy-mode=ipvs",
            "--ipvs-scheduler=wrr",
            "--ipvs-strict-arp",
            "--ipvs-exclude-cidrs=192.0.2.0/24,fd00::/8",
            "--ipvs-sync-period=1m0s",
            "--ipvs-min-sync-period=5s",
            "--ipvs-tcp-timeout=15m",
        ])
        .unwrap();
        assert_eq!((c.ipvs.scheduler.as_str(), c.ipvs.strict_arp), ("wrr", true));
        assert_eq!((c.ipvs.sync_period.as_secs(), c.ipvs.min_sync_period.as_secs()), (60, 5));
        assert_eq!((c.ipvs.exclude_cidrs.len(), c.ipvs.tcp_timeout.as_secs()), (2, 900));
        for (flag, field) in [
            ("--ipvs-scheduler=x", "Scheduler.Scheduler: Invalid value: \"x\": must be in [rr wrr lc "),
            ("--ipvs-exclude-cidrs=10.0.0.1", "ExcludeCidrs"),
            ("--ipvs-min-sync-period=31s", "SyncPeriod"),
        ] {
            let e = config(&["--kubeconfig=/k", "--proxy-mode=ipvs", flag]).unwrap_err();
            assert!(e.contains(field), "{e}");
            // Another mode does not look at it.
            config(&["--kubeconfig=/k", flag]).unwrap();
        }
    }

    #[test]
    fn the_files_keys_of_ipvs() {
        let text = "kind: KubeProxyConfiguration\nmode: ipvs\nclientConnection: {kubeconfig: /k}\nipvs:\n  \
            scheduler: sh\n  strictARP: true\n  excludeCIDRs: [192.0.2.0/24]\n  syncPeriod: 10s\n  \
            minSyncPeriod: 0s\n  tcpTimeout: 1m\n  tcpFinTimeout: 5s\n  udpTimeout: 2s\n";
        let file: File = serde_yaml_ng::from_str(text).unwrap();
        let seconds = Duration::from_secs;
        assert_eq!(
            file.ipvs.options().unwrap(),
            ipvs::Options {
                scheduler: "sh".into(),
                strict_arp: true,
                exclude_cidrs: vec!["192.0.2.0/24".parse().unwrap()],
                sync_period: seconds(10),
                min_sync_period: seconds(0),
                tcp_timeout: seconds(60),
                tcp_fin_timeout: seconds(5),
                udp_timeout: seconds(2),
            }
        );
        let null: File = serde_yaml_ng::from_str("ipvs: {excludeCIDRs: null, syncPeriod: 0s}").unwrap();
        assert_eq!(null.ipvs.options().unwrap(), ipvs::Options::default());
        let negative: File = serde_yaml_ng::from_str("ipvs: {udpTimeout: -1s}").unwrap();
        assert!(negative.ipvs.options().unwrap_err().contains("UDPTimeout"));
    }

    #[test]
    fn ports_by_their_older_flags() {
        let address = |args: &[&str]| {
            let args = [&["--kubeconfig=/k"], args].concat();
            config(&args).unwrap().healthz_bind_address.map(|a| a.to_string())
        };
        assert_eq!(address(&[]).as_deref(), Some("0.0.0.0:10256"));
        assert_eq!(address(&["--healthz-port=0"]), None);
        let moved = ["--healthz-bind-address=127.0.0.1", "--healthz-port=7"];
        assert_eq!(address(&moved).as_deref(), Some("127.0.0.1:7"));
        // An address with a port has it already.
        let both = ["--healthz-bind-address=127.0.0.1:8", "--healthz-port=7"];
        assert_eq!(address(&both).as_deref(), Some("127.0.0.1:8"));
        for bad in ["--healthz-port=70000", "--metrics-port=-1"] {
            let e = config(&["--kubeconfig=/k", bad]).unwrap_err();
            assert!(e.ends_with("is not a valid port"), "{e}");
        }
    }

    #[test]
    fn connection_tracking_has_its_part() {
        let c = config(&["--kubeconfig=/k"]).unwrap();
        assert_eq!(c.conntrack, conntrack::Options::default());
        let flags =
            ["--kubeconfig=/k", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-close-wait=5s"];
        let c = config(&flags).unwrap();
        assert_eq!((c.conntrack.max_per_core, c.conntrack.tcp_close_wait.as_secs()), (0, 5));
        let text = "conntrack: {maxPerCore: 1, min: null, tcpEstablishedTimeout: 0s}";
        let file: File = serde_yaml_ng::from_str(text).unwrap();
        let options = file.conntrack.options().unwrap();
        assert_eq!((options.max_per_core, options.min, options.tcp_established.as_secs()), (1, 131_072, 0));
        let file: File = serde_yaml_ng::from_str("conntrack: {min: -1}").unwrap();
        assert!(file.conntrack.options().unwrap_err().contains("KubeProxyConntrackConfiguration.Min"));
    }

    #[test]
    fn rules_are_changed_by_a_period() {
        assert_eq!(config(&["--kubeconfig=/k"]).unwrap().min_sync_period, Duration::ZERO);
        let c = config(&["--kubeconfig=/k", "--iptables-sync-period=1m", "--iptables-min-sync-period=31s"]);
        assert_eq!(c.unwrap().min_sync_period.as_secs(), 31);
        let e = config(&["--kubeconfig=/k", "--iptables-min-sync-period=31s"]).unwrap_err();
        assert!(e.contains("KubeProxyIPTablesConfiguration.SyncPeriod"), "{e}");
    }

    #[test]
    fn cleanup_needs_no_credentials() {
        assert!(config(&["--cleanup"]).unwrap().cleanup);
    }

    #[test]
    fn names_what_is_wrong() {
        assert!(config(&[]).unwrap_err().contains("kubeconfig"));
        let e = config(&["--kubeconfig=/k", "--cluster-cidr=10.244.0.0/99"]).unwrap_err();
        assert!(e.contains("clusterCIDR"), "{e}");
        let e = config(&["--kubeconfig=/k", "--cluster-cidr=10.244.0.0/16,10.245.0.0/16"]).unwrap_err();
        assert!(e.contains("more than one of a family"), "{e}");
        let c = config(&["--kubeconfig=/k", "--cluster-cidr=10.244.0.0/16,fd01::/64"]).unwrap();
        assert_eq!(c.rules.cluster_cidrs.len(), 2);
    }
}
