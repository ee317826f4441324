//! `idle`: what processes use while nothing is asked of them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep};

use crate::args::Idle;
use crate::process::{self, ProcessUsage};
use crate::report::{Report, machine};

const COLUMNS: [&str; 4] = ["process", "pid", "resident MiB", "CPU s per minute"];

pub async fn run(args: &Idle) -> Result<Report> {
    let pids: Vec<u32> = match args.tree {
        true => args.pid.iter().flat_map(|pid| process::tree(*pid)).collect(),
        false => args.pid.clone(),
    };
    let mut before = BTreeMap::new();
    for pid in &pids {
        match process::usage(*pid) {
            Ok(usage) => drop(before.insert(*pid, usage)),
            // A descendant may have ended since it was found.
            Err(e) if args.pid.contains(pid) => return Err(e).with_context(|| format!("process {pid}")),
            Err(_) => {}
        }
    }
    let begin = Instant::now();
    sleep(Duration::from_secs(args.seconds)).await;
    let minutes = begin.elapsed().as_secs_f64() / 60.0;
    let mut report = Report::new(&format!("Idle for {} s", args.seconds), &COLUMNS);
    machine(&mut report);
    let mut all = ProcessUsage::default();
    for (pid, before) in &before {
        let Ok(after) = process::usage(*pid) else { continue };
        let cpu = after.cpu - before.cpu;
        report.row(vec![
            process::name(*pid).into(),
            (*pid).into(),
            (after.resident as f64 / f64::from(1 << 20)).into(),
            (cpu / minutes).into(),
        ]);
        all.resident += after.resident;
        all.cpu += cpu;
    }
    if report.len() > 1 {
        let resident = all.resident as f64 / f64::from(1 << 20);
        report.row(vec!["all".into(), "".into(), resident.into(), (all.cpu / minutes).into()]);
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Cell;

    #[tokio::test]
    async fn this_process_is_idle() {
        let own = std::process::id();
        let report = run(&Idle { pid: vec![own], tree: false, seconds: 1 }).await.unwrap();
        assert_eq!(report.cell(0, "pid"), Some(&Cell::Count(own.into())));
        assert!(matches!(report.cell(0, "resident MiB"), Some(Cell::Number(mib)) if *mib > 0.1));
    }

    #[tokio::test]
    async fn no_such_process() {
        assert!(run(&Idle { pid: vec![u32::MAX], tree: true, seconds: 1 }).await.is_err());
    }
}
