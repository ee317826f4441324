//! `compare`: creates through the server ÷ raw puts, taking turns, so that a noisy machine is noisy for both.

use anyhow::Result;

use crate::args::{Compare, Operation};
use crate::client::Client;
use crate::etcd::Puts;
use crate::histogram::median;
use crate::load::{Plan, ratios};
use crate::metrics::Usage;
use crate::objects::Set;
use crate::report::{Report, machine};
use crate::target::Target;

use super::{kind_word, load::apply, some, unique};

const COLUMNS: [&str; 8] = [
    "create",
    "writers",
    "rounds",
    "creates per second",
    "raw puts per second",
    "ratio",
    "lowest … highest",
    "server CPU s per 1,000",
];

/// Raw puts have the size of a ConfigMap.
const VALUE: usize = 1024;

pub async fn run(args: &Compare) -> Result<Report> {
    let target = Target::from_args(&args.server)?;
    let connections = args.server.connections;
    let puts = Puts::connect(&args.etcd, connections.into(), args.server.allow_remote).await?;
    let mut report = Report::new(
        &format!("Creates through the server ÷ raw puts of {VALUE} bytes to etcd, alternating; medians"),
        &COLUMNS,
    );
    machine(&mut report);
    for kind in &args.kinds {
        for writers in &args.writers {
            let clients = *writers as usize;
            let client = Client::connect(&target, connections.into(), clients).await?;
            let plan = Plan { n: args.n, clients, rate: 0, limit: args.bound.limit() };
            let (mut through, mut raw, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..args.rounds {
                raw.push(some(puts.run(plan, VALUE).await?, "puts")?.rate());
                let set = Set::new(*kind, &args.namespace, &format!("bench-{}", unique()), None);
                let before = Usage::of(&client, args.server.pid).await;
                let outcome = some(apply(&client, &set, Operation::Create, plan).await?, "create")?;
                let after = Usage::of(&client, args.server.pid).await;
                let done = outcome.latencies.count() as f64;
                through.push(outcome.rate());
                cpu.extend(after.cpu_since(&before).map(|cpu| cpu * 1e3 / done));
                apply(&client, &set, Operation::Delete, plan).await?;
            }
            let ratios = ratios(&through, &raw);
            let lowest = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let highest = ratios.iter().copied().fold(0.0, f64::max);
            report.row(vec![
                kind_word(*kind).into(),
                (*writers).into(),
                args.rounds.into(),
                median(&through).into(),
                median(&raw).into(),
                median(&ratios).into(),
                format!("{lowest:.2} … {highest:.2}").into(),
                median(&cpu).into(),
            ]);
        }
    }
    Ok(report)
}
