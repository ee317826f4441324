//! From flags, and a `KubeSchedulerConfiguration` where one is given, to a typed configuration.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pilothouse_client::limit::Limit;
use pilothouse_component_base::flags::{Flags, parse_duration};
use serde::Deserialize;
use serde_json::Value;

use crate::extender::ExtenderConfig;
use crate::plugins::node_resources_fit::NodeResourcesFit;
use crate::plugins::pod_topology_spread::PodTopologySpread;
use crate::profile::{Arguments, FILTERS, SCORES};

/// The rules for the pods of one scheduler name.
#[derive(Debug, Clone)]
pub struct ProfileConfig {
    /// The scheduler name.
    pub name: String,
    /// Filters in their order.
    pub filters: Vec<String>,
    /// Scores with their weights.
    pub scores: Vec<(String, i64)>,
    /// Whether pods may make others go.
    pub preempts: bool,
    /// Arguments of the rules.
    pub arguments: Arguments,
}

impl ProfileConfig {
    /// The defaults.
    pub fn new(name: &str) -> ProfileConfig {
        ProfileConfig {
            name: name.into(),
            filters: FILTERS.map(String::from).to_vec(),
            scores: SCORES.map(|(n, w)| (n.to_string(), w)).to_vec(),
            preempts: true,
            arguments: Arguments::default(),
        }
    }
}

/// Leader election.
#[derive(Debug, Clone)]
pub struct LeaderElection {
    /// Whether there is one.
    pub enabled: bool,
    /// Namespace of the lease.
    pub namespace: String,
    /// Name of the lease.
    pub name: String,
    /// How long others wait for a renewal.
    pub lease_duration: Duration,
    /// How long we try to renew.
    pub renew_deadline: Duration,
    /// Pause between tries.
    pub retry_period: Duration,
}

/// What the scheduler was asked to do.
#[derive(Debug, Clone)]
pub struct Config {
    /// Credentials for the API server; none where only its address is known.
    pub kubeconfig: Option<PathBuf>,
    /// How many requests may be made; any number where nothing says.
    pub limit: Option<Limit>,
    /// Address of the API server; wins over that of the kubeconfig.
    pub master: Option<String>,
    /// Address of the plain port for health and metrics; none for no such port.
    pub insecure: Option<SocketAddr>,
    /// Address of the HTTPS port for the same; none for no such port.
    pub secure: Option<SocketAddr>,
    /// Serving certificate; self-signed where there is none.
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    pub tls_private_key_file: Option<PathBuf>,
    /// Leader election.
    pub leader_election: LeaderElection,
    /// The profiles; at least one.
    pub profiles: Vec<ProfileConfig>,
    /// Programs outside that have a say.
    pub extenders: Vec<ExtenderConfig>,
    /// A ConfigMap (namespace, name) with a policy, to be read at the start.
    pub policy_configmap: Option<(String, String)>,
    /// How many of the nodes are looked at, in percent; 0 for what suits the size of the cluster.
    pub percentage_of_nodes_to_score: usize,
    /// How long a pod waits after its first failure.
    pub initial_backoff: Duration,
    /// How long a pod waits at most.
    pub max_backoff: Duration,
}

impl Config {
    /// From flags. Errors name the flag or the file.
    pub fn from_flags(flags: &Flags) -> Result<Config, String> {
        let ip = |name: &str| -> Result<IpAddr, String> {
            let text = flags.string(name);
            let text = text.trim_matches('"');
            if text.is_empty() {
                return Ok(Ipv4Addr::UNSPECIFIED.into());
            }
            text.parse().map_err(|_| format!("--{name}: {text:?} is not an IP address"))
        };
        let port = |name: &str| -> Result<u16, String> {
            u16::try_from(flags.int(name))
                .map_err(|_| format!("--{name}: {} is not a valid port", flags.int(name)))
        };
        let address = |ip: IpAddr, port: u16| (port != 0).then(|| SocketAddr::new(ip, port));
        let text = |name: &str| flags.string(name).trim_matches('"').to_string();
        let opt = |name: &str| Some(text(name)).filter(|s| !s.is_empty());
        let mut config = Config {
            kubeconfig: opt("kubeconfig").map(PathBuf::from),
            limit: Limit::from_flags(flags),
            master: opt("master"),
            insecure: address(ip("address")?, port("port")?),
            secure: address(ip("bind-address")?, port("secure-port")?),
            tls_cert_file: opt("tls-cert-file").map(PathBuf::from),
            tls_private_key_file: opt("tls-private-key-file").map(PathBuf::from),
            leader_election: LeaderElection {
                enabled: flags.bool("leader-elect"),
                namespace: text("leader-elect-resource-namespace"),
                name: text("leader-elect-resource-name"),
                lease_duration: flags.duration("leader-elect-lease-duration"),
                renew_deadline: flags.duration("leader-elect-renew-deadline"),
                retry_period: flags.duration("leader-elect-retry-period"),
            },
            profiles: vec![ProfileConfig::new(&text("scheduler-name"))],
            extenders: Vec::new(),
            policy_configmap: None,
            percentage_of_nodes_to_score: 0,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
        };
        if text("leader-elect-resource-lock") != "leases" && flags.given("leader-elect-resource-lock") {
            tracing::warn!("--leader-elect-resource-lock: the lock is a lease, whatever was asked for");
        }
        let weight = flags.int("hard-pod-affinity-symmetric-weight");
        if !(0..=100).contains(&weight) {
            return Err(format!("--hard-pod-affinity-symmetric-weight: {weight} is not in the range 0-100"));
        }
        config.profiles[0].arguments.hard_pod_affinity_weight = Some(weight);
        match opt("algorithm-provider").as_deref() {
            None | Some("DefaultProvider") => {}
            Some("ClusterAutoscalerProvider") => {
                for (name, _) in &mut config.profiles[0].scores {
                    if name == "NodeResourcesLeastAllocated" {
                        *name = "NodeResourcesMostAllocated".into();
                    }
                }
            }
            Some(other) => return Err(format!("--algorithm-provider: {other:?} is not known")),
        }
        if let Some(file) = opt("config") {
            let path = Path::new(&file);
            let yaml = std::fs::read_to_string(path).map_err(|e| format!("--config: {file}: {e}"))?;
            config.apply(&yaml).map_err(|e| format!("--config: {file}: {e}"))?;
        }
        // As in the original, a policy counts only where there is no configuration file, and a file before a ConfigMap.
        let (file, map) = (opt("policy-config-file"), opt("policy-configmap"));
        let namespace = text("policy-configmap-namespace");
        let legacy = flags.bool("use-legacy-policy-config");
        if opt("config").is_none() {
            match (file, map) {
                (Some(file), map) if legacy || map.is_none() => {
                    let yaml = std::fs::read_to_string(&file)
                        .map_err(|e| format!("--policy-config-file: {file}: {e}"))?;
                    config.apply_policy(&yaml).map_err(|e| format!("--policy-config-file: {file}: {e}"))?;
                }
                (_, Some(map)) => config.policy_configmap = Some((namespace, map)),
                _ => {}
            }
        }
        if config.kubeconfig.is_none() && config.master.is_none() {
            return Err(
                "--kubeconfig is required, or clientConnection.kubeconfig in the --config file".into()
            );
        }
        Ok(config)
    }

    /// Takes a policy in.
    pub fn apply_policy(&mut self, text: &str) -> Result<(), String> {
        let mut extenders = crate::policy::apply(text, &mut self.profiles[0])?;
        self.add_extenders(&mut extenders);
        Ok(())
    }

    /// Adds extenders; resources that they alone count are no longer counted here.
    fn add_extenders(&mut self, extenders: &mut Vec<ExtenderConfig>) {
        for extender in extenders.iter() {
            for profile in &mut self.profiles {
                let ignored = &mut profile.arguments.fit.ignored_resources;
                ignored.extend(extender.ignored_resources().map(String::from));
            }
        }
        self.extenders.append(extenders);
    }

    /// Takes a `KubeSchedulerConfiguration` in.
    fn apply(&mut self, yaml: &str) -> Result<(), String> {
        let mut file: ConfigFile = serde_yaml_ng::from_str(yaml).map_err(|e| e.to_string())?;
        if file.kind != "KubeSchedulerConfiguration" {
            return Err(format!(
                "no kind \"{}\" is registered for version \"{}\"",
                file.kind, file.api_version
            ));
        }
        let version = file.api_version.strip_prefix("kubescheduler.config.k8s.io/").unwrap_or_default();
        if !["v1alpha1", "v1alpha2", "v1beta1", "v1beta2", "v1beta3", "v1"].contains(&version) {
            return Err(format!(
                "no kind \"KubeSchedulerConfiguration\" is registered for version \"{}\"",
                file.api_version
            ));
        }
        if let Some(path) = file.client_connection.kubeconfig.filter(|k| !k.is_empty()) {
            self.kubeconfig = Some(path.into());
        }
        let connection = (file.client_connection.qps, file.client_connection.burst);
        if connection != (None, None) {
            self.limit = Limit::new(connection.0.unwrap_or(50.0), connection.1.unwrap_or(100));
        }
        let (e, l) = (&mut self.leader_election, file.leader_election);
        e.enabled = l.leader_elect.unwrap_or(e.enabled);
        e.namespace = l.resource_namespace.unwrap_or(e.namespace.clone());
        e.name = l.resource_name.unwrap_or(e.name.clone());
        for (to, from) in [
            (&mut e.lease_duration, l.lease_duration),
            (&mut e.renew_deadline, l.renew_deadline),
            (&mut e.retry_period, l.retry_period),
        ] {
            if let Some(text) = from {
                *to = parse_duration(&text)
                    .ok_or_else(|| format!("leaderElection: invalid duration {text:?}"))?;
            }
        }
        if let Some(address) = file.healthz_bind_address {
            self.insecure = match address.rsplit_once(':') {
                _ if address.is_empty() => None,
                Some((_, "0")) => None,
                Some(("", port)) => {
                    let port = port.parse().map_err(|_| format!("healthzBindAddress: {address:?}"))?;
                    Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
                }
                _ => Some(address.parse().map_err(|_| format!("healthzBindAddress: {address:?}"))?),
            };
        }
        self.percentage_of_nodes_to_score =
            file.percentage_of_nodes_to_score.unwrap_or(self.percentage_of_nodes_to_score);
        if let Some(s) = file.pod_initial_backoff_seconds {
            self.initial_backoff = Duration::from_secs(s);
        }
        if let Some(s) = file.pod_max_backoff_seconds {
            self.max_backoff = Duration::from_secs(s);
        }
        if !file.profiles.is_empty() {
            let fallback = self.profiles[0].clone();
            self.profiles =
                file.profiles.into_iter().map(|p| p.build(&fallback)).collect::<Result<_, _>>()?;
        }
        self.add_extenders(&mut file.extenders);
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    client_connection: ClientConnection,
    #[serde(default)]
    leader_election: LeaderElectionFile,
    healthz_bind_address: Option<String>,
    percentage_of_nodes_to_score: Option<usize>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
    #[serde(default)]
    profiles: Vec<ProfileFile>,
    #[serde(default)]
    extenders: Vec<ExtenderConfig>,
}

#[derive(Deserialize, Default)]
struct ClientConnection {
    kubeconfig: Option<String>,
    qps: Option<f64>,
    burst: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct LeaderElectionFile {
    leader_elect: Option<bool>,
    lease_duration: Option<String>,
    renew_deadline: Option<String>,
    retry_period: Option<String>,
    resource_name: Option<String>,
    resource_namespace: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct ProfileFile {
    scheduler_name: Option<String>,
    #[serde(default)]
    plugins: PluginsFile,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct PluginsFile {
    #[serde(default)]
    filter: PluginSet,
    #[serde(default)]
    score: PluginSet,
    #[serde(default)]
    post_filter: PluginSet,
    #[serde(default)]
    multi_point: PluginSet,
}

#[derive(Deserialize, Default)]
struct PluginSet {
    #[serde(default)]
    enabled: Vec<PluginEntry>,
    #[serde(default)]
    disabled: Vec<PluginEntry>,
}

#[derive(Deserialize)]
struct PluginEntry {
    name: String,
    weight: Option<i64>,
}

#[derive(Deserialize)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Value,
}

impl PluginSet {
    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|d| d.name == name || d.name == "*")
    }
}

impl ProfileFile {
    fn build(self, fallback: &ProfileConfig) -> Result<ProfileConfig, String> {
        let mut p = ProfileConfig {
            name: self.scheduler_name.unwrap_or("default-scheduler".into()),
            ..fallback.clone()
        };
        let PluginsFile { filter, score, post_filter, multi_point } = &self.plugins;
        p.filters.retain(|f| !filter.disables(f) && !multi_point.disables(f));
        p.scores.retain(|(s, _)| !score.disables(s) && !multi_point.disables(s));
        p.preempts &=
            !post_filter.disables("DefaultPreemption") && !multi_point.disables("DefaultPreemption");
        let enabled = |e: &PluginEntry| e.name == "DefaultPreemption";
        p.preempts |= post_filter.enabled.iter().chain(&multi_point.enabled).any(enabled);
        let is_filter = |name: &str| FILTERS.contains(&name);
        for entry in filter.enabled.iter().chain(multi_point.enabled.iter().filter(|e| is_filter(&e.name))) {
            if !p.filters.contains(&entry.name) {
                p.filters.push(entry.name.clone());
            }
        }
        let is_score =
            |name: &str| SCORES.iter().any(|(s, _)| *s == name) || name == "NodeResourcesMostAllocated";
        for entry in score.enabled.iter().chain(multi_point.enabled.iter().filter(|e| is_score(&e.name))) {
            let weight = entry.weight.filter(|w| *w != 0).unwrap_or(1);
            match p.scores.iter_mut().find(|(s, _)| *s == entry.name) {
                Some((_, w)) => *w = weight,
                None => p.scores.push((entry.name.clone(), weight)),
            }
        }
        for config in self.plugin_config {
            apply_arguments(&mut p, &config)?;
        }
        Ok(p)
    }
}

fn apply_arguments(p: &mut ProfileConfig, config: &PluginConfig) -> Result<(), String> {
    let args = &config.args;
    let strings = |key: &str| -> Vec<String> {
        let list = args.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(String::from).collect()
    };
    let number = |key: &str| args.get(key).and_then(Value::as_i64);
    match config.name.as_str() {
        "NodeResourcesFit" => {
            p.arguments.fit = NodeResourcesFit {
                ignored_resources: strings("ignoredResources"),
                ignored_groups: strings("ignoredResourceGroups"),
            };
            if args.pointer("/scoringStrategy/type").and_then(Value::as_str) == Some("MostAllocated") {
                for (name, _) in &mut p.scores {
                    if name == "NodeResourcesLeastAllocated" {
                        *name = "NodeResourcesMostAllocated".into();
                    }
                }
            }
        }
        "InterPodAffinity" => {
            p.arguments.hard_pod_affinity_weight =
                number("hardPodAffinityWeight").or(p.arguments.hard_pod_affinity_weight);
        }
        "PodTopologySpread" => {
            let constraints = args.get("defaultConstraints").and_then(Value::as_array);
            if let Some(constraints) =
                constraints.filter(|_| args.get("defaultingType") != Some(&"System".into()))
            {
                let one = |c: &Value| {
                    let key = c.get("topologyKey")?.as_str()?.to_string();
                    let must = c.get("whenUnsatisfiable")?.as_str()? == "DoNotSchedule";
                    Some((key, c.get("maxSkew")?.as_i64()?, must))
                };
                let defaults = constraints.iter().map(one).collect::<Option<_>>();
                p.arguments.spread = PodTopologySpread {
                    defaults: defaults
                        .ok_or("pluginConfig: PodTopologySpread: malformed defaultConstraints")?,
                    ..Default::default()
                };
            }
        }
        "DefaultPreemption" => {
            let to = &mut p.arguments.preemption;
            let n = |key: &str, old: usize| number(key).and_then(|n| usize::try_from(n).ok()).unwrap_or(old);
            to.min_candidate_nodes_percentage =
                n("minCandidateNodesPercentage", to.min_candidate_nodes_percentage);
            to.min_candidate_nodes_absolute = n("minCandidateNodesAbsolute", to.min_candidate_nodes_absolute);
        }
        "VolumeBinding" => {
            let seconds = number("bindTimeoutSeconds").and_then(|n| u64::try_from(n).ok());
            p.arguments.bind_timeout = seconds.map(Duration::from_secs);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_component_base::flags::table;

    fn from(args: &[&str]) -> Result<Config, String> {
        Config::from_flags(&Flags::parse(&table(crate::FLAGS), args.iter().copied()).unwrap())
    }

    #[test]
    fn flags_of_the_old_installs() {
        let c = from(&[
            "--logtostderr=false",
            "--v=2",
            "--log-dir=/l",
            "--leader-elect",
            "--kubeconfig=/k",
            "--bind-address=127.0.0.1",
        ])
        .unwrap();
        assert_eq!(c.secure.unwrap().to_string(), "127.0.0.1:10259");
        assert_eq!(c.insecure.unwrap().to_string(), "0.0.0.0:10251");
        assert!(c.leader_election.enabled);
        assert_eq!(
            (c.leader_election.namespace.as_str(), c.leader_election.name.as_str()),
            ("kube-system", "kube-scheduler")
        );
        assert_eq!(c.profiles[0].name, "default-scheduler");
        assert_eq!(from(&["--master=127.0.0.1:8080", "--port=0"]).unwrap().insecure, None);
        assert!(from(&[]).unwrap_err().contains("--kubeconfig"));
        assert!(from(&["--kubeconfig=/k", "--config=/nowhere.yaml"]).unwrap_err().contains("/nowhere.yaml"));
    }

    #[test]
    fn the_configuration_file() {
        let mut c = from(&["--kubeconfig=/k"]).unwrap();
        c.apply(
            "apiVersion: kubescheduler.config.k8s.io/v1beta1\nkind: KubeSchedulerConfiguration\n\
             clientConnection: {kubeconfig: /other}\nleaderElection: {leaderElect: false, leaseDuration: 20s}\n\
             healthzBindAddress: 127.0.0.1:1234\npercentageOfNodesToScore: 40\npodMaxBackoffSeconds: 5\n\
             profiles:\n- schedulerName: a\n  plugins:\n    score: {disabled: [{name: '*'}], enabled: [{name: ImageLocality, weight: 7}]}\n\
             \x20   filter: {disabled: [{name: NodePorts}]}\n    postFilter: {disabled: [{name: DefaultPreemption}]}\n\
             \x20 pluginConfig:\n  - name: InterPodAffinity\n    args: {hardPodAffinityWeight: 3}\n- {}\n",
        )
        .unwrap();
        assert_eq!(c.kubeconfig.as_deref(), Some(Path::new("/other")));
        assert!(!c.leader_election.enabled);
        assert_eq!(
            (c.leader_election.lease_duration, c.max_backoff),
            (Duration::from_secs(20), Duration::from_secs(5))
        );
        assert_eq!(c.profiles[0].scores, [("ImageLocality".to_string(), 7)]);
        assert!(!c.profiles[0].preempts && c.profiles[1].preempts);
        assert_eq!((c.profiles[0].filters.len(), c.profiles[1].filters.len()), (14, 15));
        assert_eq!(c.profiles[0].arguments.hard_pod_affinity_weight, Some(3));
        assert_eq!(c.profiles[1].name, "default-scheduler");
        assert!(c.apply("apiVersion: v1\nkind: Pod\n").unwrap_err().contains("no kind"));
    }
}
