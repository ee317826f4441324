//! `start`: from exec to ready.

use std::fs::OpenOptions;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::args::{Server, Start};
use crate::client::{Call, Client};
use crate::histogram::median;
use crate::process;
use crate::report::{Report, machine};
use crate::target::Target;

const COLUMNS: [&str; 6] = [
    "run",
    "ms to ready",
    "CPU s to ready",
    "resident MiB ready",
    "resident MiB idle",
    "idle CPU s per minute",
];

/// How often a server that is not there yet is asked. Part of the measurement's error.
const EVERY: Duration = Duration::from_millis(2);

pub async fn run(args: &Start) -> Result<Report> {
    // A certificate that is made at the start can't be known before.
    let insecure = args.server.certificate_authority.is_none();
    let target =
        Target::from_args(&Server { insecure: insecure || args.server.insecure, ..args.server.clone() })?;
    if Client::connect(&target, 1, 1).await.is_ok() {
        bail!("something listens at {} already", target.authority);
    }
    let mut report = Report::new("From exec to /readyz ok", &COLUMNS);
    machine(&mut report);
    let mut columns: [Vec<f64>; 5] = Default::default();
    for run in 1..=args.runs {
        let mut child = spawn(args, run)?;
        let measured = measure(args, &target, &mut child).await;
        process::stop(&mut child, Duration::from_secs(30)).await?;
        let figures = measured.with_context(|| format!("run {run}"))?;
        for (column, figure) in columns.iter_mut().zip(&figures) {
            column.extend(*figure);
        }
        let mut row = vec![run.into()];
        row.extend(figures.map(Into::into));
        report.row(row);
    }
    let mut row = vec!["median".into()];
    row.extend(columns.iter().map(|column| median(column).into()));
    report.row(row);
    Ok(report)
}

fn spawn(args: &Start, run: u32) -> Result<Child> {
    let words: Vec<String> =
        args.command.iter().map(|word| word.replace("{run}", &run.to_string())).collect();
    let (program, rest) = words.split_first().context("no command line")?;
    let (out, err) = match &args.log {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            (Stdio::from(file.try_clone()?), Stdio::from(file))
        }
        None => (Stdio::null(), Stdio::null()),
    };
    Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| program.clone())
}

async fn measure(args: &Start, target: &Target, child: &mut Child) -> Result<[Option<f64>; 5]> {
    let begin = Instant::now();
    let pid = child.id().context("it ended at once")?;
    loop {
        if is_ready(target).await {
            break;
        }
        if let Some(status) = child.try_wait()? {
            bail!("it ended before it was ready: {status}");
        }
        if begin.elapsed() > Duration::from_secs(args.ready_limit) {
            bail!("it was not ready in {} s", args.ready_limit);
        }
        sleep(EVERY).await;
    }
    let took = begin.elapsed().as_secs_f64() * 1e3;
    let ready = process::usage(pid)?;
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (mut idle, mut idle_cpu) = (None, None);
    if args.idle > 0 {
        sleep(Duration::from_secs(args.idle)).await;
        let after = process::usage(pid)?;
        idle = Some(mebibytes(after.resident));
        idle_cpu = Some((after.cpu - ready.cpu) * 60.0 / args.idle as f64);
    }
    Ok([Some(took), Some(ready.cpu), Some(mebibytes(ready.resident)), idle, idle_cpu])
}

async fn is_ready(target: &Target) -> bool {
    match Client::connect(target, 1, 1).await {
        Ok(client) => client.any(Call { accept: "*/*", ..Call::get("/readyz") }).await.is_ok(),
        Err(_) => false,
    }
}
