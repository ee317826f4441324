//! `watch`: what watchers cost, and how fast they hear.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::args::{Kind, Operation, Watch};
use crate::client::{Call, Client};
use crate::load::Plan;
use crate::metrics::Usage;
use crate::objects::Set;
use crate::report::{Report, machine};
use crate::target::Target;

use super::{load::apply, some, unique};

const COLUMNS: [&str; 9] = [
    "watchers",
    "creates per second",
    "÷ without watchers",
    "p50 ms",
    "p99 ms",
    "s until all events are with all",
    "events delivered",
    "events per server CPU s",
    "server resident MiB after",
];

pub async fn run(args: &Watch) -> Result<Report> {
    let target = Target::from_args(&args.server)?;
    let client = Client::connect(&target, args.server.connections.into(), args.writers as usize).await?;
    let mut report = Report::new(
        &format!("Watch fan-out: {} ConfigMaps of 1 KB created by {} writers", args.n, args.writers),
        &COLUMNS,
    );
    machine(&mut report);
    let mut alone = None;
    for watchers in std::iter::once(0).chain(args.watchers.iter().copied()) {
        let one = measure(args, &target, &client, watchers).await?;
        let rate = one.rate;
        report.row(vec![
            watchers.into(),
            rate.into(),
            alone.map(|alone: f64| rate / alone).into(),
            one.p50.into(),
            one.p99.into(),
            one.until_all.into(),
            Some(one.events).filter(|_| watchers > 0).into(),
            one.cpu.filter(|_| watchers > 0).map(|cpu| one.events as f64 / cpu).into(),
            one.resident.into(),
        ]);
        alone.get_or_insert(rate);
    }
    Ok(report)
}

struct Measured {
    rate: f64,
    p50: Option<f64>,
    p99: Option<f64>,
    until_all: Option<f64>,
    events: u64,
    cpu: Option<f64>,
    resident: Option<f64>,
}

/// What the watchers of one run have in common.
#[derive(Default)]
struct Shared {
    /// Watchers that have not had all events yet.
    waiting: AtomicU64,
    events: AtomicU64,
    broken: AtomicBool,
    done: Notify,
}

async fn measure(args: &Watch, target: &Target, client: &Client, watchers: u32) -> Result<Measured> {
    let set = Set::new(Kind::Configmaps, &args.namespace, &format!("bench-{}", unique()), None);
    let list: Value =
        serde_json::from_slice(&client.any(Call::get(format!("{}?limit=1", set.collection()))).await?)?;
    let revision =
        list["metadata"]["resourceVersion"].as_str().context("the list has no resource version")?;
    let shared = Arc::new(Shared { waiting: AtomicU64::new(watchers.into()), ..Shared::default() });
    let path = format!("{}?watch=true&resourceVersion={revision}", set.collection());
    let mut tasks = Vec::new();
    let per_connection = args.per_connection as usize;
    let mut connection = None;
    for i in 0..watchers as usize {
        if i % per_connection == 0 || connection.is_none() {
            connection = Some(Client::connect(target, 1, per_connection).await?);
        }
        let Some(connection) = &connection else { continue };
        let response = connection.send(i % per_connection, Call::get(path.clone())).await?;
        if !response.status().is_success() {
            bail!("watch: {}", response.status());
        }
        let (shared, n) = (shared.clone(), args.n);
        // The client is kept: its connection lives as long as its handle.
        let held = connection.clone();
        tasks.push(tokio::spawn(async move {
            let _held = held;
            if !follow(response.into_body(), n, &shared).await {
                shared.broken.store(true, Ordering::Relaxed);
                shared.done.notify_one();
            }
        }));
    }
    let before = Usage::of(client, args.server.pid).await;
    let begin = Instant::now();
    let plan = Plan { n: args.n, clients: args.writers as usize, rate: 0, limit: args.bound.limit() };
    let outcome = some(apply(client, &set, Operation::Create, plan).await?, "create")?;
    let mut until_all = None;
    if watchers > 0 {
        let all = async {
            while shared.waiting.load(Ordering::Acquire) > 0 && !shared.broken.load(Ordering::Relaxed) {
                shared.done.notified().await;
            }
        };
        let in_time = tokio::time::timeout(args.bound.limit(), all).await.is_ok();
        if in_time && !shared.broken.load(Ordering::Relaxed) {
            until_all = Some(begin.elapsed().as_secs_f64());
        } else {
            let waiting = shared.waiting.load(Ordering::Relaxed);
            eprintln!("{waiting} of {watchers} watchers did not get all events");
        }
    }
    let after = Usage::of(client, args.server.pid).await;
    let events = shared.events.load(Ordering::Relaxed);
    for task in tasks {
        task.abort();
        let _ = task.await;
    }
    apply(client, &set, Operation::Delete, plan).await?;
    Ok(Measured {
        rate: outcome.rate(),
        p50: outcome.latencies.percentile(50.0),
        p99: outcome.latencies.percentile(99.0),
        until_all,
        events,
        cpu: after.cpu_since(&before),
        resident: after.mebibytes(),
    })
}

/// Counts events (one a line) until there were `n`, then only reads on. False if the stream ended before.
async fn follow(mut body: Incoming, n: u64, shared: &Shared) -> bool {
    let mut seen = 0;
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        let lines = data.iter().filter(|b| **b == b'\n').count() as u64;
        shared.events.fetch_add(lines, Ordering::Relaxed);
        let all_before = seen >= n;
        seen += lines;
        if seen >= n && !all_before && shared.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.done.notify_one();
        }
    }
    seen >= n
}
