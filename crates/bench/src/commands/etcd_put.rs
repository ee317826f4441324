//! `etcd-put`: raw puts.

use anyhow::Result;

use crate::args::EtcdPut;
use crate::etcd::Puts;
use crate::load::Plan;
use crate::process;
use crate::report::{Report, machine};

use super::some;

const COLUMNS: [&str; 6] = ["writers", "n", "per second", "p50 ms", "p99 ms", "etcd CPU s per 1,000"];

pub async fn run(args: &EtcdPut) -> Result<Report> {
    let puts = Puts::connect(&args.etcd, args.etcd_connections.into(), args.allow_remote).await?;
    let mut report = Report::new(&format!("Raw etcd puts of {} bytes", args.size), &COLUMNS);
    machine(&mut report);
    for writers in &args.writers {
        let plan = Plan { n: args.n, clients: *writers as usize, rate: 0, limit: args.bound.limit() };
        let before = args.etcd.etcd_pid.and_then(|pid| process::usage(pid).ok());
        let outcome = some(puts.run(plan, args.size as usize).await?, "puts")?;
        let after = args.etcd.etcd_pid.and_then(|pid| process::usage(pid).ok());
        let done = outcome.latencies.count();
        report.row(vec![
            (*writers).into(),
            done.into(),
            outcome.rate().into(),
            outcome.latencies.percentile(50.0).into(),
            outcome.latencies.percentile(99.0).into(),
            after.zip(before).map(|(a, b)| (a.cpu - b.cpu) * 1e3 / done as f64).into(),
        ]);
    }
    Ok(report)
}
