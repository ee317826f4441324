//! What the kubelet is told: flags and `KubeletConfiguration`, as typed values.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use pilothouse_component_base::flags::Flags;

use crate::configuration::KubeletConfiguration;

/// How cgroups are named and made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Plain folders: `/kubepods/burstable/pod…`.
    Cgroupfs,
    /// systemd's slices: `/kubepods.slice/kubepods-burstable.slice/…`.
    Systemd,
}

/// The kubelet's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// `--node-ip`; found out where it is not given.
    pub node_ip: Option<IpAddr>,
    /// `--kubeconfig`: the kubelet's own, written by the bootstrap where there is none.
    pub kubeconfig: Option<PathBuf>,
    /// `--bootstrap-kubeconfig`: good for asking for a certificate only.
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Where certificates are kept.
    pub cert_dir: PathBuf,
    /// `/var/lib/kubelet`.
    pub root_dir: PathBuf,
    /// Where the logs of pods are: `/var/log/pods`.
    pub pod_logs: PathBuf,
    /// Where links to the logs of containers are: `/var/log/containers`.
    pub container_links: PathBuf,
    /// Path of the container runtime's socket.
    pub runtime_endpoint: String,
    /// Path of the image service's socket.
    pub image_endpoint: String,
    /// Image of the sandbox; never collected.
    pub infra_image: String,
    /// `--node-labels`.
    pub node_labels: BTreeMap<String, String>,
    /// `--register-with-taints`.
    pub taints: Vec<Taint>,
    /// Whether the kubelet makes its Node.
    pub register_node: bool,
    /// Whether that Node is schedulable.
    pub register_schedulable: bool,
    /// Address of the kubelet's server.
    pub address: IpAddr,
    /// Port of the kubelet's server.
    pub port: u16,
    /// Port without authentication; 0 for none.
    pub read_only_port: u16,
    /// Address of the health port.
    pub healthz_address: IpAddr,
    /// Health port; 0 for none.
    pub healthz_port: u16,
    /// Serving certificate.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    pub tls_private_key_file: Option<PathBuf>,
    /// Folder (or file) of static pods.
    pub static_pod_path: Option<PathBuf>,
    /// How often it is looked at, besides being watched.
    pub file_check_frequency: Duration,
    /// How often each pod is synced without a reason.
    pub sync_frequency: Duration,
    /// Name servers of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// The node's own resolv.conf; none where empty.
    pub resolv_conf: String,
    /// Most pods the node takes.
    pub max_pods: i64,
    /// Most pods per processor; 0 for no such limit.
    pub pods_per_core: i64,
    /// See [`CgroupDriver`].
    pub cgroup_driver: CgroupDriver,
    /// The cgroup under which `kubepods` lies; `/` by default.
    pub cgroup_root: String,
    /// Whether pods have cgroups.
    pub cgroups_per_qos: bool,
    /// Whether CPU limits are enforced.
    pub cpu_cfs_quota: bool,
    /// The period of CPU limits.
    pub cpu_cfs_quota_period: Duration,
    /// `pods`, `system-reserved`, `kube-reserved`.
    pub enforce_node_allocatable: Vec<String>,
    /// Kept for Kubernetes' own daemons.
    pub kube_reserved: BTreeMap<String, String>,
    /// Kept for the system's daemons.
    pub system_reserved: BTreeMap<String, String>,
    /// Signals and thresholds at which pods are evicted at once.
    pub eviction_hard: BTreeMap<String, String>,
    /// Image pulls a second; 0 for no limit.
    pub registry_qps: i64,
    /// Burst of image pulls.
    pub registry_burst: i64,
    /// One pull at a time.
    pub serialize_image_pulls: bool,
    /// Longest request to the runtime.
    pub runtime_request_timeout: Duration,
    /// Patterns of sysctls that pods may set though they are not safe.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Size of a log that is rotated, as a quantity.
    pub container_log_max_size: String,
    /// How many files a container's log has at most.
    pub container_log_max_files: i64,
    /// Whether to end where the machine has swap.
    pub fail_swap_on: bool,
    /// How often the node's status is worked out.
    pub node_status_update_frequency: Duration,
    /// How often it is written though nothing changed.
    pub node_status_report_frequency: Duration,
    /// The lease's length.
    pub node_lease_duration_seconds: i32,
    /// Most images in the node's status; -1 for all.
    pub node_status_max_images: i64,
    /// Whether the client certificate is renewed.
    pub rotate_certificates: bool,
    /// Whether the serving certificate is asked for at the API server.
    pub server_tls_bootstrap: bool,
    /// `spec.providerID`.
    pub provider_id: String,
    /// Where the profiles of `seccompProfile: Localhost` are.
    pub seccomp_root: PathBuf,
    /// `volumes.kubernetes.io/controller-managed-attach-detach`.
    pub controller_attach_detach: bool,
    /// All of `KubeletConfiguration`, for `/configz` and for the parts that read their own fields.
    pub kubelet: KubeletConfiguration,
}

impl Config {
    /// From the command line. Texts name the flag or the file.
    pub fn from_flags(flags: &Flags) -> Result<Config, String> {
        let file = flags.opt("config").map(PathBuf::from);
        let mut k = KubeletConfiguration::load(file.as_deref(), flags)?;
        let report = match k.string("nodeStatusReportFrequency").as_str() {
            // Where the update frequency is set and this one is not, both are the same.
            "" if k.string("nodeStatusUpdateFrequency") != "10s" => {
                k.duration("nodeStatusUpdateFrequency")?
            }
            "" => Duration::from_secs(300),
            _ => k.duration("nodeStatusReportFrequency")?,
        };
        if k.string("nodeStatusReportFrequency").is_empty() {
            let text =
                if report.as_secs() == 300 { "5m0s".into() } else { k.string("nodeStatusUpdateFrequency") };
            k.set("nodeStatusReportFrequency", text.into());
        }
        let cert_dir = PathBuf::from(flags.string("cert-dir"));
        if k.string("tlsCertFile").is_empty() && !k.bool("serverTLSBootstrap") {
            k.set("tlsCertFile", cert_dir.join("kubelet.crt").display().to_string().into());
            k.set("tlsPrivateKeyFile", cert_dir.join("kubelet.key").display().to_string().into());
        }
        let path = |s: String| Some(s).filter(|s| !s.is_empty()).map(PathBuf::from);
        let address = |field: &str| {
            let text = k.string(field);
            text.trim()
                .parse::<IpAddr>()
                .map_err(|_| format!("invalid configuration: {field}: {text:?} is no IP address"))
        };
        let port = |field: &str| {
            u16::try_from(k.int(field)).map_err(|_| {
                format!(
                    "invalid configuration: {field} {} must be between 0 and 65535, inclusive",
                    k.int(field)
                )
            })
        };
        let driver = match k.string("cgroupDriver").as_str() {
            "cgroupfs" => CgroupDriver::Cgroupfs,
            "systemd" => CgroupDriver::Systemd,
            other => {
                return Err(format!(
                    "invalid configuration: cgroupDriver {other:?} must be cgroupfs or systemd"
                ));
            }
        };
        let node_name = match flags.opt("hostname-override") {
            Some(name) => name,
            None => hostname()?,
        };
        let node_name = node_name.trim().to_lowercase();
        if node_name.is_empty() {
            return Err("empty hostname is invalid".into());
        }
        let node_ip = match flags.opt("node-ip") {
            Some(ip) => Some(ip.parse().map_err(|_| format!("bad --node-ip {ip:?}: it is no IP address"))?),
            None => None,
        };
        for f in
            ["container-runtime", "network-plugin", "cni-conf-dir", "cni-bin-dir", "cni-cache-dir", "help"]
        {
            // They concern dockershim: with CRI, the runtime has its own configuration.
            flags.given(f);
        }
        let runtime_endpoint = runtime_endpoint(flags);
        Ok(Config {
            node_name,
            node_ip,
            kubeconfig: flags.opt("kubeconfig").map(PathBuf::from),
            bootstrap_kubeconfig: flags
                .opt("bootstrap-kubeconfig")
                .or_else(|| flags.opt("experimental-bootstrap-kubeconfig"))
                .map(PathBuf::from),
            root_dir: PathBuf::from(flags.string("root-dir")),
            pod_logs: PathBuf::from("/var/log/pods"),
            container_links: PathBuf::from("/var/log/containers"),
            image_endpoint: flags
                .opt("image-service-endpoint")
                .map(|e| socket_path(&e))
                .unwrap_or_else(|| runtime_endpoint.clone()),
            runtime_endpoint,
            infra_image: flags.string("pod-infra-container-image"),
            node_labels: flags.map("node-labels"),
            taints: taints(&flags.strings("register-with-taints"))?,
            register_node: flags.bool("register-node"),
            register_schedulable: flags.bool("register-schedulable"),
            address: address("address")?,
            port: port("port")?,
            read_only_port: port("readOnlyPort")?,
            healthz_address: address("healthzBindAddress")?,
            healthz_port: port("healthzPort")?,
            tls_cert_file: path(k.string("tlsCertFile")),
            tls_private_key_file: path(k.string("tlsPrivateKeyFile")),
            static_pod_path: path(k.string("staticPodPath")),
            file_check_frequency: k.duration("fileCheckFrequency")?,
            sync_frequency: k.duration("syncFrequency")?,
            cluster_dns: k
                .strings("clusterDNS")
                .iter()
                .map(|s| {
                    s.parse()
                        .map_err(|_| format!("invalid configuration: clusterDNS: {s:?} is no IP address"))
                })
                .collect::<Result<_, _>>()?,
            // The posts write it with blanks or a dot at its end.
            cluster_domain: k.string("clusterDomain").trim().trim_end_matches('.').to_string(),
            resolv_conf: k.string("resolvConf"),
            max_pods: k.int("maxPods"),
            pods_per_core: k.int("podsPerCore"),
            cgroup_driver: driver,
            cgroup_root: Some(k.string("cgroupRoot")).filter(|s| !s.is_empty()).unwrap_or_else(|| "/".into()),
            cgroups_per_qos: k.bool("cgroupsPerQOS"),
            cpu_cfs_quota: k.bool("cpuCFSQuota"),
            cpu_cfs_quota_period: k.duration("cpuCFSQuotaPeriod")?,
            enforce_node_allocatable: k.strings("enforceNodeAllocatable"),
            kube_reserved: k.map("kubeReserved"),
            system_reserved: k.map("systemReserved"),
            eviction_hard: k.map("evictionHard"),
            registry_qps: k.int("registryPullQPS"),
            registry_burst: k.int("registryBurst"),
            serialize_image_pulls: k.bool("serializeImagePulls"),
            runtime_request_timeout: k.duration("runtimeRequestTimeout")?,
            allowed_unsafe_sysctls: k.strings("allowedUnsafeSysctls"),
            container_log_max_size: k.string("containerLogMaxSize"),
            container_log_max_files: k.int("containerLogMaxFiles"),
            fail_swap_on: k.bool("failSwapOn"),
            node_status_update_frequency: k.duration("nodeStatusUpdateFrequency")?,
            node_status_report_frequency: report,
            node_lease_duration_seconds: i32::try_from(k.int("nodeLeaseDurationSeconds")).unwrap_or(40),
            node_status_max_images: k.int("nodeStatusMaxImages"),
            rotate_certificates: k.bool("rotateCertificates"),
            server_tls_bootstrap: k.bool("serverTLSBootstrap"),
            provider_id: k.string("providerID"),
            seccomp_root: PathBuf::from(flags.string("seccomp-profile-root")),
            controller_attach_detach: k.bool("enableControllerAttachDetach"),
            cert_dir,
            kubelet: k,
        })
    }

    /// The folder of a pod: `<root>/pods/<uid>`.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    /// The folder of a pod's volumes.
    pub fn volumes_dir(&self, uid: &str) -> PathBuf {
        self.pod_dir(uid).join("volumes")
    }

    /// The folder of a container's own files (its termination message).
    pub fn container_dir(&self, uid: &str, container: &str) -> PathBuf {
        self.pod_dir(uid).join("containers").join(container)
    }

    /// The folder of a pod's logs: `/var/log/pods/<namespace>_<name>_<uid>`.
    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.pod_logs.join(format!("{namespace}_{name}_{uid}"))
    }

    /// A container's log, by the number of its restart.
    pub fn container_log(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        container: &str,
        restarts: u32,
    ) -> PathBuf {
        self.pod_log_dir(namespace, name, uid).join(container).join(format!("{restarts}.log"))
    }

    /// The link in `/var/log/containers` that log collectors read. Names are cut as the kubelet has always cut them.
    pub fn log_link(&self, namespace: &str, name: &str, container: &str, id: &str) -> PathBuf {
        let stem: String = format!("{name}_{namespace}_{container}-{id}").chars().take(255 - 4).collect();
        self.container_links.join(format!("{stem}.log"))
    }
}

fn runtime_endpoint(flags: &Flags) -> String {
    let given = flags.given("container-runtime-endpoint");
    let endpoint = socket_path(&flags.string("container-runtime-endpoint"));
    if given {
        return endpoint;
    }
    // v1.20's default is dockershim, which lives in the kubelet itself. Here the runtime is always CRI: take the
    // first well-known socket that is there.
    ["/run/pilothouse/containerd/containerd.sock", "/run/containerd/containerd.sock", "/run/crio/crio.sock"]
        .into_iter()
        .find(|p| std::path::Path::new(p).exists())
        .unwrap_or("/run/containerd/containerd.sock")
        .to_string()
}

/// The path of `unix:///path`, `unix:/path` or `/path`.
fn socket_path(endpoint: &str) -> String {
    endpoint
        .strip_prefix("unix://")
        .or_else(|| endpoint.strip_prefix("unix:"))
        .unwrap_or(endpoint)
        .to_string()
}

fn hostname() -> Result<String, String> {
    nix::unistd::gethostname()
        .map_err(|e| format!("couldn't determine hostname: {e}"))?
        .into_string()
        .map_err(|_| "couldn't determine hostname: it is not UTF-8".into())
}

fn taints(texts: &[String]) -> Result<Vec<Taint>, String> {
    texts
        .iter()
        .map(|t| {
            let bad = || format!("invalid taint spec: {t}");
            let (kv, effect) = t.rsplit_once(':').ok_or_else(bad)?;
            if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
                return Err(format!("invalid taint effect: {effect}, unsupported taint effect"));
            }
            let (key, value) = kv.split_once('=').map_or((kv, None), |(k, v)| (k, Some(v.to_string())));
            Ok(Taint {
                key: key.to_string(),
                value: value.filter(|v| !v.is_empty()),
                effect: effect.to_string(),
                time_added: None,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_component_base::flags::table;

    fn config(args: &[&str]) -> Result<Config, String> {
        Config::from_flags(&Flags::parse(&table(crate::FLAGS), args.iter().copied()).unwrap())
    }

    #[test]
    fn reads_the_flags_of_an_install() {
        let c = config(&[
            "--hostname-override=Node01",
            "--node-ip=20.0.0.103",
            "--container-runtime=remote",
            "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
            "--kubeconfig=/k",
            "--cert-dir=/opt/kubernetes/ssl",
            "--register-with-taints=a=b:NoSchedule,c:NoExecute",
            "--node-labels=x=y",
            "--cluster-domain=cluster.local.",
            "--cgroup-driver=systemd",
        ])
        .unwrap();
        assert_eq!(c.node_name, "node01");
        assert_eq!(c.runtime_endpoint, "/run/containerd/containerd.sock");
        assert_eq!(c.taints.len(), 2);
        assert_eq!(c.taints[0].value.as_deref(), Some("b"));
        assert_eq!(c.cluster_domain, "cluster.local");
        assert_eq!(c.cgroup_driver, CgroupDriver::Systemd);
        assert_eq!(c.tls_cert_file, Some("/opt/kubernetes/ssl/kubelet.crt".into()));
        assert_eq!(c.container_log("n", "p", "u", "c", 2), PathBuf::from("/var/log/pods/n_p_u/c/2.log"));
        assert_eq!(c.log_link("n", "p", "c", "id"), PathBuf::from("/var/log/containers/p_n_c-id.log"));
    }

    #[test]
    fn bad_values_are_named() {
        assert!(config(&["--node-ip=x"]).unwrap_err().contains("--node-ip"));
        assert!(config(&["--hostname-override=n", "--address=x"]).unwrap_err().contains("address"));
        assert!(
            config(&["--hostname-override=n", "--cgroup-driver=x"]).unwrap_err().contains("cgroupDriver")
        );
        assert!(config(&["--register-with-taints=a=b"]).unwrap_err().contains("taint"));
    }
}
