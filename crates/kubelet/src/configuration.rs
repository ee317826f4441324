//! `KubeletConfiguration` (`kubelet.config.k8s.io/v1beta1`): v1.20's defaults, the file, the flags on top.
//!
//! It is kept as JSON, because that is what `/configz` shows and because most of its fields are only shown; what the
//! kubelet uses is read from it once, into [`crate::config::Config`].

use std::path::Path;
use std::time::Duration;

use pilothouse_component_base::config_keys;
use pilothouse_component_base::flags::{Flags, parse_duration};
use serde_json::{Map, Value, json};

/// The keys of the file.
const KEYS: &str = include_str!("config_keys.tsv");

/// The configuration as `/configz` shows it.
#[derive(Debug, Clone)]
pub struct KubeletConfiguration(Value);

/// The flags that have a field of the file, with the field's path.
const FLAGS: &[(&str, &str)] = &[
    ("address", "address"),
    ("port", "port"),
    ("read-only-port", "readOnlyPort"),
    ("tls-cert-file", "tlsCertFile"),
    ("tls-private-key-file", "tlsPrivateKeyFile"),
    ("tls-cipher-suites", "tlsCipherSuites"),
    ("tls-min-version", "tlsMinVersion"),
    ("pod-manifest-path", "staticPodPath"),
    ("sync-frequency", "syncFrequency"),
    ("file-check-frequency", "fileCheckFrequency"),
    ("http-check-frequency", "httpCheckFrequency"),
    ("anonymous-auth", "authentication.anonymous.enabled"),
    ("authentication-token-webhook", "authentication.webhook.enabled"),
    ("authentication-token-webhook-cache-ttl", "authentication.webhook.cacheTTL"),
    ("client-ca-file", "authentication.x509.clientCAFile"),
    ("authorization-mode", "authorization.mode"),
    ("authorization-webhook-cache-authorized-ttl", "authorization.webhook.cacheAuthorizedTTL"),
    ("authorization-webhook-cache-unauthorized-ttl", "authorization.webhook.cacheUnauthorizedTTL"),
    ("registry-qps", "registryPullQPS"),
    ("registry-burst", "registryBurst"),
    ("event-qps", "eventRecordQPS"),
    ("event-burst", "eventBurst"),
    ("enable-debugging-handlers", "enableDebuggingHandlers"),
    ("healthz-port", "healthzPort"),
    ("healthz-bind-address", "healthzBindAddress"),
    ("oom-score-adj", "oomScoreAdj"),
    ("cluster-domain", "clusterDomain"),
    ("cluster-dns", "clusterDNS"),
    ("streaming-connection-idle-timeout", "streamingConnectionIdleTimeout"),
    ("node-status-update-frequency", "nodeStatusUpdateFrequency"),
    ("image-gc-high-threshold", "imageGCHighThresholdPercent"),
    ("image-gc-low-threshold", "imageGCLowThresholdPercent"),
    ("minimum-image-ttl-duration", "imageMinimumGCAge"),
    ("volume-stats-agg-period", "volumeStatsAggPeriod"),
    ("kubelet-cgroups", "kubeletCgroups"),
    ("system-cgroups", "systemCgroups"),
    ("cgroup-root", "cgroupRoot"),
    ("cgroups-per-qos", "cgroupsPerQOS"),
    ("cgroup-driver", "cgroupDriver"),
    ("cpu-manager-policy", "cpuManagerPolicy"),
    ("cpu-manager-reconcile-period", "cpuManagerReconcilePeriod"),
    ("topology-manager-policy", "topologyManagerPolicy"),
    ("topology-manager-scope", "topologyManagerScope"),
    ("qos-reserved", "qosReserved"),
    ("runtime-request-timeout", "runtimeRequestTimeout"),
    ("hairpin-mode", "hairpinMode"),
    ("max-pods", "maxPods"),
    ("pod-cidr", "podCIDR"),
    ("pod-max-pids", "podPidsLimit"),
    ("resolv-conf", "resolvConf"),
    ("cpu-cfs-quota", "cpuCFSQuota"),
    ("cpu-cfs-quota-period", "cpuCFSQuotaPeriod"),
    ("max-open-files", "maxOpenFiles"),
    ("kube-api-content-type", "contentType"),
    ("kube-api-qps", "kubeAPIQPS"),
    ("kube-api-burst", "kubeAPIBurst"),
    ("serialize-image-pulls", "serializeImagePulls"),
    ("eviction-hard", "evictionHard"),
    ("eviction-soft", "evictionSoft"),
    ("eviction-soft-grace-period", "evictionSoftGracePeriod"),
    ("eviction-pressure-transition-period", "evictionPressureTransitionPeriod"),
    ("eviction-max-pod-grace-period", "evictionMaxPodGracePeriod"),
    ("eviction-minimum-reclaim", "evictionMinimumReclaim"),
    ("pods-per-core", "podsPerCore"),
    ("protect-kernel-defaults", "protectKernelDefaults"),
    ("make-iptables-util-chains", "makeIPTablesUtilChains"),
    ("iptables-masquerade-bit", "iptablesMasqueradeBit"),
    ("iptables-drop-bit", "iptablesDropBit"),
    ("feature-gates", "featureGates"),
    ("fail-swap-on", "failSwapOn"),
    ("container-log-max-size", "containerLogMaxSize"),
    ("container-log-max-files", "containerLogMaxFiles"),
    ("system-reserved", "systemReserved"),
    ("kube-reserved", "kubeReserved"),
    ("system-reserved-cgroup", "systemReservedCgroup"),
    ("kube-reserved-cgroup", "kubeReservedCgroup"),
    ("enforce-node-allocatable", "enforceNodeAllocatable"),
    ("allowed-unsafe-sysctls", "allowedUnsafeSysctls"),
    ("volume-plugin-dir", "volumePluginDir"),
    ("provider-id", "providerID"),
    ("rotate-certificates", "rotateCertificates"),
    ("rotate-server-certificates", "serverTLSBootstrap"),
    ("enable-controller-attach-detach", "enableControllerAttachDetach"),
    ("enable-server", "enableServer"),
    ("reserved-cpus", "reservedSystemCPUs"),
    ("logging-format", "logging.format"),
];

fn defaults() -> Value {
    json!({
        "enableServer": true, "syncFrequency": "1m0s", "fileCheckFrequency": "20s", "httpCheckFrequency": "20s",
        "address": "0.0.0.0", "port": 10250,
        "authentication": {"x509": {}, "webhook": {"enabled": true, "cacheTTL": "2m0s"}, "anonymous": {"enabled": false}},
        "authorization": {"mode": "Webhook",
            "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"}},
        "registryPullQPS": 5, "registryBurst": 10, "eventRecordQPS": 5, "eventBurst": 10,
        "enableDebuggingHandlers": true, "healthzPort": 10248, "healthzBindAddress": "127.0.0.1",
        "oomScoreAdj": -999, "clusterDomain": "", "streamingConnectionIdleTimeout": "4h0m0s",
        "nodeStatusUpdateFrequency": "10s", "nodeLeaseDurationSeconds": 40,
        "imageMinimumGCAge": "2m0s", "imageGCHighThresholdPercent": 85, "imageGCLowThresholdPercent": 80,
        "volumeStatsAggPeriod": "1m0s", "cgroupsPerQOS": true, "cgroupDriver": "cgroupfs",
        "cpuManagerPolicy": "none", "cpuManagerReconcilePeriod": "10s",
        "topologyManagerPolicy": "none", "topologyManagerScope": "container", "runtimeRequestTimeout": "2m0s",
        "hairpinMode": "promiscuous-bridge", "maxPods": 110, "podPidsLimit": -1, "resolvConf": "/etc/resolv.conf",
        "cpuCFSQuota": true, "cpuCFSQuotaPeriod": "100ms", "nodeStatusMaxImages": 50, "maxOpenFiles": 1_000_000,
        "contentType": "application/vnd.kubernetes.protobuf", "kubeAPIQPS": 5, "kubeAPIBurst": 10,
        "serializeImagePulls": true,
        "evictionHard": {"imagefs.available": "15%", "memory.available": "100Mi", "nodefs.available": "10%",
            "nodefs.inodesFree": "5%"},
        "evictionPressureTransitionPeriod": "5m0s", "enableControllerAttachDetach": true,
        "makeIPTablesUtilChains": true, "iptablesMasqueradeBit": 14, "iptablesDropBit": 15, "failSwapOn": true,
        "containerLogMaxSize": "10Mi", "containerLogMaxFiles": 5,
        "configMapAndSecretChangeDetectionStrategy": "Watch", "enforceNodeAllocatable": ["pods"],
        "volumePluginDir": "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/",
        "logging": {"format": "text"}, "enableSystemLogHandler": true, "shutdownGracePeriod": "0s",
        "shutdownGracePeriodCriticalPods": "0s"
    })
}

/// Fields that are structs: what the file does not give keeps its default. Every other field is replaced as a whole.
const STRUCTS: [&str; 3] = ["authentication", "authorization", "logging"];

impl KubeletConfiguration {
    /// From `--config` (where given) and the flags.
    pub fn load(file: Option<&Path>, flags: &Flags) -> Result<KubeletConfiguration, String> {
        let mut config = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| {
                    format!("failed to load Kubelet config file {}, error: {e}", path.display())
                })?;
                let config = Self::from_yaml(&text).map_err(|e| {
                    format!("failed to load Kubelet config file {}, error: {e}", path.display())
                })?;
                for remark in Self::remarks(&text) {
                    tracing::warn!("{}: {remark}", path.display());
                }
                config
            }
            None => {
                // Without a file the flags' own defaults hold, which are looser in three places.
                let mut c = KubeletConfiguration(defaults());
                c.set("readOnlyPort", json!(10255));
                c.set("authentication.anonymous.enabled", json!(true));
                c.set("authentication.webhook.enabled", json!(false));
                c.set("authorization.mode", json!("AlwaysAllow"));
                c
            }
        };
        config.apply_flags(flags)?;
        Ok(config)
    }

    /// From the text of a file, YAML or JSON. A key that stands twice counts as it stands last, as v1.20 has it.
    pub fn from_yaml(text: &str) -> Result<KubeletConfiguration, String> {
        let given: Value = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
        let Value::Object(given) = given else { return Err("it is not an object".into()) };
        let get = |k: &str| given.get(k).and_then(Value::as_str).unwrap_or("");
        if get("kind") != "KubeletConfiguration" || get("apiVersion") != "kubelet.config.k8s.io/v1beta1" {
            return Err(format!(
                "no kind {:?} is registered for version {:?} in scheme \"pkg/kubelet/apis/config/scheme/scheme.go:31\"",
                get("kind"),
                get("apiVersion")
            ));
        }
        let mut config = defaults();
        for (key, value) in given {
            if matches!(key.as_str(), "kind" | "apiVersion") || value.is_null() {
                continue;
            }
            if STRUCTS.contains(&key.as_str()) {
                merge(&mut config[&key], value);
            } else {
                config[key] = value;
            }
        }
        Ok(KubeletConfiguration(config))
    }

    /// What is said of the keys of a file that have no meaning.
    fn remarks(text: &str) -> Vec<String> {
        let file: Map<String, Value> = serde_yaml_ng::from_str(text).unwrap_or_default();
        config_keys::remarks(&config_keys::table(KEYS), &file, &defaults())
    }

    fn apply_flags(&mut self, flags: &Flags) -> Result<(), String> {
        for (flag, path) in FLAGS {
            if !flags.given(flag) {
                continue;
            }
            let text = flags.string(flag);
            let value = match (self.at(path), *flag) {
                (_, "feature-gates") => {
                    json!(
                        flags
                            .map(flag)
                            .into_iter()
                            .map(|(k, v)| (k, json!(v == "true")))
                            .collect::<Map<_, _>>()
                    )
                }
                (_, f) if is_map(f) => json!(flags.map(flag)),
                (
                    _,
                    "cluster-dns"
                    | "enforce-node-allocatable"
                    | "allowed-unsafe-sysctls"
                    | "tls-cipher-suites",
                ) => {
                    json!(flags.strings(flag).into_iter().filter(|s| s != "none").collect::<Vec<_>>())
                }
                (Value::Bool(_), _) => json!(flags.bool(flag)),
                (Value::Number(_), _) => json!(flags.int(flag)),
                (_, "read-only-port" | "pods-per-core" | "eviction-max-pod-grace-period") => {
                    json!(flags.int(flag))
                }
                (_, "protect-kernel-defaults" | "rotate-certificates" | "rotate-server-certificates") => {
                    json!(flags.bool(flag))
                }
                _ => json!(text),
            };
            self.set(path, value);
        }
        Ok(())
    }

    /// The whole, as JSON.
    pub fn json(&self) -> &Value {
        &self.0
    }

    /// Sets a field by its dotted path.
    pub fn set(&mut self, path: &str, value: Value) {
        let mut v = &mut self.0;
        for part in path.split('.') {
            v = &mut v[part];
        }
        *v = value;
    }

    fn at(&self, path: &str) -> Value {
        let pointer = format!("/{}", path.replace('.', "/"));
        self.0.pointer(&pointer).cloned().unwrap_or(Value::Null)
    }

    /// A text field; empty where it is not set.
    pub fn string(&self, path: &str) -> String {
        match self.at(path) {
            Value::String(s) => s,
            Value::Null => String::new(),
            other => other.to_string(),
        }
    }

    /// A boolean field; false where it is not set.
    pub fn bool(&self, path: &str) -> bool {
        self.at(path).as_bool().unwrap_or(false)
    }

    /// A number; 0 where it is not set.
    pub fn int(&self, path: &str) -> i64 {
        let v = self.at(path);
        v.as_i64().or_else(|| v.as_str().and_then(|s| s.parse().ok())).unwrap_or(0)
    }

    /// A Go duration.
    pub fn duration(&self, path: &str) -> Result<Duration, String> {
        let text = self.string(path);
        parse_duration(&text)
            .ok_or_else(|| format!("invalid configuration: {path}: invalid duration {text:?}"))
    }

    /// A list of texts.
    pub fn strings(&self, path: &str) -> Vec<String> {
        let list = self.at(path);
        list.as_array()
            .into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(|s| s.trim().to_string()))
            .collect()
    }

    /// A map of texts; numbers become texts.
    pub fn map(&self, path: &str) -> std::collections::BTreeMap<String, String> {
        let map = self.at(path);
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), String::from);
        map.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect()
    }
}

fn is_map(flag: &str) -> bool {
    flag.starts_with("eviction-hard")
        || flag.starts_with("eviction-soft")
        || matches!(flag, "eviction-minimum-reclaim" | "system-reserved" | "kube-reserved" | "qos-reserved")
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(a), Value::Object(b)) => {
            for (k, v) in b {
                if !v.is_null() {
                    merge(a.entry(k).or_insert(Value::Null), v);
                }
            }
        }
        (a, b) => *a = b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_component_base::flags::table;

    const FILE: &str = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\naddress: 1.2.3.4\n\
        authentication:\n  anonymous: {enabled: true}\nauthentication:\n  webhook: {enabled: false}\n\
        clusterDNS: [10.0.0.2]\nevictionHard: {memory.available: 1Mi}\nmaxPods: 7\n";

    #[test]
    fn keys_without_meaning_are_named() {
        let table = config_keys::table(KEYS);
        assert_eq!(table.len(), 102);
        // Every field with a default, and every one that a flag sets, is a key.
        let known = |path: &str| table.iter().any(|(k, _)| *k == path || k.starts_with(&format!("{path}.")));
        for key in defaults().as_object().unwrap().keys() {
            assert!(known(key), "{key}");
        }
        for (_, path) in FLAGS {
            assert!(known(path), "{path}");
        }
        assert!(KubeletConfiguration::remarks(FILE).is_empty(), "{:?}", KubeletConfiguration::remarks(FILE));
        let odd = "kind: KubeletConfiguration\nclusterDNS: [10.0.0.2]\ncluterDomain: x\nhairpinMode: none\n";
        assert_eq!(
            KubeletConfiguration::remarks(odd),
            [
                "\"hairpinMode\" is accepted and has no effect: the CNI plug-in sets it",
                "unknown field \"cluterDomain\""
            ]
        );
    }

    #[test]
    fn the_file_replaces_defaults_and_flags_replace_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yml");
        std::fs::write(&path, FILE).unwrap();
        let flags = Flags::parse(
            &table(crate::FLAGS),
            ["--max-pods=9", "--eviction-hard=nodefs.available<1%", "--cluster-dns=10.0.0.3,10.0.0.4"],
        )
        .unwrap();
        let c = KubeletConfiguration::load(Some(&path), &flags).unwrap();
        assert_eq!(c.string("address"), "1.2.3.4");
        assert!(!c.bool("authentication.anonymous.enabled"), "the second of two equal keys counts");
        assert!(!c.bool("authentication.webhook.enabled"));
        assert_eq!(c.string("authentication.webhook.cacheTTL"), "2m0s");
        assert_eq!(c.int("maxPods"), 9);
        assert_eq!(c.map("evictionHard"), [("nodefs.available".to_string(), "1%".to_string())].into());
        assert_eq!(c.strings("clusterDNS"), ["10.0.0.3", "10.0.0.4"]);
        assert_eq!(c.duration("syncFrequency").unwrap(), Duration::from_secs(60));
    }

    #[test]
    fn every_flag_named_here_is_in_the_table() {
        let flags = Flags::parse(&table(crate::FLAGS), Vec::<String>::new()).unwrap();
        for (flag, _) in FLAGS {
            flags.given(flag);
        }
        let c = KubeletConfiguration::load(None, &flags).unwrap();
        assert_eq!(c.int("readOnlyPort"), 10255);
        assert_eq!(c.string("authorization.mode"), "AlwaysAllow");
    }

    #[test]
    fn another_kind_is_refused() {
        assert!(
            KubeletConfiguration::from_yaml("kind: Pod\napiVersion: v1")
                .unwrap_err()
                .contains("no kind \"Pod\"")
        );
    }
}
