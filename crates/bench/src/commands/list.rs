//! `list`: many pods at once.

use anyhow::Result;
use serde::Deserialize;

use crate::args::{Form, Kind, List, Operation, Recency};
use crate::client::{Call, Client};
use crate::load::{self, Plan};
use crate::metrics::Usage;
use crate::objects::Set;
use crate::report::{Report, machine};
use crate::target::Target;

use super::{load::apply, some, unique};

const COLUMNS: [&str; 9] = [
    "list",
    "clients",
    "lists",
    "MB each",
    "per second",
    "p50 ms",
    "p99 ms",
    "lists per server CPU s",
    "server resident MiB after",
];

pub async fn run(args: &List) -> Result<Report> {
    let target = Target::from_args(&args.server)?;
    let clients = args.clients as usize;
    let client = Client::connect(&target, args.server.connections.into(), clients).await?;
    let set = Set::new(Kind::Pods, &args.namespace, &format!("bench-{}", unique()), None);
    let fill = Plan { n: args.n, clients: 16, rate: 0, limit: args.bound.limit() };
    some(apply(&client, &set, Operation::Create, fill).await?, "create")?;
    let mut report = Report::new(&format!("Lists of {} pods", args.n), &COLUMNS);
    machine(&mut report);
    let measured = measure(args, &client, &set, &mut report).await;
    apply(&client, &set, Operation::Delete, fill).await?;
    measured.map(|()| report)
}

async fn measure(args: &List, client: &Client, set: &Set, report: &mut Report) -> Result<()> {
    for form in &args.forms {
        for recency in &args.recencies {
            let path = path(args, set, *recency);
            let accept = accept(*form);
            let chunked = args.chunk > 0 && *form != Form::Protobuf;
            let call = Call { accept, ..Call::get(path) };
            let mut bytes = 0;
            if !chunked {
                bytes = client.drain(0, call.clone()).await?;
            }
            let before = Usage::of(client, args.server.pid).await;
            let plan =
                Plan { n: args.lists, clients: args.clients as usize, rate: 0, limit: args.bound.limit() };
            let shared = client.clone();
            let outcome = load::run(plan, move |one, _| {
                let (client, call) = (shared.clone(), call.clone());
                async move {
                    match chunked {
                        true => chunks(&client, one, call).await,
                        false => client.drain(one, call).await.map(|_| ()),
                    }
                }
            })
            .await;
            let outcome = some(outcome, "list")?;
            let after = Usage::of(client, args.server.pid).await;
            let done = outcome.latencies.count();
            report.row(vec![
                word(args, *form, *recency).into(),
                args.clients.into(),
                done.into(),
                Some(bytes as f64 / 1e6).filter(|b| *b > 0.0).into(),
                outcome.rate().into(),
                outcome.latencies.percentile(50.0).into(),
                outcome.latencies.percentile(99.0).into(),
                after.cpu_since(&before).map(|cpu| done as f64 / cpu).into(),
                after.mebibytes().into(),
            ]);
        }
    }
    Ok(())
}

fn path(args: &List, set: &Set, recency: Recency) -> String {
    let mut query = Vec::new();
    if recency == Recency::Any {
        query.push("resourceVersion=0".to_string());
    }
    if args.chunk > 0 {
        query.push(format!("limit={}", args.chunk));
    }
    for (name, selector) in [("labelSelector", &args.selector), ("fieldSelector", &args.field_selector)] {
        if let Some(text) = selector {
            query.push(format!("{name}={}", escape(text)));
        }
    }
    format!("{}?{}", set.collection(), query.join("&"))
}

/// Percent-encodes what may not stand in a query.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b',' => {
                out.push(b.into())
            }
            _ => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

fn accept(form: Form) -> &'static str {
    match form {
        Form::Json => "application/json",
        Form::Protobuf => "application/vnd.kubernetes.protobuf",
        Form::Table => "application/json;as=Table;v=v1;g=meta.k8s.io",
    }
}

fn word(args: &List, form: Form, recency: Recency) -> String {
    let form = match form {
        Form::Json => "JSON",
        Form::Protobuf => "protobuf",
        Form::Table => "table",
    };
    let recency = match recency {
        Recency::Any => "resourceVersion=0",
        Recency::Consistent => "most recent",
    };
    let mut word = format!("{form}, {recency}");
    if args.chunk > 0 {
        word.push_str(&format!(", chunks of {}", args.chunk));
    }
    if args.selector.is_some() || args.field_selector.is_some() {
        word.push_str(", selector");
    }
    word
}

#[derive(Deserialize)]
struct Chunk {
    metadata: ChunkMetadata,
}

#[derive(Deserialize)]
struct ChunkMetadata {
    #[serde(default, rename = "continue")]
    token: String,
}

/// Follows `continue` to the end.
async fn chunks(client: &Client, one: usize, call: Call) -> Result<()> {
    let mut path = call.path.clone();
    loop {
        let body = client.call(one, Call { path, ..call.clone() }).await?;
        let chunk: Chunk = serde_json::from_slice(&body)?;
        if chunk.metadata.token.is_empty() {
            return Ok(());
        }
        // Only the first chunk may name a resource version.
        let rest = call.path.replace("resourceVersion=0&", "");
        path = format!("{rest}&continue={}", escape(&chunk.metadata.token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_escaped() {
        assert_eq!(escape("app=a,b!=c d"), "app%3Da,b%21%3Dc%20d");
    }
}
