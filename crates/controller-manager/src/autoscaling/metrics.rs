//! Asking the metrics APIs (`metrics.k8s.io`, `custom.metrics.k8s.io`, `external.metrics.k8s.io`), which add-ons serve.
//! Texts are Kubernetes'.

use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use kube::Client;
use pilothouse_apimachinery::quantity::Quantity;
use pilothouse_apimachinery::time::parse_duration;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::replicas::{PodMetric, PodMetrics};

const NOT_SERVED: &str = "the server could not find the requested resource";

/// What Go's client says of a failed call: the server's message, or, where the answer is no `Status` (nobody serves
/// that path), a text made from the code.
pub fn failure(error: &kube::Error, call: &str) -> String {
    match error {
        kube::Error::Api(s) if s.reason == "Failed to parse error data" => {
            let text = match s.code {
                404 => NOT_SERVED,
                503 => "the server is currently unable to handle the request",
                500 => "an error on the server has prevented the request from succeeding",
                _ => {
                    return format!(
                        "the server responded with the status code {} but did not return more information ({call})",
                        s.code
                    );
                }
            };
            format!("{text} ({call})")
        }
        other => match crate::control::message(other) {
            text if text == NOT_SERVED => format!("{NOT_SERVED} ({call})"),
            text => text,
        },
    }
}

/// Gets a path.
pub async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, kube::Error> {
    let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// A label selector as a query parameter's value.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

/// What the pods of a selector use of a resource; `container`: only that one, empty for the sum of all.
pub async fn resource(
    client: &Client,
    namespace: &str,
    selector: &str,
    resource: &str,
    container: &str,
) -> Result<PodMetrics, String> {
    let path = format!(
        "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}",
        escape(selector)
    );
    let list: Value = get(client, &path).await.map_err(|e| {
        format!(
            "unable to fetch metrics from resource metrics API: {}",
            failure(&e, "get pods.metrics.k8s.io")
        )
    })?;
    pod_usage(&list, resource, container)
}

/// Reads a `PodMetricsList`.
fn pod_usage(list: &Value, resource: &str, container: &str) -> Result<PodMetrics, String> {
    let items = list["items"].as_array().filter(|i| !i.is_empty());
    let Some(items) = items else { return Err("no metrics returned from resource metrics API".into()) };
    let mut all = PodMetrics::new();
    for item in items {
        let name = item["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = item["metadata"]["namespace"].as_str().unwrap_or_default();
        let containers = item["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let chosen: Vec<&Value> =
            containers.iter().filter(|c| container.is_empty() || c["name"] == container).collect();
        if !container.is_empty() && chosen.is_empty() {
            return Err(format!(
                "failed to get container metrics: container {container} not present in metrics for pod {namespace}/{name}"
            ));
        }
        // A pod of which one container has no value counts as having none.
        let value: Option<i64> = chosen.iter().map(|c| milli(&c["usage"][resource])).sum();
        if let Some(value) = value {
            let window = item["window"].as_str().and_then(|w| parse_duration(w).ok()).unwrap_or_default();
            let window = Duration::from_nanos(u64::try_from(window).unwrap_or_default());
            all.insert(name.into(), PodMetric { at: time(&item["timestamp"]), window, value });
        }
    }
    Ok(all)
}

fn milli(quantity: &Value) -> Option<i64> {
    Quantity::parse(quantity.as_str()?).ok().map(|q| q.milli_value())
}

fn time(text: &Value) -> Timestamp {
    text.as_str().and_then(|t| t.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The version of the custom metrics API that is served.
async fn custom_version(client: &Client) -> Result<String, String> {
    let groups = client.list_api_groups().await.map_err(|e| failure(&e, "get"))?;
    groups
        .groups
        .into_iter()
        .find(|g| g.name == "custom.metrics.k8s.io")
        .and_then(|g| g.preferred_version.or(g.versions.into_iter().next()))
        .map(|v| v.group_version)
        .ok_or_else(|| "no custom metrics API (custom.metrics.k8s.io) registered".into())
}

async fn custom(client: &Client, tail: &str, call: &str) -> Result<Vec<Value>, String> {
    let context = |e: String| format!("unable to fetch metrics from custom metrics API: {e}");
    let version = custom_version(client).await.map_err(context)?;
    let mut list: Value =
        get(client, &format!("/apis/{version}/{tail}")).await.map_err(|e| context(failure(&e, call)))?;
    match list["items"].take() {
        Value::Array(items) if !items.is_empty() => Ok(items),
        _ => Err("no metrics returned from custom metrics API".into()),
    }
}

/// A custom metric of the pods of a selector.
pub async fn pods(
    client: &Client,
    namespace: &str,
    selector: &str,
    metric: &str,
    metric_selector: &str,
) -> Result<PodMetrics, String> {
    let tail = format!(
        "namespaces/{namespace}/pods/*/{metric}?labelSelector={}&metricLabelSelector={}",
        escape(selector),
        escape(metric_selector)
    );
    let items = custom(client, &tail, "get pods.custom.metrics.k8s.io *").await?;
    Ok(items
        .iter()
        .filter_map(|m| {
            let name = m["describedObject"]["name"].as_str()?;
            let window = Duration::from_secs(m["windowSeconds"].as_u64().unwrap_or(60));
            Some((name.into(), PodMetric { at: time(&m["timestamp"]), window, value: milli(&m["value"])? }))
        })
        .collect())
}

/// A custom metric of one object, whose resource is `plural.group`.
pub async fn object(
    client: &Client,
    namespace: &str,
    object: &CrossVersionObjectReference,
    resource: &str,
    metric: &str,
    metric_selector: &str,
) -> Result<i64, String> {
    let name = &object.name;
    let selector = escape(metric_selector);
    let tail = match object.kind.as_str() {
        "Namespace" => format!("namespaces/{name}/metrics/{metric}?metricLabelSelector={selector}"),
        _ => format!("namespaces/{namespace}/{resource}/{name}/{metric}?metricLabelSelector={selector}"),
    };
    let items = custom(client, &tail, &format!("get {resource}.custom.metrics.k8s.io {name}")).await?;
    Ok(items.first().and_then(|m| milli(&m["value"])).unwrap_or_default())
}

/// The sum of an external metric's values.
pub async fn external(client: &Client, namespace: &str, metric: &str, selector: &str) -> Result<i64, String> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}?labelSelector={}",
        escape(selector)
    );
    let list: Value = get(client, &path).await.map_err(|e| {
        let call = format!("get {metric}.external.metrics.k8s.io");
        format!("unable to fetch metrics from external metrics API: {}", failure(&e, &call))
    })?;
    match list["items"].as_array() {
        Some(items) if !items.is_empty() => Ok(items.iter().filter_map(|m| milli(&m["value"])).sum()),
        _ => Err("no metrics returned from external metrics API".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use serde_json::json;

    #[test]
    fn usage_is_a_pods_sum_or_one_containers() {
        let list = json!({"items": [
            {"metadata": {"name": "a", "namespace": "ns"}, "timestamp": "2024-01-01T00:00:00Z", "window": "30s",
             "containers": [{"name": "c", "usage": {"cpu": "100m"}}, {"name": "d", "usage": {"cpu": "1500000n"}}]},
            {"metadata": {"name": "b", "namespace": "ns"}, "timestamp": "2024-01-01T00:00:00Z", "window": "30s",
             "containers": [{"name": "c", "usage": {"memory": "1Ki"}}]}]});
        let all = pod_usage(&list, "cpu", "").unwrap();
        assert_eq!((all.len(), all["a"].value, all["a"].window), (1, 102, Duration::from_secs(30)));
        assert_eq!(pod_usage(&list, "cpu", "c").unwrap()["a"].value, 100);
        assert_eq!(
            pod_usage(&list, "cpu", "d").unwrap_err(),
            "failed to get container metrics: container d not present in metrics for pod ns/b"
        );
        assert_eq!(
            pod_usage(&json!({"items": []}), "cpu", "").unwrap_err(),
            "no metrics returned from resource metrics API"
        );
    }

    #[test]
    fn an_api_that_nobody_serves_is_told_as_gos_client_does() {
        let answer = |code| {
            let status = Status::failure("404 page not found", "Failed to parse error data").with_code(code);
            failure(&kube::Error::Api(status.boxed()), "get pods.metrics.k8s.io")
        };
        assert_eq!(answer(404), "the server could not find the requested resource (get pods.metrics.k8s.io)");
        assert_eq!(
            answer(503),
            "the server is currently unable to handle the request (get pods.metrics.k8s.io)"
        );
        let status = Status::failure(NOT_SERVED, "NotFound").with_code(404);
        assert_eq!(failure(&kube::Error::Api(status.boxed()), "get x"), format!("{NOT_SERVED} (get x)"));
        let status = Status::failure("pods is forbidden", "Forbidden").with_code(403);
        assert_eq!(failure(&kube::Error::Api(status.boxed()), "x"), "pods is forbidden");
    }
}
