//! How long the engine takes for a pod of ordinary size. Prints; judges nothing, for machines differ.

use std::time::Instant;

use pilothouse_api::decode::request::Media;
use pilothouse_api::scheme::Scheme;
use pilothouse_apimachinery::json::json;
use pilothouse_apimachinery::version::Release;

fn pod() -> Vec<u8> {
    let container = |name: &str| {
        json!({
            "name": name,
            "image": "registry.example.com/team/application:1.2.3",
            "command": ["/bin/application", "--listen=:8080", "--log-level=info"],
            "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "MODE", "value": "production"}],
            "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "500m", "memory": "256Mi"}},
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "initialDelaySeconds": 5},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "config", "mountPath": "/etc/application", "readOnly": true}],
        })
    };
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "application-0", "labels": {"app": "application", "tier": "backend"}, "annotations": {"example.com/a": "b"}},
        "spec": {
            "containers": [container("application"), container("sidecar")],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "config", "configMap": {"name": "application"}}],
            "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
        },
    });
    pod.to_string().into_bytes()
}

#[test]
fn a_pod_through_the_engine() {
    let start = Instant::now();
    let scheme = Scheme::new(Release::V1_20);
    println!("scheme of v1.20: {:?}", start.elapsed());
    let pods = scheme.resource("", "v1", "pods").unwrap();
    let context = pods.context("", false);
    let body = pod();
    let rounds = if cfg!(debug_assertions) { 200 } else { 20_000 };
    let mut size = 0;
    let start = Instant::now();
    for _ in 0..rounds {
        let mut object = pods.decode(&body, Media::Json).unwrap().object;
        pods.to_hub(&mut object, &context);
        pods.prepare_create(&mut object, &context);
        let stored = pods.to_stored(object);
        size = serde_json::to_vec(&stored).unwrap().len();
    }
    println!("{} bytes in, {size} out: {:?} each", body.len(), start.elapsed() / rounds);
    assert!(size > body.len(), "defaults are added");
}
