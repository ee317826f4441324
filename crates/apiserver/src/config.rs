//! The API server's configuration, from its flags.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use pilothouse_apimachinery::version::Release;
use pilothouse_component_base::flags::Flags;

use crate::runtime_config::RuntimeConfig;

/// Where objects are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// Embedded, below `--data-dir`.
    Embedded(PathBuf),
    /// etcd.
    Etcd {
        /// URLs.
        servers: Vec<String>,
        /// CA file.
        ca: Option<PathBuf>,
        /// Client certificate file.
        cert: Option<PathBuf>,
        /// Client key file.
        key: Option<PathBuf>,
    },
}

/// A certificate with its key, and the names it is for (empty: those in the certificate).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// PEM file.
    pub cert: PathBuf,
    /// PEM file.
    pub key: PathBuf,
    /// SNI names.
    pub names: Vec<String>,
}

/// How to reach kubelets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubelet {
    /// CA file for kubelets' serving certificates; none means they are not verified.
    pub ca: Option<PathBuf>,
    /// Client certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Which of a node's addresses to use, best first.
    pub address_types: Vec<String>,
    /// Time limit of a connection attempt.
    pub timeout: Duration,
}

/// Authentication by OpenID Connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oidc {
    /// Issuer URL.
    pub issuer_url: String,
    /// Client.
    pub client_id: String,
    /// CA file.
    pub ca: Option<PathBuf>,
    /// Claim with the name.
    pub username_claim: String,
    /// Prefix of names.
    pub username_prefix: String,
    /// Claim with the groups.
    pub groups_claim: String,
    /// Prefix of groups.
    pub groups_prefix: String,
    /// Claims that must be there.
    pub required_claims: BTreeMap<String, String>,
    /// Algorithms.
    pub signing_algs: Vec<String>,
}

/// Authentication by a proxy in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHeader {
    /// CA of the proxies' certificates.
    pub client_ca: PathBuf,
    /// Common names of proxies; empty for all.
    pub allowed_names: Vec<String>,
    /// Headers with the user.
    pub username_headers: Vec<String>,
    /// Headers with groups.
    pub group_headers: Vec<String>,
    /// Prefixes of headers with the rest.
    pub extra_prefixes: Vec<String>,
}

/// Where the audit log goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditConfig {
    /// Policy file.
    pub policy_file: Option<PathBuf>,
    /// Log file; `-` is standard output.
    pub log_path: Option<String>,
    /// `json` or `legacy`.
    pub log_format: String,
    /// Days to keep old files.
    pub max_age: i64,
    /// Number of old files.
    pub max_backup: i64,
    /// Megabytes of a file.
    pub max_size: i64,
    /// kubeconfig of a webhook.
    pub webhook_config: Option<PathBuf>,
}

/// The API server's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Release served.
    pub release: Release,
    /// Where objects are.
    pub backend: Backend,
    /// How long etcd may take to be reached at start; zero for as long as it takes.
    pub etcd_startup_timeout: Duration,
    /// First part of every key, `/registry`.
    pub etcd_prefix: String,
    /// Whether built-in kinds are stored as protobuf; JSON otherwise.
    pub protobuf_storage: bool,
    /// What of the API is served.
    pub runtime: RuntimeConfig,
    /// How resources are encrypted in the store.
    pub encryption_config: Option<PathBuf>,
    /// `AdmissionConfiguration`.
    pub admission_config: Option<PathBuf>,
    /// Whether requests are queued by priority and fairness, instead of counted by class.
    pub fairness: bool,
    /// How often history is compacted; zero is never.
    pub compaction_interval: Duration,
    /// Where generated keys are kept.
    pub data_dir: PathBuf,
    /// Address to listen on.
    pub bind: SocketAddr,
    /// Address that others reach this server at.
    pub advertise_address: IpAddr,
    /// Directory for a self-signed certificate.
    pub cert_dir: PathBuf,
    /// Serving certificate; none means a self-signed one in `cert_dir`.
    pub serving: Option<KeyPair>,
    /// Serving certificates by name.
    pub sni: Vec<KeyPair>,
    /// Lowest TLS version: 12 or 13.
    pub tls_min_version: u8,
    /// CA of client certificates.
    pub client_ca_file: Option<PathBuf>,
    /// `--token-auth-file`.
    pub token_auth_file: Option<PathBuf>,
    /// `--basic-auth-file`.
    pub anonymous_auth: bool,
    /// Bootstrap tokens in Secrets of `kube-system`.
    pub bootstrap_token_auth: bool,
    /// OpenID Connect.
    pub oidc: Option<Oidc>,
    /// Proxy in front.
    pub request_header: Option<RequestHeader>,
    /// kubeconfig of the token review webhook.
    pub token_webhook: Option<PathBuf>,
    /// How long the webhook's answers are kept.
    pub token_webhook_ttl: Duration,
    /// Keys that verify service account tokens.
    pub service_account_key_files: Vec<PathBuf>,
    /// Key that signs them.
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Issuer.
    pub service_account_issuer: String,
    /// Where the issuer's keys are, for OpenID discovery; empty for this server.
    pub service_account_jwks_uri: String,
    /// Audiences of this server; the issuer where none are given.
    pub api_audiences: Vec<String>,
    /// Whether tokens of deleted accounts are refused.
    pub service_account_lookup: bool,
    /// Longest life of a token; zero for no limit.
    pub service_account_max_expiration: Duration,
    /// Whether projected tokens live a year.
    pub service_account_extend_expiration: bool,
    /// Modes in order: `RBAC`, `Node`, `AlwaysAllow`, `AlwaysDeny`, `ABAC`, `Webhook`.
    pub authorization_modes: Vec<String>,
    /// ABAC policy file.
    pub authorization_policy_file: Option<PathBuf>,
    /// kubeconfig of the access review webhook.
    pub authorization_webhook: Option<PathBuf>,
    /// How long its yes is kept.
    pub authorization_webhook_allow_ttl: Duration,
    /// How long its no is kept.
    pub authorization_webhook_deny_ttl: Duration,
    /// Plug-ins switched on beside the default ones.
    pub enable_admission: Vec<String>,
    /// Plug-ins switched off.
    pub disable_admission: Vec<String>,
    /// Seconds that pods tolerate `not-ready`.
    pub not_ready_toleration: i64,
    /// Seconds that pods tolerate `unreachable`.
    pub unreachable_toleration: i64,
    /// Privileged containers.
    pub allow_privileged: bool,
    /// Service addresses, one or two ranges.
    pub service_cluster_ip_ranges: Vec<IpNet>,
    /// First and last node port.
    pub service_node_ports: (u16, u16),
    /// Node port of the `kubernetes` service; 0 for none.
    pub kubernetes_service_node_port: u16,
    /// `lease`, `master-count`, `none`.
    pub endpoint_reconciler: String,
    /// Certificate and key by which extension API servers know this server.
    pub proxy_client: Option<(PathBuf, PathBuf)>,
    /// Kubelets.
    pub kubelet: Kubelet,
    /// Audit log.
    pub audit: AuditConfig,
    /// Reads at the same time; 0 for no limit.
    pub max_requests: usize,
    /// Writes at the same time; 0 for no limit.
    pub max_mutating_requests: usize,
    /// Time limit of ordinary requests.
    pub request_timeout: Duration,
    /// Shortest time limit of watches.
    pub min_request_timeout: Duration,
    /// Life of events.
    pub event_ttl: Duration,
    /// Time between a stop and the listener's end.
    pub shutdown_delay: Duration,
    /// `--feature-gates`.
    pub feature_gates: BTreeMap<String, String>,
    /// Name for URLs.
    pub external_hostname: String,
    /// HTTP/2 streams of a connection; 0 for 250.
    pub max_streams: u32,
}

impl Config {
    /// Reads the flags. Errors name the flag.
    pub fn from_flags(flags: &Flags) -> Result<Config, String> {
        let path = |name: &str| flags.opt(name).map(PathBuf::from);
        let servers = flags.strings("etcd-servers");
        let data_dir = path("data-dir").unwrap_or_else(|| PathBuf::from("/var/lib/pilothouse"));
        let backend = match flags.string("storage-backend").as_str() {
            "embedded" => Backend::Embedded(data_dir.join("store")),
            "" | "etcd3" if !servers.is_empty() => Backend::Etcd {
                servers,
                ca: path("etcd-cafile"),
                cert: path("etcd-certfile"),
                key: path("etcd-keyfile"),
            },
            "" | "etcd3" => return Err("--etcd-servers must be specified".into()),
            other => {
                return Err(format!(
                    "--storage-backend invalid, allowed values: etcd3, embedded. If not specified, it will default to 'etcd3': got {other:?}"
                ));
            }
        };
        let bind_ip = ip(flags, "bind-address")?.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let secure_port = port(flags, "secure-port")?;
        let advertise_address = match ip(flags, "advertise-address")? {
            Some(ip) => ip,
            None if bind_ip.is_unspecified() => host_address(),
            None => bind_ip,
        };
        // As in v1.20: the port without TLS is no more, and only its absence may be asked for.
        for name in ["insecure-port", "port"] {
            match flags.int(name) {
                0 => {}
                n => return Err(format!("invalid port value {n}: only zero is allowed")),
            }
        }
        let serving = pair(flags, "tls-cert-file", "tls-private-key-file")?.map(|(cert, key)| KeyPair {
            cert,
            key,
            names: Vec::new(),
        });
        let sni = sni(&flags.string("tls-sni-cert-key"))?;
        let tls_min_version = match flags.string("tls-min-version").as_str() {
            "" | "VersionTLS10" | "VersionTLS11" | "VersionTLS12" => 12,
            "VersionTLS13" => 13,
            other => return Err(format!("--tls-min-version: unknown tls version {other:?}")),
        };
        flags.given("tls-cipher-suites");
        let oidc = flags.opt("oidc-issuer-url").map(|issuer_url| Oidc {
            issuer_url,
            client_id: flags.string("oidc-client-id"),
            ca: path("oidc-ca-file"),
            username_claim: unquoted(flags, "oidc-username-claim"),
            username_prefix: flags.string("oidc-username-prefix"),
            groups_claim: flags.string("oidc-groups-claim"),
            groups_prefix: flags.string("oidc-groups-prefix"),
            required_claims: flags.map("oidc-required-claim"),
            signing_algs: flags.strings("oidc-signing-algs"),
        });
        if oidc.as_ref().is_some_and(|o| o.client_id.is_empty()) {
            return Err("oidc-issuer-url and oidc-client-id should be specified together".into());
        }
        let request_header = path("requestheader-client-ca-file").map(|client_ca| RequestHeader {
            client_ca,
            allowed_names: flags.strings("requestheader-allowed-names"),
            username_headers: flags.strings("requestheader-username-headers"),
            group_headers: flags.strings("requestheader-group-headers"),
            extra_prefixes: flags.strings("requestheader-extra-headers-prefix"),
        });
        let authorization_modes = flags.strings("authorization-mode");
        for mode in &authorization_modes {
            if !["AlwaysAllow", "AlwaysDeny", "ABAC", "Webhook", "RBAC", "Node"].contains(&mode.as_str()) {
                return Err(format!("authorization-mode {mode:?} is not a valid mode"));
            }
        }
        if authorization_modes.iter().any(|m| m == "ABAC") && flags.opt("authorization-policy-file").is_none()
        {
            return Err("authorization-mode ABAC's authorization policy file not passed".into());
        }
        if authorization_modes.iter().any(|m| m == "Webhook")
            && flags.opt("authorization-webhook-config-file").is_none()
        {
            return Err("authorization-mode Webhook's authorization config file not passed".into());
        }
        let mut service_cluster_ip_ranges = Vec::new();
        for range in flags.strings("service-cluster-ip-range") {
            service_cluster_ip_ranges.push(
                range
                    .parse::<IpNet>()
                    .map_err(|_| format!("service-cluster-ip-range: invalid CIDR address: {range}"))?
                    .trunc(),
            );
        }
        if service_cluster_ip_ranges.is_empty() {
            service_cluster_ip_ranges
                .push(IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 24)));
        }
        if service_cluster_ip_ranges.len() > 2 {
            return Err("service-cluster-ip-range: too many cidrs, at most two are allowed".into());
        }
        let node_ports = flags.string("service-node-port-range");
        let service_node_ports = port_range(&node_ports).ok_or_else(|| {
            format!("invalid argument {node_ports:?} for \"--service-node-port-range\" flag")
        })?;
        let client = pair(flags, "kubelet-client-certificate", "kubelet-client-key")?;
        flags.given("kubelet-https");
        let issuer = flags.string("service-account-issuer");
        let service_account_issuer = if issuer.is_empty() {
            "https://kubernetes.default.svc.cluster.local".to_string()
        } else {
            issuer
        };
        let mut api_audiences = flags.strings("api-audiences");
        if api_audiences.is_empty() {
            api_audiences.push(service_account_issuer.clone());
        }
        // Services are always reached at the pods behind them, which is what this asks for.
        flags.bool("enable-aggregator-routing");
        let release = Release::from_flag(&flags.string("emulated-version"))?;
        Ok(Config {
            release,
            backend,
            etcd_startup_timeout: flags.duration("etcd-startup-timeout"),
            etcd_prefix: unquoted(flags, "etcd-prefix"),
            protobuf_storage: protobuf_storage(flags)?,
            runtime: RuntimeConfig::parse(&flags.map("runtime-config"), release)?,
            encryption_config: path("encryption-provider-config"),
            admission_config: path("admission-control-config-file"),
            fairness: flags.bool("enable-priority-and-fairness")
                && flags.map("feature-gates").get("APIPriorityAndFairness").is_none_or(|v| v != "false"),
            compaction_interval: flags.duration("etcd-compaction-interval"),
            data_dir,
            proxy_client: path("proxy-client-cert-file").zip(path("proxy-client-key-file")),
            bind: SocketAddr::new(bind_ip, secure_port),
            advertise_address,
            cert_dir: PathBuf::from(unquoted(flags, "cert-dir")),
            serving,
            sni,
            tls_min_version,
            client_ca_file: path("client-ca-file"),
            token_auth_file: path("token-auth-file"),
            anonymous_auth: flags.bool("anonymous-auth"),
            bootstrap_token_auth: flags.bool("enable-bootstrap-token-auth"),
            oidc,
            request_header,
            token_webhook: path("authentication-token-webhook-config-file"),
            token_webhook_ttl: flags.duration("authentication-token-webhook-cache-ttl"),
            service_account_key_files: flags
                .strings("service-account-key-file")
                .into_iter()
                .map(PathBuf::from)
                .collect(),
            service_account_signing_key_file: path("service-account-signing-key-file"),
            service_account_issuer,
            service_account_jwks_uri: flags.string("service-account-jwks-uri"),
            api_audiences,
            service_account_lookup: flags.bool("service-account-lookup"),
            service_account_max_expiration: flags.duration("service-account-max-token-expiration"),
            service_account_extend_expiration: flags.bool("service-account-extend-token-expiration"),
            authorization_modes,
            authorization_policy_file: path("authorization-policy-file"),
            authorization_webhook: path("authorization-webhook-config-file"),
            authorization_webhook_allow_ttl: flags.duration("authorization-webhook-cache-authorized-ttl"),
            authorization_webhook_deny_ttl: flags.duration("authorization-webhook-cache-unauthorized-ttl"),
            enable_admission: [flags.strings("enable-admission-plugins"), flags.strings("admission-control")]
                .concat(),
            disable_admission: flags.strings("disable-admission-plugins"),
            not_ready_toleration: flags.int("default-not-ready-toleration-seconds"),
            unreachable_toleration: flags.int("default-unreachable-toleration-seconds"),
            allow_privileged: flags.bool("allow-privileged"),
            service_cluster_ip_ranges,
            service_node_ports,
            kubernetes_service_node_port: port(flags, "kubernetes-service-node-port")?,
            endpoint_reconciler: unquoted(flags, "endpoint-reconciler-type"),
            kubelet: Kubelet {
                ca: path("kubelet-certificate-authority"),
                client,
                address_types: flags.strings("kubelet-preferred-address-types"),
                timeout: flags.duration("kubelet-timeout"),
            },
            audit: AuditConfig {
                policy_file: path("audit-policy-file"),
                log_path: flags.opt("audit-log-path"),
                log_format: unquoted(flags, "audit-log-format"),
                max_age: flags.int("audit-log-maxage"),
                max_backup: flags.int("audit-log-maxbackup"),
                max_size: flags.int("audit-log-maxsize"),
                webhook_config: path("audit-webhook-config-file"),
            },
            max_requests: usize::try_from(flags.int("max-requests-inflight")).unwrap_or(0),
            max_mutating_requests: usize::try_from(flags.int("max-mutating-requests-inflight")).unwrap_or(0),
            request_timeout: flags.duration("request-timeout"),
            min_request_timeout: Duration::from_secs(
                u64::try_from(flags.int("min-request-timeout")).unwrap_or(0),
            ),
            event_ttl: flags.duration("event-ttl"),
            shutdown_delay: flags.duration("shutdown-delay-duration"),
            feature_gates: flags.map("feature-gates"),
            external_hostname: flags.string("external-hostname"),
            max_streams: u32::try_from(flags.int("http2-max-streams-per-connection")).unwrap_or(0),
        })
    }
}

/// Whether `--storage-media-type` asks for protobuf. Without the flag it is JSON, which Kubernetes reads as well and
/// which is served from memory as it is stored.
fn protobuf_storage(flags: &Flags) -> Result<bool, String> {
    let given = flags.given("storage-media-type");
    match flags.string("storage-media-type").trim_matches('"') {
        "application/vnd.kubernetes.protobuf" => Ok(given),
        "application/json" | "" => Ok(false),
        other => Err(format!("unable to find serializer for {other:?}")),
    }
}

/// Some defaults stand in the flag table as `--help` prints them, in quotes.
fn unquoted(flags: &Flags, name: &str) -> String {
    flags.string(name).trim_matches('"').to_string()
}

fn ip(flags: &Flags, name: &str) -> Result<Option<IpAddr>, String> {
    match flags.string(name).as_str() {
        "" | "<nil>" => Ok(None),
        text => text.parse().map(Some).map_err(|_| format!("--{name}: invalid IP address {text:?}")),
    }
}

fn port(flags: &Flags, name: &str) -> Result<u16, String> {
    u16::try_from(flags.int(name))
        .map_err(|_| format!("--{name} {} must be between 0 and 65535, inclusive", flags.int(name)))
}

fn pair(flags: &Flags, cert: &str, key: &str) -> Result<Option<(PathBuf, PathBuf)>, String> {
    match (flags.opt(cert), flags.opt(key)) {
        (Some(c), Some(k)) => Ok(Some((c.into(), k.into()))),
        (None, None) => Ok(None),
        _ => Err(format!("--{cert} and --{key} must be given together")),
    }
}

/// `cert,key:name,name;cert,key`: pflag's repeated values arrive joined by commas, so pairs are taken two by two.
fn sni(text: &str) -> Result<Vec<KeyPair>, String> {
    let mut out = Vec::new();
    for entry in text.split(';').filter(|s| !s.is_empty()) {
        let (files, names) = entry.split_once(':').unwrap_or((entry, ""));
        let (cert, key) = files
            .split_once(',')
            .ok_or("--tls-sni-cert-key: expected comma separated certificate and key file paths")?;
        out.push(KeyPair {
            cert: cert.into(),
            key: key.into(),
            names: names.split(',').filter(|s| !s.is_empty()).map(String::from).collect(),
        });
    }
    Ok(out)
}

/// `30000-32767`, or `30000+2767` as Go's `PortRange` also takes it.
fn port_range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = if let Some((a, b)) = text.split_once('-') {
        (a.trim().parse().ok()?, b.trim().parse().ok()?)
    } else if let Some((a, n)) = text.split_once('+') {
        let a: u16 = a.trim().parse().ok()?;
        (a, a.checked_add(n.trim().parse().ok()?)?)
    } else {
        let one = text.trim().parse().ok()?;
        (one, one)
    };
    (first <= last).then_some((first, last))
}

/// The address of the interface with the default route; the loopback address where there is none.
fn host_address() -> IpAddr {
    // A connected datagram socket shows which source address the kernel picks; nothing is sent.
    let pick = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    pick().ok().filter(|ip| !ip.is_unspecified()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use pilothouse_component_base::flags;

    /// A configuration for tests, with everything below `dir`.
    pub(crate) fn embedded(dir: &std::path::Path) -> Config {
        let data = format!("--data-dir={}", dir.display());
        let certs = format!("--cert-dir={}", dir.join("pki").display());
        let args =
            ["--storage-backend=embedded", "--bind-address=127.0.0.1", "--secure-port=0", &data, &certs];
        config(&args).unwrap()
    }

    fn config(args: &[&str]) -> Result<Config, String> {
        let flags =
            Flags::parse(&flags::table(crate::FLAGS), args.iter().copied()).map_err(|e| e.to_string())?;
        Config::from_flags(&flags)
    }

    #[test]
    fn reads_an_ordinary_command_line() {
        let c = config(&[
            "--emulated-version=1.20",
            "--storage-backend=embedded",
            "--data-dir=/d",
            "--bind-address=127.0.0.1",
            "--secure-port=7443",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-node-port-range=30000-50000",
            "--authorization-mode=RBAC,Node",
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
        ])
        .unwrap();
        assert_eq!(c.backend, Backend::Embedded("/d/store".into()));
        assert_eq!(c.bind, "127.0.0.1:7443".parse().unwrap());
        assert_eq!(c.advertise_address, "127.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(c.service_node_ports, (30000, 50000));
        assert_eq!(c.authorization_modes, ["RBAC", "Node"]);
        assert_eq!(c.etcd_prefix, "/registry");
        assert_eq!(c.request_timeout, Duration::from_secs(60));
        assert_eq!((c.max_requests, c.max_mutating_requests), (400, 200));
        assert_eq!(c.event_ttl, Duration::from_secs(3600));
    }

    #[test]
    fn names_the_flag_in_errors() {
        let bad = |args: &[&str]| config(args).unwrap_err();
        assert_eq!(bad(&[]), "--etcd-servers must be specified");
        let etcd = "--etcd-servers=http://127.0.0.1:2379";
        assert!(bad(&[etcd, "--bind-address=nope"]).contains("--bind-address"));
        assert!(bad(&[etcd, "--secure-port=70000"]).contains("--secure-port"));
        assert!(bad(&[etcd, "--insecure-port=8080"]).contains("only zero is allowed"));
        assert!(bad(&[etcd, "--tls-cert-file=a"]).contains("--tls-private-key-file"));
        assert!(bad(&[etcd, "--service-cluster-ip-range=10.0.0.0"]).contains("service-cluster-ip-range"));
        assert!(bad(&[etcd, "--service-node-port-range=9-1"]).contains("service-node-port-range"));
        assert!(bad(&[etcd, "--authorization-mode=Nope"]).contains("Nope"));
        assert!(bad(&[etcd, "--emulated-version=1.19"]).contains("emulated-version"));
    }
}
