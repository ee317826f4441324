//! `pod`: from `apply` of one pod to Running, as a client's watch sees it.

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::args::Pod;
use crate::client::{Call, Client};
use crate::histogram::median;
use crate::report::{Report, machine};
use crate::target::Target;

use super::unique;

const COLUMNS: [&str; 4] = ["run", "ms to scheduled", "ms to Running", "ms to deleted"];

pub async fn run(args: &Pod) -> Result<Report> {
    let target = Target::from_args(&args.server)?;
    let mut report = Report::new(&format!("From apply of a pod ({}) to Running", args.image), &COLUMNS);
    machine(&mut report);
    let mut columns: [Vec<f64>; 3] = Default::default();
    for run in 1..=args.runs {
        let client = Client::connect(&target, 1, 1).await?;
        let one = timeout(args.bound.limit(), measure(args, &client, run));
        let figures =
            one.await.with_context(|| format!("pod {run} was not Running and deleted in time"))??;
        let mut row = vec![run.into()];
        for (column, figure) in columns.iter_mut().zip(figures) {
            column.extend(figure);
            row.push(figure.into());
        }
        report.row(row);
    }
    let mut row = vec!["median".into()];
    row.extend(columns.iter().map(|column| median(column).into()));
    report.row(row);
    Ok(report)
}

async fn measure(args: &Pod, client: &Client, run: u32) -> Result<[Option<f64>; 3]> {
    let name = format!("bench-{}-{run}", unique());
    let collection = format!("/api/v1/namespaces/{}/pods", args.namespace);
    let query = format!("fieldSelector=metadata.name%3D{name}");
    let list: Value = serde_json::from_slice(&client.any(Call::get(format!("{collection}?{query}"))).await?)?;
    let revision =
        list["metadata"]["resourceVersion"].as_str().context("the list has no resource version")?;
    let watch = Call::get(format!("{collection}?{query}&watch=true&resourceVersion={revision}"));
    let mut events = Events::new(client.send(0, watch).await?.into_body());
    let body = manifest(args, &name);
    let begin = Instant::now();
    // As kubectl does: look whether it is there, then create it.
    let _ = client.send(0, Call::get(format!("{collection}/{name}"))).await?.into_body().collect().await?;
    client.any(Call::with(Method::POST, collection.clone(), body.to_string())).await?;
    let millis = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let mut scheduled = None;
    let running = loop {
        let event = events.next().await?;
        let pod = &event["object"];
        if pod["spec"]["nodeName"].is_string() && scheduled.is_none() {
            scheduled = Some(millis(begin));
        }
        match pod["status"]["phase"].as_str() {
            Some("Running") => break millis(begin),
            Some("Failed" | "Succeeded") => bail!("pod {name} ended: {}", pod["status"]),
            _ if event["type"] == "DELETED" => bail!("pod {name} was deleted"),
            _ => {}
        }
    };
    let begin = Instant::now();
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 1});
    client.any(Call::with(Method::DELETE, format!("{collection}/{name}"), options.to_string())).await?;
    while events.next().await?["type"] != "DELETED" {}
    Ok([scheduled, Some(running), Some(millis(begin))])
}

fn manifest(args: &Pod, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "pilothouse-bench"}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": args.image, "imagePullPolicy": "IfNotPresent", "command": args.args,
        }]},
    })
}

/// The events of a watch, one JSON object a line.
struct Events {
    body: Incoming,
    read: BytesMut,
}

impl Events {
    fn new(body: Incoming) -> Self {
        Events { body, read: BytesMut::new() }
    }

    async fn next(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line = self.read.split_to(end + 1);
                return Ok(serde_json::from_slice(&line)?);
            }
            let frame = self.body.frame().await.context("the watch ended")??;
            if let Some(data) = frame.data_ref() {
                self.read.extend_from_slice(data);
            }
        }
    }
}
