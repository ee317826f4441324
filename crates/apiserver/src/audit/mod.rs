//! The audit log: who asked for what, and what came of it
//! (<https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>).

pub mod log;
pub mod policy;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pilothouse_apimachinery::json::{Value, json};
use tokio::sync::mpsc;

use self::log::Sink;
use self::policy::{Policy, level_name, stage_name};
use crate::config::Config;
use crate::outbound::kubeconfig::Remote;
use crate::request::{Audit, AuditLevel, AuditStage, RequestContext, RequestInfo, UserInfo};

/// Events that wait for the webhook; more are dropped, with a warning.
const WAITING: usize = 10_000;
/// Events of one call of the webhook.
const BATCH: usize = 400;
/// Longest time that an event waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(30);

/// The audit log that the flags ask for.
struct Log {
    policy: Policy,
    sink: Option<Sink>,
    legacy: bool,
    webhook: Option<mpsc::Sender<Value>>,
}

/// The audit log that the flags ask for; `None` where there is no policy or nowhere to write. Needs a tokio runtime
/// where there is a webhook. Errors name the file.
pub fn build(config: &Arc<Config>) -> Result<Option<Arc<dyn Audit>>, String> {
    let c = &config.audit;
    let Some(file) = &c.policy_file else {
        if c.log_path.is_some() || c.webhook_config.is_some() {
            tracing::warn!("No audit policy file provided, no events will be recorded");
        }
        return Ok(None);
    };
    let policy = Policy::load(file)?;
    let sink = match &c.log_path {
        Some(path) => {
            let sink = Sink::open(path, c.max_size, c.max_backup, c.max_age);
            Some(sink.map_err(|e| format!("--audit-log-path: {path}: {e}"))?)
        }
        None => None,
    };
    let webhook = match &c.webhook_config {
        Some(file) => Some(webhook(Remote::load(file)?)),
        None => None,
    };
    if sink.is_none() && webhook.is_none() {
        return Ok(None);
    }
    Ok(Some(Arc::new(Log { policy, sink, legacy: c.log_format == "legacy", webhook })))
}

/// Sends events in batches, for as long as the sender lives.
fn webhook(remote: Remote) -> mpsc::Sender<Value> {
    let (sender, mut events) = mpsc::channel::<Value>(WAITING);
    tokio::spawn(async move {
        loop {
            let mut batch = Vec::new();
            let Some(first) = events.recv().await else { return };
            batch.push(first);
            let full = async {
                while batch.len() < BATCH {
                    match events.recv().await {
                        Some(event) => batch.push(event),
                        None => return,
                    }
                }
            };
            let _ = tokio::time::timeout(BATCH_WAIT, full).await;
            let list =
                json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": batch});
            let mut wait = Duration::from_secs(10);
            for attempt in 1..=4 {
                match remote.review(&list, Duration::from_secs(30)).await {
                    Ok(_) => break,
                    Err(e) => tracing::warn!("audit webhook, attempt {attempt}: {e}"),
                }
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
        }
    });
    sender
}

fn user(u: &UserInfo) -> Value {
    let mut v = json!({"username": u.name});
    if !u.uid.is_empty() {
        v["uid"] = json!(u.uid);
    }
    if !u.groups.is_empty() {
        v["groups"] = json!(u.groups);
    }
    if !u.extra.is_empty() {
        v["extra"] = json!(u.extra);
    }
    v
}

/// The addresses that a request came by: what proxies say, then the connection's own.
fn source_ips(context: &RequestContext) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for header in ["x-forwarded-for", "x-real-ip"] {
        for part in context.header(header).split(',').map(str::trim) {
            if part.parse::<std::net::IpAddr>().is_ok() && !out.iter().any(|o| o == part) {
                out.push(part.to_string());
            }
        }
    }
    let peer = context.connection.peer.ip().to_string();
    if out.last() != Some(&peer) {
        out.push(peer);
    }
    out
}

fn object_reference(r: &RequestInfo) -> Value {
    let mut v = json!({});
    for (field, value) in [
        ("resource", &r.resource),
        ("namespace", &r.namespace),
        ("name", &r.name),
        ("apiGroup", &r.group),
        ("apiVersion", &r.version),
        ("subresource", &r.subresource),
    ] {
        if !value.is_empty() {
            v[field] = json!(value);
        }
    }
    v
}

/// The event of a stage.
fn event(
    level: AuditLevel,
    stage: AuditStage,
    context: &RequestContext,
    received: Timestamp,
    now: Timestamp,
    code: u16,
) -> Value {
    let micro = |t: Timestamp| t.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let mut v = json!({
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": level_name(level),
        "auditID": context.audit_id,
        "stage": stage_name(stage),
        "requestURI": context.parts.uri.path_and_query().map_or("", |p| p.as_str()),
        "verb": context.info.verb,
        "user": user(context.impersonator.as_ref().unwrap_or(&context.user)),
    });
    if context.impersonator.is_some() {
        v["impersonatedUser"] = user(&context.user);
    }
    v["sourceIPs"] = json!(source_ips(context));
    let agent = context.header(http::header::USER_AGENT);
    if !agent.is_empty() {
        v["userAgent"] = json!(agent);
    }
    if context.info.is_resource {
        v["objectRef"] = object_reference(&context.info);
    }
    if code != 0 {
        v["responseStatus"] = json!({"metadata": {}, "code": code});
    }
    if level >= AuditLevel::Request {
        let bodies = context.audited.lock();
        let parsed =
            |b: &Option<bytes::Bytes>| b.as_ref().and_then(|b| serde_json::from_slice::<Value>(b).ok());
        if let Some(body) = parsed(&bodies.request) {
            v["requestObject"] = body;
        }
        if level == AuditLevel::RequestResponse
            && let Some(body) = parsed(&bodies.response)
        {
            if body.get("kind").and_then(Value::as_str) == Some("Status") {
                v["responseStatus"] = body.clone();
            }
            v["responseObject"] = body;
        }
    }
    v["requestReceivedTimestamp"] = json!(micro(received));
    v["stageTimestamp"] = json!(micro(now));
    let annotations = context.annotations.lock();
    if !annotations.is_empty() {
        v["annotations"] = json!(*annotations);
    }
    v
}

/// The line of `--audit-log-format=legacy`.
fn legacy(event: &Value) -> String {
    use crate::json::{get, i64_at, str_at, texts};
    let groups = |path: &[&str]| {
        let list = texts(event, path);
        let quoted: Vec<String> = list.iter().map(|g| format!("{g:?}")).collect();
        if quoted.is_empty() { "<none>".to_string() } else { quoted.join(",") }
    };
    let or = |text: &str, other: &str| if text.is_empty() { other.to_string() } else { text.to_string() };
    let (as_user, as_groups) = if get(event, &["impersonatedUser"]).is_object() {
        (
            str_at(event, &["impersonatedUser", "username"]).to_string(),
            groups(&["impersonatedUser", "groups"]),
        )
    } else {
        ("<self>".to_string(), "<lookup>".to_string())
    };
    let code = i64_at(event, &["responseStatus", "code"]).map_or("<deferred>".to_string(), |c| c.to_string());
    format!(
        "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={:?} groups={:?} as={as_user:?} asgroups={as_groups:?} user-agent={:?} namespace={:?} uri={:?} response={code:?}\n",
        str_at(event, &["requestReceivedTimestamp"]),
        str_at(event, &["auditID"]),
        str_at(event, &["stage"]),
        texts(event, &["sourceIPs"]).first().cloned().unwrap_or_else(|| "<unknown>".into()),
        str_at(event, &["verb"]),
        or(str_at(event, &["user", "username"]), "<none>"),
        groups(&["user", "groups"]),
        str_at(event, &["userAgent"]),
        or(str_at(event, &["objectRef", "namespace"]), "<none>"),
        str_at(event, &["requestURI"]),
    )
}

impl Audit for Log {
    fn level(&self, user: &UserInfo, request: &RequestInfo) -> AuditLevel {
        self.policy.verdict(user, request).level
    }

    fn record(
        &self,
        level: AuditLevel,
        stage: AuditStage,
        context: &RequestContext,
        received: Timestamp,
        code: u16,
    ) {
        let asker = context.impersonator.as_ref().unwrap_or(&context.user);
        if level == AuditLevel::None || !self.policy.verdict(asker, &context.info).records(stage) {
            return;
        }
        let event = event(level, stage, context, received, Timestamp::now(), code);
        if let Some(sink) = &self.sink {
            let line = if self.legacy { legacy(&event) } else { format!("{event}\n") };
            if let Err(e) = sink.write(&line) {
                tracing::error!("audit log: {e}");
            }
        }
        if let Some(webhook) = &self.webhook
            && webhook.try_send(event).is_err()
        {
            tracing::warn!("audit webhook falls behind: an event is dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{AuditedBodies, Connection};
    use parking_lot::Mutex;

    fn context() -> RequestContext {
        let (parts, ()) = http::Request::get("/api/v1/namespaces/n/pods/p?x=1")
            .header("user-agent", "kubectl")
            .header("x-forwarded-for", "1.2.3.4, junk")
            .body(())
            .unwrap()
            .into_parts();
        RequestContext {
            info: RequestInfo {
                is_resource: true,
                verb: "get".into(),
                version: "v1".into(),
                resource: "pods".into(),
                namespace: "n".into(),
                name: "p".into(),
                ..Default::default()
            },
            user: UserInfo { name: "jane".into(), ..Default::default() },
            impersonator: Some(UserInfo {
                name: "admin".into(),
                groups: vec!["system:masters".into()],
                ..Default::default()
            }),
            parts,
            query: vec![],
            connection: Connection {
                peer: "127.0.0.1:9".parse().unwrap(),
                local: "127.0.0.1:6443".parse().unwrap(),
                certificates: Arc::default(),
            },
            audit_id: "id".into(),
            warnings: Mutex::default(),
            annotations: Mutex::default(),
            audited: Mutex::new(AuditedBodies { request: Some(r#"{"a":1}"#.into()), ..Default::default() }),
        }
    }

    #[test]
    fn writes_events() {
        let t: Timestamp = "2020-01-02T03:04:05.5Z".parse().unwrap();
        let e = event(AuditLevel::Request, AuditStage::ResponseComplete, &context(), t, t, 200);
        assert_eq!(e["user"]["username"], "admin");
        assert_eq!(e["impersonatedUser"]["username"], "jane");
        assert_eq!(e["sourceIPs"], json!(["1.2.3.4", "127.0.0.1"]));
        assert_eq!(e["requestURI"], "/api/v1/namespaces/n/pods/p?x=1");
        assert_eq!(e["stageTimestamp"], "2020-01-02T03:04:05.500000Z");
        assert_eq!(e["requestObject"], json!({"a": 1}));
        assert_eq!(e["responseStatus"]["code"], 200);
        assert!(legacy(&e).contains("user=\"admin\""));
        let e = event(AuditLevel::Metadata, AuditStage::RequestReceived, &context(), t, t, 0);
        assert!(e.get("requestObject").is_none() && e.get("responseStatus").is_none());
    }
}
