//! What lies where under `--data-dir`, and the flags with which `up` starts each component.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use pilothouse_pki::{Authority, Subject, Usage, files};

use super::Config;

const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Folders and files of a data directory.
pub struct Layout {
    root: PathBuf,
}

/// Held as long as this process works on the data directory.
pub struct Lock(
    #[expect(dead_code, reason = "the lock lives as long as the open file")] nix::fcntl::Flock<File>,
);

impl Layout {
    /// The layout of an existing or future data directory.
    pub fn at(root: &Path) -> Layout {
        Layout { root: root.to_path_buf() }
    }

    /// Makes what is missing: folders, keys, certificates, kubeconfigs. What is there stays.
    pub fn create(config: &Config) -> anyhow::Result<Layout> {
        let layout = Layout { root: config.data_dir.clone() };
        for dir in ["pki", "store", "kubelet", "kubelet-pki", "volumes", "containerd", "cni", "logs"] {
            let dir = layout.root.join(dir);
            fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        layout.create_pki(config)?;
        layout.create_configs(config)?;
        Ok(layout)
    }

    /// Fails where another process holds the data directory.
    pub fn lock(&self) -> anyhow::Result<Lock> {
        let path = self.path("lock");
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map(Lock).map_err(|_| {
            anyhow::anyhow!("{}: another pilothouse is running on this data directory", path.display())
        })
    }

    /// A path below the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A user's kubeconfig.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.root.join(format!("{user}.kubeconfig"))
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn create_pki(&self, config: &Config) -> anyhow::Result<()> {
        let pki = self.path("pki");
        let ca = Authority::load_or_generate(&pki, "ca", "kubernetes")?;
        let issue = |stem: &str, subject: Subject, usage: Usage| -> anyhow::Result<()> {
            if !pki.join(format!("{stem}.crt")).exists() || !pki.join(format!("{stem}.key")).exists() {
                ca.issue(&subject, usage, YEAR)?.write(&pki, stem)?;
            }
            Ok(())
        };
        let mut hosts: Vec<String> =
            ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1"]
                .map(String::from)
                .to_vec();
        hosts.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
        hosts.extend([config.service_ip(1), config.node_ip.to_string(), config.node_name.clone()]);
        issue(
            "apiserver",
            Subject { common_name: "kube-apiserver".into(), organization: None, hosts },
            Usage::Server,
        )?;
        for (stem, user, group) in [
            ("apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters")),
            ("admin", "admin", Some("system:masters")),
            ("controller-manager", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
            ("proxy", "system:kube-proxy", None),
            ("dns", "system:kube-dns", None),
        ] {
            let subject = Subject {
                common_name: user.into(),
                organization: group.map(String::from),
                hosts: Vec::new(),
            };
            issue(stem, subject, Usage::Client)?;
        }
        if !pki.join("sa.key").exists() {
            let (private, public) = pilothouse_pki::authority::service_account_key()?;
            files::write_public(&pki.join("sa.pub"), public.as_bytes())?;
            files::write_private(&pki.join("sa.key"), private.as_bytes())?;
        }
        for user in ["admin", "controller-manager", "scheduler", "proxy", "dns"] {
            let kubeconfig = kubeconfig(
                &config.server(),
                ca.certificate(),
                user,
                serde_json::json!({
                    "client-certificate-data": base64(&files::read(&pki.join(format!("{user}.crt")))?),
                    "client-key-data": base64(&files::read(&pki.join(format!("{user}.key")))?),
                }),
            )?;
            files::write_private(&self.kubeconfig(user), kubeconfig.as_bytes())?;
        }
        Ok(())
    }

    /// The kubeconfig with which the kubelet asks for its certificate.
    pub fn write_bootstrap_kubeconfig(&self, config: &Config, token: &str) -> anyhow::Result<()> {
        let ca = files::read(&self.path("pki/ca.crt"))?;
        let text =
            kubeconfig(&config.server(), &ca, "kubelet-bootstrap", serde_json::json!({ "token": token }))?;
        files::write_private(&self.kubeconfig("bootstrap"), text.as_bytes())?;
        Ok(())
    }

    fn create_configs(&self, config: &Config) -> anyhow::Result<()> {
        let kubelet = serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.text("pki/ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "clusterDNS": [config.service_ip(10)],
            "clusterDomain": config.cluster_domain,
            // The disk of a person's machine is often fuller than that of a server, and images that were brought along
            // cannot be pulled again.
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "3%",
                "nodefs.inodesFree": "3%",
                "imagefs.available": "3%",
            },
            "failSwapOn": false,
            "imageGCHighThresholdPercent": 96,
            "imageGCLowThresholdPercent": 94,
            "rotateCertificates": true,
        });
        files::write_public(&self.path("kubelet.yaml"), serde_yaml_ng::to_string(&kubelet)?.as_bytes())?;
        let proxy = serde_json::json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.kubeconfig("proxy").display().to_string()},
            "clusterCIDR": config.cluster_cidr.to_string(),
            "hostnameOverride": config.node_name,
            // How many connections a person's machine keeps track of is that person's.
            "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        });
        files::write_public(&self.path("kube-proxy.yaml"), serde_yaml_ng::to_string(&proxy)?.as_bytes())?;
        Ok(())
    }

    /// Flags of kube-apiserver.
    pub fn apiserver_args(&self, config: &Config) -> Vec<String> {
        let pki = |f: &str| self.text(&format!("pki/{f}"));
        let mut args = vec![
            format!("--bind-address={}", config.bind_address),
            format!("--secure-port={}", config.secure_port),
            format!("--advertise-address={}", config.node_ip),
            format!("--data-dir={}", self.text("store")),
            format!("--emulated-version={}", config.emulated_version),
            format!("--service-cluster-ip-range={}", config.service_cidr),
            format!("--service-node-port-range={}", config.node_ports),
            format!("--tls-cert-file={}", pki("apiserver.crt")),
            format!("--tls-private-key-file={}", pki("apiserver.key")),
            format!("--client-ca-file={}", pki("ca.crt")),
            format!("--kubelet-client-certificate={}", pki("apiserver-kubelet-client.crt")),
            format!("--kubelet-client-key={}", pki("apiserver-kubelet-client.key")),
            format!("--service-account-key-file={}", pki("sa.pub")),
            format!("--service-account-signing-key-file={}", pki("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--enable-bootstrap-token-auth=true".into(),
            "--allow-privileged=true".into(),
        ];
        if config.etcd_servers.is_empty() {
            args.push("--storage-backend=embedded".into());
        } else {
            args.push(format!("--etcd-servers={}", config.etcd_servers.join(",")));
            // A machine's etcd may come after it.
            args.push("--etcd-startup-timeout=0".into());
        }
        args
    }

    /// Flags of kube-controller-manager.
    pub fn controller_manager_args(&self, config: &Config) -> Vec<String> {
        vec![
            format!("--kubeconfig={}", self.kubeconfig("controller-manager").display()),
            format!("--root-ca-file={}", self.text("pki/ca.crt")),
            format!("--service-account-private-key-file={}", self.text("pki/sa.key")),
            format!("--cluster-signing-cert-file={}", self.text("pki/ca.crt")),
            format!("--cluster-signing-key-file={}", self.text("pki/ca.key")),
            "--allocate-node-cidrs=true".into(),
            format!("--cluster-cidr={}", config.cluster_cidr),
            format!("--service-cluster-ip-range={}", config.service_cidr),
            "--controllers=*,bootstrapsigner,tokencleaner".into(),
            format!("--local-path-dir={}", self.text("volumes")),
            "--use-service-account-credentials=true".into(),
            "--leader-elect=false".into(),
        ]
    }

    /// Flags of kube-scheduler.
    pub fn scheduler_args(&self) -> Vec<String> {
        vec![
            format!("--kubeconfig={}", self.kubeconfig("scheduler").display()),
            "--leader-elect=false".into(),
        ]
    }

    /// Flags of kube-proxy.
    pub fn proxy_args(&self, config: &Config) -> Vec<String> {
        vec![
            format!("--config={}", self.text("kube-proxy.yaml")),
            format!("--service-cluster-ip-range={}", config.service_cidr),
        ]
    }

    /// Flags of the cluster's DNS.
    pub fn dns_args(&self, config: &Config) -> Vec<String> {
        vec![
            format!("--kubeconfig={}", self.kubeconfig("dns").display()),
            format!("--bind-address={}", config.node_ip),
            format!("--port={}", super::bootstrap::DNS_PORT),
            format!("--cluster-domain={}", config.cluster_domain),
        ]
    }

    /// Flags of the kubelet.
    pub fn kubelet_args(&self, config: &Config, runtime_endpoint: &str) -> Vec<String> {
        vec![
            format!("--config={}", self.text("kubelet.yaml")),
            format!("--kubeconfig={}", self.text("kubelet.kubeconfig")),
            format!("--bootstrap-kubeconfig={}", self.kubeconfig("bootstrap").display()),
            format!("--cert-dir={}", self.text("kubelet-pki")),
            format!("--root-dir={}", self.text("kubelet")),
            format!("--hostname-override={}", config.node_name),
            format!("--node-ip={}", config.node_ip),
            "--container-runtime=remote".into(),
            format!("--container-runtime-endpoint={runtime_endpoint}"),
            format!("--pod-infra-container-image={}", config.pause_image),
            "--network-plugin=cni".into(),
        ]
    }
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn kubeconfig(server: &str, ca: &str, user: &str, credentials: serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_yaml_ng::to_string(&serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "pilothouse",
            "cluster": {"server": server, "certificate-authority-data": base64(ca)},
        }],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "pilothouse", "context": {"cluster": "pilothouse", "user": user}}],
        "current-context": "pilothouse",
    }))?)
}
