//! The measurements, one file each.

mod compare;
mod etcd_put;
mod idle;
mod list;
mod load;
mod plot;
mod pod;
mod start;
mod stress;
mod watch;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

use crate::args::{Arguments, Command, Kind, Operation};
use crate::load::Outcome;
use crate::report::Report;

/// Carries out what the command line asks for; the text to print.
pub async fn run(arguments: &Arguments) -> Result<String> {
    if let Command::Plot(args) = &arguments.command {
        return plot::run(args);
    }
    let report = measure(arguments).await?;
    Ok(if arguments.json { report.json().to_string() } else { report.table() })
}

/// Measures what the command line asks for.
pub async fn measure(arguments: &Arguments) -> Result<Report> {
    match &arguments.command {
        Command::Start(args) => start::run(args).await,
        Command::Load(args) => load::run(args).await,
        Command::List(args) => list::run(args).await,
        Command::Watch(args) => watch::run(args).await,
        Command::EtcdPut(args) => etcd_put::run(args).await,
        Command::Compare(args) => compare::run(args).await,
        Command::Idle(args) => idle::run(args).await,
        Command::Pod(args) => pod::run(args).await,
        Command::Stress(args) => stress::run(args).await,
        Command::Plot(_) => bail!("a plot measures nothing"),
    }
}

/// A word that no other run uses, good in a name.
pub fn unique() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:x}", now.as_micros() & 0xff_ffff_ffff)
}

/// An error if nothing succeeded: figures of failures are none.
fn some(outcome: Outcome, what: &str) -> Result<Outcome> {
    match &outcome.error {
        Some(error) if outcome.latencies.count() == 0 => bail!("every {what} failed: {error}"),
        Some(error) => eprintln!("{} of {what} failed: {error}", outcome.errors),
        None => {}
    }
    Ok(outcome)
}

fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Configmaps => "ConfigMap",
        Kind::Pods => "pod",
    }
}

fn operation_word(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "create",
        Operation::Get => "get",
        Operation::Update => "update",
        Operation::Patch => "patch",
        Operation::Delete => "delete",
    }
}
