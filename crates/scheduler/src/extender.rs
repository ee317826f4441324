//! Extenders: programs outside that have a say in where pods go, asked by HTTP
//! (<https://github.com/kubernetes/design-proposals-archive/blob/main/scheduling/scheduler_extender.md>). Their bodies
//! have Go's field names (`Nodes`, `NodeNames`, …); answers may be in any case, as Go reads them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Node};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::types::PodInfo;

/// The best score that an extender gives.
const MAX_SCORE: i64 = 10;

/// An extender as configuration describes it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtenderConfig {
    /// Where it is.
    pub url_prefix: String,
    /// Path of its filter; empty for none.
    pub filter_verb: String,
    /// Path of its scores; empty for none.
    pub prioritize_verb: String,
    /// What its scores count.
    pub weight: i64,
    /// Path of its binding; empty where pods are bound by the scheduler.
    pub bind_verb: String,
    /// Whether it is asked by HTTPS.
    #[serde(rename = "enableHTTPS", alias = "enableHttps")]
    pub enable_https: bool,
    /// How to know it, and how to be known.
    pub tls_config: TlsConfig,
    /// How long an answer may take: a duration's text, or nanoseconds. 5 s where there is none.
    pub http_timeout: Option<Value>,
    /// Whether names of nodes are enough for it.
    pub node_cache_capable: bool,
    /// Resources for whose sake it is asked; all pods where there are none.
    pub managed_resources: Vec<ManagedResource>,
    /// Whether pods are scheduled without it while it does not answer.
    pub ignorable: bool,
}

/// TLS for an extender.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsConfig {
    /// Take any certificate.
    pub insecure: bool,
    /// The name that its certificate must have.
    pub server_name: String,
    /// Our certificate.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// CA of its certificate.
    pub ca_file: Option<PathBuf>,
}

/// A resource that an extender manages.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagedResource {
    /// The resource.
    pub name: String,
    /// Whether the scheduler itself is not to count it.
    pub ignored_by_scheduler: bool,
}

impl ExtenderConfig {
    fn timeout(&self) -> Result<Duration, String> {
        let bad = |v: &Value| format!("extender {}: httpTimeout: invalid duration {v}", self.url_prefix);
        match &self.http_timeout {
            None | Some(Value::Null) => Ok(Duration::from_secs(5)),
            Some(Value::Number(n)) if n.as_u64() == Some(0) => Ok(Duration::from_secs(5)),
            Some(v @ Value::Number(n)) => n.as_u64().map(Duration::from_nanos).ok_or_else(|| bad(v)),
            Some(v) => {
                v.as_str().and_then(pilothouse_component_base::flags::parse_duration).ok_or_else(|| bad(v))
            }
        }
    }

    /// Resources that the scheduler itself is not to count.
    pub fn ignored_resources(&self) -> impl Iterator<Item = &str> {
        self.managed_resources.iter().filter(|r| r.ignored_by_scheduler).map(|r| r.name.as_str())
    }
}

/// What an extender says of nodes.
#[derive(Debug, Default, PartialEq)]
pub struct Filtered {
    /// Nodes that fit.
    pub fit: Vec<String>,
    /// Nodes that do not, with why.
    pub failed: BTreeMap<String, String>,
}

/// An extender to ask.
pub struct Extender {
    config: ExtenderConfig,
    client: Client,
    prefix: String,
    timeout: Duration,
}

impl Extender {
    /// Errors are one line that names the extender.
    pub fn new(config: ExtenderConfig) -> Result<Extender, String> {
        let name = config.url_prefix.clone();
        let bad = |e: String| format!("extender {name}: {e}");
        let mut url = name.trim_end_matches('/').to_string();
        if !url.contains("://") {
            url = format!("{}://{url}", if config.enable_https { "https" } else { "http" });
        }
        let uri: http::Uri = url.parse().map_err(|e| bad(format!("urlPrefix: {e}")))?;
        let prefix = uri.path().trim_end_matches('/').to_string();
        let mut root = http::Uri::builder();
        if let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) {
            root = root.scheme(scheme.clone()).authority(authority.clone()).path_and_query("/");
        }
        let timeout = config.timeout()?;
        let mut kube = kube::Config::new(root.build().map_err(|e| bad(e.to_string()))?);
        kube.connect_timeout = Some(timeout);
        let tls = &config.tls_config;
        kube.accept_invalid_certs = config.enable_https && (tls.insecure || tls.ca_file.is_none());
        kube.tls_server_name = Some(tls.server_name.clone()).filter(|n| !n.is_empty());
        let text = |p: &PathBuf| p.to_string_lossy().into_owned();
        kube.auth_info.client_certificate = tls.cert_file.as_ref().map(text);
        kube.auth_info.client_key = tls.key_file.as_ref().map(text);
        kube.root_cert_file = tls.ca_file.clone();
        let client = Client::try_from(kube).map_err(|e| bad(e.to_string()))?;
        Ok(Extender { config, client, prefix, timeout })
    }

    /// Whether pods are scheduled without it while it does not answer.
    pub fn ignorable(&self) -> bool {
        self.config.ignorable
    }

    /// Whether it binds pods itself.
    pub fn binds(&self) -> bool {
        !self.config.bind_verb.is_empty()
    }

    /// Whether it has a say in that pod.
    pub fn interested(&self, pod: &PodInfo) -> bool {
        let managed: BTreeSet<&str> = self.config.managed_resources.iter().map(|r| r.name.as_str()).collect();
        if managed.is_empty() {
            return true;
        }
        let uses = |c: &Container| {
            c.resources.iter().any(|r| {
                let all = r.requests.iter().flatten().chain(r.limits.iter().flatten());
                all.into_iter().any(|(name, _)| managed.contains(name.as_str()))
            })
        };
        pod.spec()
            .is_some_and(|s| s.containers.iter().any(uses) || s.init_containers.iter().flatten().any(uses))
    }

    async fn ask(&self, verb: &str, body: Value) -> Result<Value, String> {
        let path = format!("{}/{}", self.prefix, verb.trim_start_matches('/'));
        let request = http::Request::post(&path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|e| e.to_string())?;
        let url = format!("{}/{verb}", self.config.url_prefix.trim_end_matches('/'));
        match tokio::time::timeout(self.timeout, self.client.request::<Value>(request)).await {
            Err(_) => Err(format!("Post {url:?}: context deadline exceeded")),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(s))) => {
                Err(format!("failed {verb} with extender at URL {}, code {}", self.config.url_prefix, s.code))
            }
            Ok(Err(e)) => Err(format!("Post {url:?}: {e}")),
        }
    }

    /// Which of the nodes fit.
    pub async fn filter(&self, pod: &PodInfo, nodes: &[Node]) -> Result<Filtered, String> {
        if self.config.filter_verb.is_empty() {
            return Ok(Filtered { fit: names(nodes), failed: BTreeMap::new() });
        }
        let answer = self.ask(&self.config.filter_verb, self.arguments(pod, nodes)).await?;
        filtered(&answer, self.config.node_cache_capable)
    }

    /// Scores to add to the nodes', already weighted and on the scheduler's scale.
    pub async fn prioritize(&self, pod: &PodInfo, nodes: &[Node]) -> Result<BTreeMap<String, i64>, String> {
        if self.config.prioritize_verb.is_empty() {
            return Ok(BTreeMap::new());
        }
        let answer = self.ask(&self.config.prioritize_verb, self.arguments(pod, nodes)).await?;
        Ok(scores(&answer, self.config.weight))
    }

    /// Binds a pod.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        let body =
            json!({"PodName": pod.name, "PodNamespace": pod.namespace, "PodUID": pod.uid, "Node": node});
        let answer = self.ask(&self.config.bind_verb, body).await?;
        match field(&answer, "error").and_then(Value::as_str).filter(|e| !e.is_empty()) {
            Some(e) => Err(e.to_string()),
            None => Ok(()),
        }
    }

    fn arguments(&self, pod: &PodInfo, nodes: &[Node]) -> Value {
        let (list, names) = if self.config.node_cache_capable {
            (Value::Null, json!(names(nodes)))
        } else {
            (json!({"metadata": {}, "items": nodes}), Value::Null)
        };
        json!({"Pod": &*pod.pod, "Nodes": list, "NodeNames": names})
    }
}

fn names(nodes: &[Node]) -> Vec<String> {
    nodes.iter().filter_map(|n| n.metadata.name.clone()).collect()
}

/// A field by its name in any case.
fn field<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let found = object.as_object()?.iter().find(|(k, _)| k.eq_ignore_ascii_case(name));
    found.map(|(_, v)| v).filter(|v| !v.is_null())
}

fn filtered(answer: &Value, by_name: bool) -> Result<Filtered, String> {
    if let Some(e) = field(answer, "error").and_then(Value::as_str).filter(|e| !e.is_empty()) {
        return Err(e.to_string());
    }
    let texts =
        |v: &Value| v.as_array().map(|a| a.iter().filter_map(|n| n.as_str().map(String::from)).collect());
    let fit = match by_name {
        true => field(answer, "nodenames").and_then(texts),
        false => None,
    };
    let fit = fit.or_else(|| {
        let items = field(field(answer, "nodes")?, "items")?.as_array()?;
        Some(items.iter().filter_map(|n| n.pointer("/metadata/name")?.as_str().map(String::from)).collect())
    });
    let failed = ["failednodes", "failedandunresolvablenodes"]
        .iter()
        .filter_map(|k| field(answer, k)?.as_object())
        .flatten()
        .map(|(node, why)| (node.clone(), why.as_str().unwrap_or_default().to_string()))
        .collect();
    Ok(Filtered { fit: fit.unwrap_or_default(), failed })
}

fn scores(answer: &Value, weight: i64) -> BTreeMap<String, i64> {
    let scale = crate::framework::MAX_SCORE / MAX_SCORE;
    let one = |entry: &Value| {
        let host = field(entry, "host")?.as_str()?.to_string();
        Some((host, field(entry, "score")?.as_i64()?.saturating_mul(weight).saturating_mul(scale)))
    };
    answer.as_array().into_iter().flatten().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod;

    #[test]
    fn answers_in_any_case() {
        let answer = json!({"NodeNames": ["a"], "FailedNodes": {"b": "full"}, "Error": ""});
        let f = filtered(&answer, true).unwrap();
        assert_eq!((f.fit, f.failed["b"].as_str()), (vec!["a".to_string()], "full"));
        let answer = json!({"nodes": {"items": [{"metadata": {"name": "c"}}]}, "failedNodes": null});
        assert_eq!(filtered(&answer, false).unwrap().fit, ["c"]);
        assert_eq!(filtered(&json!({"error": "no"}), false), Err("no".into()));
        let s = scores(&json!([{"Host": "a", "Score": 7}, {"host": "b", "score": 0}]), 2);
        assert_eq!((s["a"], s["b"]), (140, 0));
    }

    #[tokio::test]
    async fn asks_by_http() {
        let url = crate::testing::serve(|path, body| match path {
            "/x/filter" => {
                assert_eq!(body["Pod"]["metadata"]["name"], "p");
                assert_eq!(body["NodeNames"], json!(["a", "b"]));
                json!({"NodeNames": ["b"], "FailedNodes": {"a": "not a"}})
            }
            "/x/prioritize" => json!([{"Host": "b", "Score": 10}]),
            _ => {
                assert_eq!((&body["PodName"], &body["Node"]), (&json!("p"), &json!("b")));
                json!({"Error": "the node is gone"})
            }
        })
        .await;
        let config = ExtenderConfig {
            url_prefix: format!("{url}/x"),
            filter_verb: "filter".into(),
            prioritize_verb: "prioritize".into(),
            bind_verb: "bind".into(),
            weight: 3,
            node_cache_capable: true,
            ..Default::default()
        };
        let e = Extender::new(config).unwrap();
        let p = pod(json!({"metadata": {"name": "p"}}));
        let nodes: Vec<Node> =
            ["a", "b"].map(|n| serde_json::from_value(json!({"metadata": {"name": n}})).unwrap()).to_vec();
        let filtered = e.filter(&p, &nodes).await.unwrap();
        assert_eq!((filtered.fit, filtered.failed["a"].as_str()), (vec!["b".to_string()], "not a"));
        assert_eq!(e.prioritize(&p, &nodes).await.unwrap()["b"], 300);
        assert_eq!(e.bind(&p, "b").await.unwrap_err(), "the node is gone");
    }

    #[tokio::test]
    async fn asked_for_the_sake_of_its_resources() {
        let config: ExtenderConfig = serde_json::from_value(json!({"urlPrefix": "http://127.0.0.1:1/x",
            "managedResources": [{"name": "example.com/gpu", "ignoredByScheduler": true}], "httpTimeout": 1000000000}))
        .unwrap();
        assert_eq!(config.ignored_resources().collect::<Vec<_>>(), ["example.com/gpu"]);
        let e = Extender::new(config).unwrap();
        assert_eq!(e.timeout, Duration::from_secs(1));
        let with =
            |resources: Value| pod(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}));
        assert!(!e.interested(&with(json!({"requests": {"cpu": "1"}}))));
        assert!(e.interested(&with(json!({"limits": {"example.com/gpu": "1"}}))));
    }
}
