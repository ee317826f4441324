//! What tests need: objects from a few fields.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use crate::cache::Cluster;
use crate::listers::Listers;
use crate::types::PodInfo;

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(a), Value::Object(b)) => {
            b.into_iter().for_each(|(k, v)| merge(a.entry(k).or_insert(Value::Null), v))
        }
        (a, b) => *a = b,
    }
}

/// A pod `ns/p` with one container, changed by `fields`.
pub(crate) fn pod_object(fields: Value) -> Pod {
    let mut value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "ns", "name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "schedulerName": "default-scheduler"}});
    merge(&mut value, fields);
    if value.pointer("/metadata/uid").is_none() {
        let uid = format!(
            "{}/{}",
            value["metadata"]["namespace"].as_str().unwrap(),
            value["metadata"]["name"].as_str().unwrap()
        );
        value["metadata"]["uid"] = uid.into();
    }
    serde_json::from_value(value).unwrap()
}

pub(crate) fn pod(fields: Value) -> PodInfo {
    PodInfo::new(Arc::new(pod_object(fields)))
}

/// A node of 4 CPUs, 8 GiB and 110 pods, changed by `fields`.
pub(crate) fn node(name: &str, fields: Value) -> Node {
    let mut value = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110", "ephemeral-storage": "100Gi"}}});
    merge(&mut value, fields);
    serde_json::from_value(value).unwrap()
}

pub(crate) fn cluster<const N: usize, const P: usize>(nodes: [Node; N], pods: [PodInfo; P]) -> Cluster {
    cluster_with(Listers::default(), nodes, pods)
}

pub(crate) fn cluster_with<const N: usize, const P: usize>(
    listers: Listers,
    nodes: [Node; N],
    pods: [PodInfo; P],
) -> Cluster {
    let mut cluster = Cluster::new(Arc::new(listers));
    nodes.into_iter().for_each(|n| cluster.set_node(Arc::new(n)));
    pods.into_iter().for_each(|p| cluster.set_pod(Arc::new(p)));
    cluster
}

/// A pod of that name on a node, with labels `app: <app>`.
pub(crate) fn placed(name: &str, node: &str, app: &str, fields: Value) -> PodInfo {
    let mut value = json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": {"nodeName": node}});
    merge(&mut value, fields);
    pod(value)
}

/// What the filter says of each node: `ok` or the reasons.
pub(crate) fn verdicts(
    plugin: &dyn crate::framework::FilterPlugin,
    pod: &PodInfo,
    cluster: &Cluster,
) -> Vec<String> {
    let filter = match plugin.pre_filter(pod, cluster) {
        Ok(filter) => filter,
        Err(status) => return vec![format!("none: {}", status.reasons.join(", "))],
    };
    cluster
        .nodes()
        .map(|n| match filter.as_ref().map_or(Ok(()), |f| f.filter(pod, n, cluster)) {
            Ok(()) => "ok".to_string(),
            Err(status) => status.reasons.join(", "),
        })
        .collect()
}

/// The normalized scores of all nodes.
pub(crate) fn scores(
    plugin: &dyn crate::framework::ScorePlugin,
    pod: &PodInfo,
    cluster: &Cluster,
) -> Vec<i64> {
    let nodes: Vec<_> = cluster.nodes().collect();
    let Some(score) = plugin.pre_score(pod, &nodes, cluster) else { return vec![0; nodes.len()] };
    let mut scores: Vec<i64> = nodes.iter().map(|n| score.score(pod, n, cluster)).collect();
    score.normalize(&nodes, &mut scores);
    scores
}

/// A web server that answers each request's path and body with what `answer` says; its address.
pub async fn serve(answer: impl Fn(&str, serde_json::Value) -> serde_json::Value + Send + 'static) -> String {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let (mut first, mut length) = (String::new(), 0);
            stream.read_line(&mut first).await.unwrap();
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                let (name, value) = line.trim().split_once(':').unwrap_or_default();
                match name.to_ascii_lowercase().as_str() {
                    "" => break,
                    "content-length" => length = value.trim().parse().unwrap(),
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            let path = first.split(' ').nth(1).unwrap_or_default();
            let text = answer(path, serde_json::from_slice(&body).unwrap()).to_string();
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: ";
            let _ = stream.write_all(format!("{head}{}\r\n\r\n{text}", text.len()).as_bytes()).await;
        }
    });
    address
}
