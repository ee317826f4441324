//! From flags to a typed configuration. Flag meanings:
//! <https://kubernetes.io/docs/reference/command-line-tools-reference/kube-controller-manager/>.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use pilothouse_client::limit::Limit;
use pilothouse_component_base::flags::Flags;

use crate::certificates::request;

/// What the controller manager was asked to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// How many requests each controller may make; any number where no flag says.
    pub limit: Option<Limit>,
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// `--controllers`: `*`, names, `-names`.
    pub controllers: Vec<String>,
    /// `--feature-gates`.
    pub feature_gates: BTreeMap<String, String>,
    /// Address of the HTTPS port.
    pub bind_address: IpAddr,
    /// HTTPS port, 0 for none.
    pub secure_port: u16,
    /// Address of the plain port.
    pub insecure_address: IpAddr,
    /// Plain port, 0 for none.
    pub insecure_port: u16,
    /// Serving certificate; self-signed where there is none.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    pub tls_private_key_file: Option<PathBuf>,
    /// Whether each controller acts as a service account of its own.
    pub use_service_account_credentials: bool,
    /// Whether to elect a leader.
    pub leader_elect: bool,
    /// Namespace of the lease.
    pub leader_elect_namespace: String,
    /// Name of the lease.
    pub leader_elect_name: String,
    /// How long others wait for a renewal.
    pub lease_duration: Duration,
    /// How long we try to renew.
    pub renew_deadline: Duration,
    /// Pause between tries.
    pub retry_period: Duration,
    /// CA bundle put into service-account token secrets and `kube-root-ca.crt`.
    pub root_ca_file: Option<PathBuf>,
    /// Key that signs service-account tokens.
    pub service_account_private_key_file: Option<PathBuf>,
    /// What signs certificate requests, by the signer's name: an authority's certificate and its key.
    pub cluster_signing: BTreeMap<&'static str, (PathBuf, PathBuf)>,
    /// How long signed certificates are valid.
    pub cluster_signing_duration: Duration,
    /// Whether nodes get a range of pod addresses.
    pub allocate_node_cidrs: bool,
    /// Range of pod addresses.
    pub cluster_cidrs: Vec<String>,
    /// Prefix length of a node's IPv4 range.
    pub node_cidr_mask_size: u8,
    /// Prefix length of a node's IPv6 range.
    pub node_cidr_mask_size_ipv6: u8,
    /// Ranges of service addresses, left out of the nodes' ranges.
    pub service_cluster_ip_ranges: Vec<String>,
    /// How often nodes are looked at.
    pub node_monitor_period: Duration,
    /// How long a node may be silent.
    pub node_monitor_grace_period: Duration,
    /// How long a new node may be silent.
    pub node_startup_grace_period: Duration,
    /// Whether the garbage collector runs.
    pub enable_garbage_collector: bool,
    /// Whether pods are evicted by taints.
    pub enable_taint_manager: bool,
    /// Nodes per second whose pods are evicted.
    pub node_eviction_rate: f64,
    /// The same where the zone is unhealthy.
    pub secondary_node_eviction_rate: f64,
    /// From which share of nodes that are not ready a zone counts as unhealthy.
    pub unhealthy_zone_threshold: f64,
    /// From how many nodes a zone counts as large.
    pub large_cluster_size_threshold: i64,
    /// How many ended pods may be kept before the oldest are removed; 0 for any number.
    pub terminated_pod_gc_threshold: i64,
    /// How often claims and volumes are looked at without a change.
    pub pv_resync_period: Duration,
    /// How often resource quotas are recomputed without a change.
    pub resource_quota_sync_period: Duration,
    /// How often horizontal pod autoscalers are looked at.
    pub hpa_sync_period: Duration,
    /// By how much a metric may differ from its target without a change.
    pub hpa_tolerance: f64,
    /// How long high recommendations hold back scaling down.
    pub hpa_downscale_stabilization: Duration,
    /// How long after a pod's start its CPU samples may be skipped.
    pub hpa_cpu_initialization_period: Duration,
    /// How soon after its start a pod that gets unready counts as never ready.
    pub hpa_initial_readiness_delay: Duration,
    /// Syncs side by side, by controller.
    pub concurrent: BTreeMap<&'static str, usize>,
    /// Where the local-path provisioner keeps volumes; `None` runs none.
    pub local_path_dir: Option<PathBuf>,
}

impl Config {
    /// Reads the flags. The error is one line that names the flag.
    pub fn from_flags(flags: &Flags) -> Result<Config, String> {
        let ip = |name: &str, default: IpAddr| match flags.opt(name) {
            None => Ok(default),
            Some(v) => v.parse().map_err(|e| format!("--{name}={v}: {e}")),
        };
        let port = |name: &str| {
            u16::try_from(flags.int(name)).map_err(|_| format!("--{name}={}: not a port", flags.string(name)))
        };
        let path = |name: &str| flags.opt(name).map(PathBuf::from);
        let mask = |names: &[&str], default: u8, max: u8| {
            for name in names {
                match flags.int(name) {
                    0 => {}
                    n => match u8::try_from(n) {
                        Ok(n) if n <= max => return Ok(n),
                        _ => return Err(format!("--{name}={n}: not a prefix length")),
                    },
                }
            }
            Ok(default)
        };
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (signing, older) = ("cluster-signing-duration", "experimental-cluster-signing-duration");
        let older_alone = flags.given(older) && !flags.given(signing);
        let signing = flags.duration(if older_alone { older } else { signing });
        let kubeconfig = match (path("kubeconfig"), flags.opt("master")) {
            (Some(k), _) => k,
            (None, Some(m)) => return Err(format!("--master={m}: a --kubeconfig is needed too")),
            (None, None) => return Err("--kubeconfig is required".into()),
        };
        let workers = |name: &str| usize::try_from(flags.int(name)).unwrap_or(1).clamp(1, 100);
        let concurrent = [
            ("deployment", "concurrent-deployment-syncs"),
            ("endpoint", "concurrent-endpoint-syncs"),
            ("endpointslice", "concurrent-service-endpoint-syncs"),
            ("garbagecollector", "concurrent-gc-syncs"),
            ("namespace", "concurrent-namespace-syncs"),
            ("replicaset", "concurrent-replicaset-syncs"),
            ("replicationcontroller", "concurrent-rc-syncs"),
            ("resourcequota", "concurrent-resource-quota-syncs"),
            ("serviceaccount-token", "concurrent-serviceaccount-token-syncs"),
            ("statefulset", "concurrent-statefulset-syncs"),
            ("ttl-after-finished", "concurrent-ttl-after-finished-syncs"),
        ];
        let config = Config {
            limit: Limit::from_flags(flags),
            kubeconfig,
            controllers: flags.strings("controllers"),
            feature_gates: flags.map("feature-gates"),
            bind_address: ip("bind-address", any)?,
            secure_port: port("secure-port")?,
            insecure_address: ip("address", any)?,
            insecure_port: port("port")?,
            tls_cert_file: path("tls-cert-file"),
            tls_private_key_file: path("tls-private-key-file"),
            use_service_account_credentials: flags.bool("use-service-account-credentials"),
            leader_elect: flags.bool("leader-elect"),
            leader_elect_namespace: flags.string("leader-elect-resource-namespace"),
            leader_elect_name: flags.string("leader-elect-resource-name"),
            lease_duration: flags.duration("leader-elect-lease-duration"),
            renew_deadline: flags.duration("leader-elect-renew-deadline"),
            retry_period: flags.duration("leader-elect-retry-period"),
            root_ca_file: path("root-ca-file"),
            service_account_private_key_file: path("service-account-private-key-file"),
            cluster_signing: signing_files(flags)?,
            cluster_signing_duration: signing,
            allocate_node_cidrs: flags.bool("allocate-node-cidrs"),
            cluster_cidrs: flags.strings("cluster-cidr"),
            node_cidr_mask_size: mask(&["node-cidr-mask-size-ipv4", "node-cidr-mask-size"], 24, 32)?,
            node_cidr_mask_size_ipv6: mask(&["node-cidr-mask-size-ipv6"], 64, 128)?,
            service_cluster_ip_ranges: flags.strings("service-cluster-ip-range"),
            node_monitor_period: flags.duration("node-monitor-period"),
            node_monitor_grace_period: flags.duration("node-monitor-grace-period"),
            node_startup_grace_period: flags.duration("node-startup-grace-period"),
            enable_garbage_collector: flags.bool("enable-garbage-collector"),
            enable_taint_manager: flags.bool("enable-taint-manager"),
            node_eviction_rate: flags.float("node-eviction-rate"),
            secondary_node_eviction_rate: flags.float("secondary-node-eviction-rate"),
            unhealthy_zone_threshold: flags.float("unhealthy-zone-threshold"),
            large_cluster_size_threshold: flags.int("large-cluster-size-threshold"),
            terminated_pod_gc_threshold: flags.int("terminated-pod-gc-threshold"),
            pv_resync_period: flags.duration("pvclaimbinder-sync-period"),
            resource_quota_sync_period: flags.duration("resource-quota-sync-period"),
            hpa_sync_period: flags.duration("horizontal-pod-autoscaler-sync-period"),
            hpa_tolerance: flags.float("horizontal-pod-autoscaler-tolerance"),
            hpa_downscale_stabilization: flags.duration("horizontal-pod-autoscaler-downscale-stabilization"),
            hpa_cpu_initialization_period: flags
                .duration("horizontal-pod-autoscaler-cpu-initialization-period"),
            hpa_initial_readiness_delay: flags.duration("horizontal-pod-autoscaler-initial-readiness-delay"),
            concurrent: concurrent.into_iter().map(|(c, f)| (c, workers(f))).collect(),
            local_path_dir: path("local-path-dir"),
        };
        let known: Vec<&str> = crate::controllers::ALL.iter().map(|c| c.name).collect();
        for name in &config.controllers {
            let bare = name.strip_prefix('-').unwrap_or(name);
            if bare != "*" && !known.contains(&bare) && !crate::controllers::NOT_HERE.contains(&bare) {
                return Err(format!("{bare:?} is not in the list of known controllers"));
            }
        }
        Ok(config)
    }

    /// Whether a controller is to run: named, or covered by `*` where it is on by default.
    pub fn enabled(&self, name: &str, on_by_default: bool) -> bool {
        let mut star = false;
        for c in &self.controllers {
            match c.strip_prefix('-') {
                Some(off) if off == name => return false,
                None if c == name => return true,
                None if c == "*" => star = true,
                _ => {}
            }
        }
        star && on_by_default
    }

    /// How many syncs of a controller run side by side.
    pub fn workers(&self, name: &str) -> usize {
        self.concurrent.get(name).copied().unwrap_or(5)
    }

    /// Whether a feature gate is on.
    pub fn feature(&self, name: &str, default: bool) -> bool {
        self.feature_gates.get(name).map_or(default, |v| v.eq_ignore_ascii_case("true"))
    }
}

/// The signers and the part of their flags' names.
const SIGNERS: [(&str, &str); 4] = [
    (request::KUBELET_SERVING, "kubelet-serving"),
    (request::KUBELET_CLIENT, "kubelet-client"),
    (request::CLIENT, "kube-apiserver-client"),
    (request::LEGACY_UNKNOWN, "legacy-unknown"),
];

/// One authority for all signers, or one for each of some.
fn signing_files(flags: &Flags) -> Result<BTreeMap<&'static str, (PathBuf, PathBuf)>, String> {
    let mut files = BTreeMap::new();
    for (signer, part) in SIGNERS {
        let [cert, key] = ["cert", "key"].map(|what| format!("cluster-signing-{part}-{what}-file"));
        match (flags.opt(&cert), flags.opt(&key)) {
            (None, None) => {}
            (Some(cert), Some(key)) => {
                files.insert(signer, (cert.into(), key.into()));
            }
            _ => return Err(format!("--{cert} and --{key} must be specified together")),
        }
    }
    let all = flags.opt("cluster-signing-cert-file").zip(flags.opt("cluster-signing-key-file"));
    match all {
        Some(_) if !files.is_empty() => {
            Err("cannot specify default and per controller certs at the same time".into())
        }
        Some((cert, key)) => {
            Ok(SIGNERS.map(|(s, _)| (s, (PathBuf::from(&cert), PathBuf::from(&key)))).into())
        }
        None => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_component_base::flags;

    fn config(args: &[&str]) -> Result<Config, String> {
        let mut all = vec!["--kubeconfig=/k"];
        all.extend(args);
        Config::from_flags(&Flags::parse(&flags::table(crate::FLAGS), all).unwrap())
    }

    #[test]
    fn chooses_controllers() {
        let c = config(&["--controllers=*,-job,bootstrapsigner"]).unwrap();
        assert!(c.enabled("deployment", true));
        assert!(!c.enabled("job", true));
        assert!(c.enabled("bootstrapsigner", false));
        assert!(!c.enabled("tokencleaner", false));
        assert!(config(&["--controllers=nope"]).unwrap_err().contains("nope"));
    }

    #[test]
    fn one_authority_for_all_signers_or_one_for_each() {
        assert!(config(&[]).unwrap().cluster_signing.is_empty());
        let all = ["--cluster-signing-cert-file=/c", "--cluster-signing-key-file=/k"];
        let c = config(&all).unwrap();
        assert_eq!(c.cluster_signing.len(), 4);
        assert_eq!(c.cluster_signing[request::CLIENT], ("/c".into(), "/k".into()));
        let serving = "--cluster-signing-kubelet-serving-cert-file=/s";
        assert!(config(&[serving]).unwrap_err().contains("kubelet-serving-key-file"));
        let both = [serving, "--cluster-signing-kubelet-serving-key-file=/sk"];
        let c = config(&both).unwrap();
        assert_eq!(c.cluster_signing.keys().collect::<Vec<_>>(), [&request::KUBELET_SERVING]);
        let e = config(&[all, both].concat()).unwrap_err();
        assert_eq!(e, "cannot specify default and per controller certs at the same time");
    }

    #[test]
    fn requests_are_limited_where_asked() {
        assert_eq!(config(&[]).unwrap().limit, None);
        let limit = config(&["--kube-api-qps=200", "--kube-api-burst=300"]).unwrap().limit;
        assert_eq!(limit, Some(Limit { qps: 200.0, burst: 300 }));
        assert_eq!(config(&["--kube-api-qps=5"]).unwrap().limit, Some(Limit { qps: 5.0, burst: 30 }));
        assert_eq!(config(&["--kube-api-qps=-1"]).unwrap().limit, None);
    }

    #[test]
    fn has_the_defaults_of_the_original() {
        let c = config(&[]).unwrap();
        assert_eq!(c.node_monitor_grace_period, Duration::from_secs(40));
        assert_eq!(c.terminated_pod_gc_threshold, 12500);
        assert_eq!(c.cluster_signing_duration, Duration::from_secs(31_536_000));
        assert_eq!((c.insecure_port, c.secure_port), (10252, 10257));
        assert!(c.leader_elect);
        assert_eq!(c.leader_elect_name, "kube-controller-manager");
    }
}
