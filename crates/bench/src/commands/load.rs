//! `load`: create, get, update, patch, delete.

use anyhow::Result;
use http::Method;
use serde_json::Value;

use crate::args::{Load, Operation};
use crate::client::{Call, Client};
use crate::load::{Outcome, Plan};
use crate::metrics::{self, Usage};
use crate::objects::Set;
use crate::report::{Report, machine};
use crate::target::Target;

use super::{kind_word, operation_word, some, unique};

const COLUMNS: [&str; 11] = [
    "what",
    "clients",
    "n",
    "per second",
    "p50 ms",
    "p99 ms",
    "max ms",
    "server CPU s per 1,000",
    "etcd CPU s per 1,000",
    "etcd reads per request",
    "server resident MiB after",
];

pub async fn run(args: &Load) -> Result<Report> {
    let target = Target::from_args(&args.server)?;
    let title = match args.rate {
        0 => "Load: closed loop".to_string(),
        rate => format!("Load: {rate} requests per second, latency from when each was due"),
    };
    let etcd = metrics::etcd(args.etcd_metrics.as_ref(), args.server.allow_remote).await?;
    let mut report = Report::new(&title, &COLUMNS);
    machine(&mut report);
    for kind in &args.kinds {
        for writers in &args.writers {
            let clients = *writers as usize;
            let client = Client::connect(&target, args.server.connections.into(), clients).await?;
            let set = Set::new(*kind, &args.namespace, &format!("bench-{}", unique()), args.size);
            report.fact(&format!("bytes of a {}", kind_word(*kind)), set.body(0).len() as u64);
            let plan = Plan { n: args.n, clients, rate: args.rate, limit: args.bound.limit() };
            measure(args, &client, etcd.as_ref(), &set, plan, &mut report).await?;
        }
    }
    Ok(report)
}

async fn measure(
    args: &Load,
    client: &Client,
    etcd: Option<&Client>,
    set: &Set,
    plan: Plan,
    report: &mut Report,
) -> Result<()> {
    let fill = Plan { rate: 0, clients: 16.min(plan.n as usize), ..plan };
    let mut there = false;
    for operation in &args.operations {
        if *operation != Operation::Create && !there {
            some(apply(client, set, Operation::Create, fill).await?, "create")?;
        }
        there = *operation != Operation::Delete;
        let before = Usage::of(client, args.server.pid).await;
        let etcd_before = Usage::of_etcd(etcd).await;
        let outcome = some(apply(client, set, *operation, plan).await?, operation_word(*operation))?;
        let etcd_after = Usage::of_etcd(etcd).await;
        let after = Usage::of(client, args.server.pid).await;
        let done = outcome.latencies.count();
        let thousands = done as f64 / 1e3;
        report.row(vec![
            format!("{} {}", operation_word(*operation), kind_word(set.kind)).into(),
            (plan.clients as u64).into(),
            done.into(),
            outcome.rate().into(),
            outcome.latencies.percentile(50.0).into(),
            outcome.latencies.percentile(99.0).into(),
            outcome.latencies.max().into(),
            after.cpu_since(&before).map(|cpu| cpu / thousands).into(),
            etcd_after.cpu_since(&etcd_before).map(|cpu| cpu / thousands).into(),
            etcd_after.ranges_since(&etcd_before).map(|reads| reads / done as f64).into(),
            after.mebibytes().into(),
        ]);
    }
    if there && !args.keep {
        apply(client, set, Operation::Delete, fill).await?;
    }
    Ok(())
}

/// Runs `operation` on every object of the set once.
pub async fn apply(client: &Client, set: &Set, operation: Operation, plan: Plan) -> Result<Outcome> {
    let set = match operation {
        Operation::Update => {
            let stored: Value = serde_json::from_slice(&client.any(Call::get(set.path(0))).await?)?;
            set.updated(stored)
        }
        _ => set.clone(),
    };
    let client = client.clone();
    Ok(crate::load::run(plan, move |writer, index| {
        let call = call(&set, operation, index);
        let client = client.clone();
        async move { client.drain(writer, call).await.map(|_| ()) }
    })
    .await)
}

fn call(set: &Set, operation: Operation, index: u64) -> Call {
    match operation {
        Operation::Create => Call::with(Method::POST, set.collection(), set.body(index)),
        Operation::Get => Call::get(set.path(index)),
        Operation::Update => Call::with(Method::PUT, set.path(index), set.body(index)),
        Operation::Patch => {
            let patch =
                format!("{{\"metadata\":{{\"annotations\":{{\"pilothouse-bench/patch\":\"{index}\"}}}}}}");
            let content_type = "application/strategic-merge-patch+json";
            Call { content_type, ..Call::with(Method::PATCH, set.path(index), patch) }
        }
        Operation::Delete => Call { method: Method::DELETE, ..Call::get(set.path(index)) },
    }
}
