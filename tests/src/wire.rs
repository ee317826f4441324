//! Exchanges with an API server, as data: requests, and the answers that Kubernetes v1.20 gives.
//!
//! A file holds scenarios, each a list of steps that follow each other:
//!
//! ```json
//! [{"name": "…", "steps": [
//!   {"do": "POST", "path": "/api/v1/namespaces", "headers": {"Accept": "…"}, "body": {},
//!    "capture": {"rv": "metadata.resourceVersion"}, "expect": {"status": 201, "body": {}}}]}]
//! ```
//!
//! `${rv}` in a later path or body stands for what a step captured. `body` may be text, sent as it is. `as` is the
//! token of another user. `stream` marks a watch: its body is a list of events. With `retry` a step is sent again until
//! its status is the expected one. A step without `expect` only prepares.
//! What no two servers share (uids, times, allocated addresses and ports) is made equal before comparing.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use anyhow::Context;
use bytes::Bytes;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::apiserver::{ApiServer, TOKEN};

/// How long a step with `retry` may take to get its status.
const RETRY: std::time::Duration = std::time::Duration::from_secs(15);

/// Steps that belong together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scenario {
    /// What it is about.
    pub name: String,
    /// What is sent, in order.
    pub steps: Vec<Step>,
}

/// One request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Step {
    /// Method.
    #[serde(rename = "do")]
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Whose token.
    #[serde(rename = "as", default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Headers beside the usual ones; `null` takes a usual one away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Option<String>>,
    /// Body: JSON, or text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// Names for values of the answer, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capture: BTreeMap<String, String>,
    /// Whether the answer is a stream of events.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stream: bool,
    /// Whether to send it again, for some seconds, until the status is the expected one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry: bool,
    /// What must come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect: Option<Expect>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expect {
    /// HTTP status.
    pub status: u16,
    /// Body, normalised; absent where it does not matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
}

/// Plays scenarios one after the other; the differences, and how many answers were compared. With `record`, the
/// expectations of steps that have one are replaced by what the server answers.
pub async fn play(
    server: &ApiServer,
    scenarios: &mut [Scenario],
    record: bool,
) -> anyhow::Result<(Vec<String>, usize)> {
    let (mut differences, mut compared) = (Vec::new(), 0);
    for scenario in scenarios {
        let mut captured = BTreeMap::new();
        for (number, step) in scenario.steps.iter_mut().enumerate() {
            let place = format!("{} step {number} {} {}", scenario.name, step.method, step.path);
            let mut got = exchange(server, step, &mut captured).await.with_context(|| place.clone())?;
            let end = tokio::time::Instant::now() + RETRY;
            while step.retry
                && step.expect.as_ref().is_some_and(|e| e.status != got.status)
                && tokio::time::Instant::now() < end
            {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                got = exchange(server, step, &mut captured).await.with_context(|| place.clone())?;
            }
            let Some(want) = &mut step.expect else {
                if got.status >= 400 {
                    differences
                        .push(format!("{place}\n    prepares, but gives {} {:?}", got.status, got.body));
                }
                continue;
            };
            compared += 1;
            if record {
                want.status = got.status;
                want.body = want.body.is_some().then_some(got.body).flatten();
                continue;
            }
            let mut found = Vec::new();
            if want.status != got.status {
                found.push(format!(".status: want {} got {}", want.status, got.status));
            }
            if let (Some(want), Some(got)) = (&want.body, &got.body) {
                difference("", &normal(want, ""), got, &mut found);
            }
            if !found.is_empty() {
                differences.push(format!("{place}\n    {}", found.join("\n    ")));
            }
        }
    }
    Ok((differences, compared))
}

async fn exchange(
    server: &ApiServer,
    step: &Step,
    captured: &mut BTreeMap<String, String>,
) -> anyhow::Result<Expect> {
    let mut client = server.client(step.user.as_deref().unwrap_or(TOKEN)).await?;
    let fill =
        |text: &str| captured.iter().fold(text.to_string(), |t, (k, v)| t.replace(&format!("${{{k}}}"), v));
    let body = match &step.body {
        None => None,
        Some(Value::String(text)) => Some(Bytes::from(fill(text))),
        Some(json) => Some(Bytes::from(fill(&json.to_string()))),
    };
    let headers: Vec<(&str, Option<&str>)> =
        step.headers.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
    let answer = client.send(&step.method, &fill(&step.path), &headers, body).await?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let body = if step.stream {
        Value::Array(text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|_| l.into())).collect())
    } else {
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    for (name, path) in &step.capture {
        let value = path.split('.').try_fold(&body, |v, part| match part.parse::<usize>() {
            Ok(i) if v.is_array() => v.get(i),
            _ => v.get(part),
        });
        let value = value.with_context(|| format!("{path} is not in the answer: {body}"))?;
        captured.insert(name.clone(), value.as_str().map_or_else(|| value.to_string(), String::from));
    }
    Ok(Expect { status: answer.status, body: Some(normal(&body, "")) })
}

static ADDRESS: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b10\.0\.0\.\d{1,3}\b"));
static UID: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"));
static TIME: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z\b"));
static AGE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^((\d+[smhdy])+|<unknown>|<invalid>)$"));
static PORT: LazyLock<Regex> = LazyLock::new(|| pattern(r":\d{5}/"));

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern")
}

/// Fields whose values no two servers share.
const VOLATILE: &[&str] = &[
    "uid",
    "creationTimestamp",
    "resourceVersion",
    "selfLink",
    "deletionTimestamp",
    "time",
    "lastTransitionTime",
    "lastUpdateTime",
    "renewTime",
    "acquireTime",
    "continue",
    "storageVersionHash",
    "remainingItemCount",
    "expirationTimestamp",
    "controller-uid",
    "token",
];

/// A body with all that differs between servers made equal. `key` is the field it is the value of.
pub fn normal(value: &Value, key: &str) -> Value {
    match value {
        Value::Object(fields) => normal_object(fields),
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(|i| normal(i, key)).collect();
            match key {
                "causes" => items.sort_by_key(Value::to_string),
                "cells" => items.iter_mut().for_each(normal_cell),
                _ => {}
            }
            Value::Array(items)
        }
        Value::String(text) => {
            let text = TIME.replace_all(text, "<time>");
            let text = UID.replace_all(&text, "<uid>");
            let text = ADDRESS.replace_all(&text, "<ip>");
            Value::String(if key == "message" { normal_message(&text) } else { text.into_owned() })
        }
        other => other.clone(),
    }
}

fn normal_object(fields: &Map<String, Value>) -> Value {
    let mut out = Map::new();
    for (key, value) in fields {
        let scalar = !value.is_object() && !value.is_array();
        let set = !matches!(value, Value::Null) && value != "" && value != 0;
        let value = match key.as_str() {
            "managedFields" => continue,
            k if VOLATILE.contains(&k) && scalar => {
                if set {
                    format!("<{k}>").into()
                } else {
                    value.clone()
                }
            }
            "nodePort" | "healthCheckNodePort" if set => "<port>".into(),
            k => normal(value, k),
        };
        out.insert(key.clone(), value);
    }
    if let (Some(Value::String(generate)), Some(Value::String(name))) =
        (out.get("generateName"), out.get("name"))
        && name.len() == generate.len() + 5
        && name.starts_with(generate.as_str())
    {
        let name = format!("{generate}<5>");
        out.insert("name".into(), name.into());
    }
    Value::Object(out)
}

fn normal_cell(cell: &mut Value) {
    if let Value::String(text) = cell {
        *text =
            if AGE.is_match(text) { "<age>".into() } else { PORT.replace_all(text, ":<port>/").into_owned() };
    }
}

/// What a decoder says of a fault is its own; the order of faults is a map's.
fn normal_message(text: &str) -> String {
    if let Some((head, _)) =
        text.split_once(": ").filter(|(head, _)| head.contains("cannot be handled as a "))
    {
        return head.to_string();
    }
    if let Some((head, faults)) = text.split_once("is invalid: [")
        && let Some(faults) = faults.strip_suffix(']')
    {
        let mut faults: Vec<&str> = faults.split(", ").collect();
        faults.sort_unstable();
        return format!("{head}is invalid: [{}]", faults.join(", "));
    }
    text.to_string()
}

fn difference(path: &str, want: &Value, got: &Value, found: &mut Vec<String>) {
    let short = |v: &Value| v.to_string().chars().take(200).collect::<String>();
    match (want, got) {
        (Value::Object(w), Value::Object(g)) => {
            for (key, value) in w {
                match g.get(key) {
                    Some(other) => difference(&format!("{path}.{key}"), value, other, found),
                    None => found.push(format!("{path}.{key}: missing, want {}", short(value))),
                }
            }
            for (key, value) in g.iter().filter(|(k, _)| !w.contains_key(*k)) {
                found.push(format!("{path}.{key}: not wanted, got {}", short(value)));
            }
        }
        (Value::Array(w), Value::Array(g)) if w.len() == g.len() => {
            for (i, (w, g)) in w.iter().zip(g).enumerate() {
                difference(&format!("{path}[{i}]"), w, g, found);
            }
        }
        _ if want != got => found.push(format!("{path}: want {} got {}", short(want), short(got))),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_servers_do_not_share_is_made_equal() {
        let body = json!({
            "metadata": {"generateName": "a-", "name": "a-x7k2p", "uid": "u", "resourceVersion": ""},
            "spec": {"clusterIP": "10.0.0.17", "ports": [{"nodePort": 31000}, {"nodePort": 0}]},
            "cells": ["a", "80:31000/TCP", "5m12s"],
            "message": "X \"a\" is invalid: [b: Required value, a: Required value]",
        });
        assert_eq!(
            normal(&body, ""),
            json!({
                "metadata": {"generateName": "a-", "name": "a-<5>", "uid": "<uid>", "resourceVersion": ""},
                "spec": {"clusterIP": "<ip>", "ports": [{"nodePort": "<port>"}, {"nodePort": 0}]},
                "cells": ["a", "80:<port>/TCP", "<age>"],
                "message": "X \"a\" is invalid: [a: Required value, b: Required value]",
            })
        );
    }

    #[test]
    fn differences_name_the_field() {
        let mut found = Vec::new();
        difference(
            "",
            &json!({"a": [1, {"b": 2}], "c": 3}),
            &json!({"a": [1, {"b": 4}], "d": 5}),
            &mut found,
        );
        assert_eq!(found, [".a[1].b: want 2 got 4", ".c: missing, want 3", ".d: not wanted, got 5"]);
    }
}
