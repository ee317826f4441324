//! `stress`: what others notice of a client that behaves badly.
//!
//! A few clients create and get ConfigMaps at a steady rate that leaves the server most of its time. Beside them comes
//! one nuisance after the other; their latencies and the server's memory are compared with those of nobody beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use http::Method;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::args::{Kind, Nuisance, Operation, Stress};
use crate::client::{Call, Client};
use crate::load::{self, Plan};
use crate::metrics::Usage;
use crate::objects::Set;
use crate::report::{Report, machine};
use crate::target::Target;

use super::{load::apply, some, unique};

const COLUMNS: [&str; 10] = [
    "beside",
    "creates answered",
    "create p50 ms",
    "create p99 ms",
    "get p50 ms",
    "get p99 ms",
    "done by the nuisance",
    "server CPU s",
    "server resident MiB at most",
    "server resident MiB after",
];

/// Clients of each sort in the foreground.
const CLIENTS: usize = 4;
/// Bytes of the ConfigMaps created: large enough for watchers that do not read to fill their connection.
const SIZE: u32 = 20_000;
/// How often the server's memory is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// A ConfigMap larger than any server takes.
const TOO_LARGE: u32 = 3 << 20;

pub async fn run(args: &Stress) -> Result<Report> {
    let target = Target::from_args(&args.server)?;
    let client = Client::connect(&target, args.server.connections.into(), CLIENTS).await?;
    let title = format!("{} creates and {} gets a second beside a nuisance", args.rate, args.rate);
    let mut report = Report::new(&title, &COLUMNS);
    machine(&mut report);
    for nuisance in std::iter::once(None).chain(args.nuisances.iter().copied().map(Some)) {
        let set = Set::new(Kind::Configmaps, &args.namespace, &format!("bench-{}", unique()), Some(SIZE));
        let plan = Plan {
            n: u64::from(args.rate) * args.seconds,
            clients: CLIENTS,
            rate: args.rate,
            limit: args.bound.limit(),
        };
        let row = beside(args, &target, &client, &set, plan, nuisance).await;
        apply(&client, &set, Operation::Delete, Plan { rate: 0, clients: 16, ..plan }).await?;
        report.row(row?);
    }
    Ok(report)
}

async fn beside(
    args: &Stress,
    target: &Target,
    client: &Client,
    set: &Set,
    plan: Plan,
    nuisance: Option<Nuisance>,
) -> Result<Vec<crate::report::Cell>> {
    let done = Arc::new(AtomicU64::new(0));
    let before = Usage::of(client, args.server.pid).await;
    let mut others = JoinSet::new();
    if let Some(nuisance) = nuisance {
        start(nuisance, args, target, set, &done, &mut others).await?;
    }
    let most = Arc::new(AtomicU64::new(0));
    let (watched, seen, pid) = (client.clone(), most.clone(), args.server.pid);
    others.spawn(async move {
        loop {
            let resident = Usage::of(&watched, pid).await.mebibytes().unwrap_or_default();
            seen.fetch_max(resident as u64, Ordering::Relaxed);
            tokio::time::sleep(LOOK).await;
        }
    });
    let path = format!("{}/kube-root-ca.crt", set.collection());
    let reader = client.clone();
    let gets = load::run(plan, move |one, _| {
        let (reader, call) = (reader.clone(), Call::get(path.clone()));
        async move {
            // Whether it is there makes no difference.
            let response = reader.send(one, call).await?;
            http_body_util::BodyExt::collect(response.into_body()).await?;
            Ok(())
        }
    });
    let (creates, gets) = tokio::join!(apply(client, set, Operation::Create, plan), gets);
    let (creates, gets) = (some(creates?, "create")?, some(gets, "get")?);
    let counted = done.load(Ordering::Relaxed);
    others.shutdown().await;
    let after = Usage::of(client, args.server.pid).await;
    Ok(vec![
        nuisance.map_or_else(|| "nobody".to_string(), |n| word(n, args)).into(),
        creates.latencies.count().into(),
        creates.latencies.percentile(50.0).into(),
        creates.latencies.percentile(99.0).into(),
        gets.latencies.percentile(50.0).into(),
        gets.latencies.percentile(99.0).into(),
        Some(counted).filter(|_| nuisance.is_some()).into(),
        after.cpu_since(&before).into(),
        most.load(Ordering::Relaxed).into(),
        after.mebibytes().into(),
    ])
}

fn word(nuisance: Nuisance, args: &Stress) -> String {
    match nuisance {
        Nuisance::Stalled => format!("{} watchers that do not read", args.watchers),
        Nuisance::Idle => format!("{} idle connections", args.idle),
        Nuisance::Handshakes => format!("{} TLS handshakes a second", args.handshakes),
        Nuisance::Large => "creates of 3 MB, one after the other".into(),
        Nuisance::Lists => format!("{} clients that list everything", args.lists),
    }
}

/// Lets a nuisance begin; it lasts until its tasks are ended, and counts in `done` what it has done.
async fn start(
    nuisance: Nuisance,
    args: &Stress,
    target: &Target,
    set: &Set,
    done: &Arc<AtomicU64>,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    match nuisance {
        Nuisance::Stalled => {
            // HTTP/1.1: nothing but the connection itself holds what is not read.
            let target = target.by_http1();
            for _ in 0..args.watchers {
                let client = Client::connect(&target, 1, 1).await?;
                let path = format!("{}?watch=true&resourceVersion=0", set.collection());
                let response = client.send(0, Call::get(path)).await?;
                done.fetch_add(1, Ordering::Relaxed);
                tasks.spawn(async move {
                    let _held = (client, response);
                    std::future::pending::<()>().await;
                });
            }
        }
        Nuisance::Idle => {
            for _ in 0..args.idle {
                let connection = connect(target).await?;
                done.fetch_add(1, Ordering::Relaxed);
                tasks.spawn(async move {
                    let _held = connection;
                    std::future::pending::<()>().await;
                });
            }
        }
        Nuisance::Handshakes => {
            let (target, done) = (target.clone(), done.clone());
            let pause = Duration::from_secs(1) / args.handshakes.max(1);
            tasks.spawn(async move {
                let mut every = tokio::time::interval(pause);
                every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
                let mut running = JoinSet::new();
                loop {
                    every.tick().await;
                    while running.try_join_next().is_some() {}
                    let (target, done) = (target.clone(), done.clone());
                    running.spawn(async move {
                        if connect(&target).await.is_ok() {
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
        }
        Nuisance::Large => {
            let large = Set::new(Kind::Configmaps, &args.namespace, "bench-large", Some(TOO_LARGE));
            let body = large.body(0);
            let call = Call::with(Method::POST, large.collection(), body);
            repeat(target, 1, call, done, tasks).await?;
        }
        Nuisance::Lists => {
            repeat(target, args.lists, Call::get("/api/v1/configmaps"), done, tasks).await?;
        }
    }
    Ok(())
}

/// Clients with a connection each that send one request again and again, whatever the answer.
async fn repeat(
    target: &Target,
    clients: u32,
    call: Call,
    done: &Arc<AtomicU64>,
    tasks: &mut JoinSet<()>,
) -> Result<()> {
    for _ in 0..clients {
        let client = Client::connect(target, 1, 1).await?;
        let (call, done) = (call.clone(), done.clone());
        tasks.spawn(async move {
            loop {
                // A refusal is an answer too; a connection that the server has closed ends it.
                let Ok(response) = client.send(0, call.clone()).await else { return };
                let mut body = response.into_body();
                while let Some(Ok(_)) = http_body_util::BodyExt::frame(&mut body).await {}
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    Ok(())
}

/// A connection on which TLS has been agreed and nothing asked.
async fn connect(target: &Target) -> Result<(Option<TlsStream<TcpStream>>, Option<TcpStream>)> {
    let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
    Ok(match &target.tls {
        Some(config) => {
            let tls = TlsConnector::from(config.clone()).connect(target.server_name()?, tcp).await?;
            (Some(tls), None)
        }
        None => (None, Some(tcp)),
    })
}
