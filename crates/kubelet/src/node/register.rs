//! Registers the node and keeps its status up to date.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeStatus, ObjectReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_apimachinery::version::{NEWEST, Release};
use pilothouse_component_base::signals::Stop;
use serde_json::json;
use tokio::time::Instant;

use super::machine::Machine;
use super::status::{self, CONTROLLER_ATTACH, Facts, Pressure};
use crate::kubelet::Kubelet;
use crate::pods::patch::node_status_patch;
use crate::runtime::cri;

/// How long the runtime may not be looked at before the node is said not to be ready.
const LOOK_THRESHOLD: Duration = Duration::from_secs(180);

/// Registers and reports.
pub struct NodeReporter {
    kubelet: Arc<Kubelet>,
    api: Api<Node>,
    client: Client,
    machine: Machine,
    version: Mutex<String>,
    runtime: Mutex<RuntimeFacts>,
    pressure: Arc<Mutex<Pressure>>,
}

#[derive(Default, Clone)]
struct RuntimeFacts {
    version: String,
    error: Option<String>,
    images: Vec<cri::Image>,
}

/// A reference to the node for events: its uid is its name, as events of nodes have always had it.
pub fn node_reference(name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("Node".into()),
        name: Some(name.into()),
        uid: Some(name.into()),
        ..Default::default()
    }
}

impl NodeReporter {
    /// For the node of `kubelet`. `pressure` is read at each report.
    pub fn new(
        kubelet: Arc<Kubelet>,
        client: Client,
        machine: Machine,
        pressure: Arc<Mutex<Pressure>>,
    ) -> NodeReporter {
        NodeReporter {
            kubelet,
            api: Api::all(client.clone()),
            client,
            machine,
            version: Mutex::default(),
            runtime: Mutex::default(),
            pressure,
        }
    }

    /// The version that the kubelet says it is of: no kubelet is newer than its API server.
    async fn find_version(&self) -> Result<(), kube::Error> {
        let server = self.client.apiserver_version().await?;
        let release = match Release::parse(server.git_version.rsplit_once('.').map_or("", |(mm, _)| mm)) {
            Some(r) if r <= Release::V1_20 => Release::V1_20,
            _ => NEWEST,
        };
        *self.version.lock() = release.git_version();
        self.kubelet.node.release().set(release);
        Ok(())
    }

    fn errors(&self, runtime: &RuntimeFacts) -> Vec<String> {
        let mut errors: Vec<String> = runtime.error.iter().cloned().collect();
        errors.extend(self.kubelet.network_error());
        if let Some(ago) = self.kubelet.since_look().filter(|a| *a > LOOK_THRESHOLD) {
            errors.push(format!(
                "PLEG is not healthy: pleg was last seen active {} ago; threshold is 3m0s",
                crate::images::show_duration(ago)
            ));
        }
        errors
    }

    fn with_facts<T>(&self, f: impl FnOnce(&Facts<'_>) -> T) -> T {
        let runtime = self.runtime.lock().clone();
        let ip = self.kubelet.node.ip();
        let errors = self.errors(&runtime);
        let version = self.version.lock().clone();
        f(&Facts {
            config: &self.kubelet.config,
            machine: &self.machine,
            ip: &ip,
            version: &version,
            runtime: &runtime.version,
            images: &runtime.images,
            pressure: *self.pressure.lock(),
            errors: &errors,
            volumes_in_use: self.kubelet.volumes.in_use(),
        })
    }

    /// Asks the runtime how it is.
    pub async fn look_at_runtime(&self) {
        let (version, status) = tokio::join!(self.kubelet.cri.version(), self.kubelet.cri.status());
        let mut facts = self.runtime.lock().clone();
        if let Ok(v) = version {
            facts.version = format!("{}://{}", v.runtime_name, v.runtime_version.trim_start_matches('v'));
            self.kubelet.set_runtime_name(&v.runtime_name);
        }
        match status {
            Ok(s) => {
                let failing = |type_: &str, what: &str| {
                    let c = s.conditions.iter().find(|c| c.r#type == type_);
                    match c {
                        Some(c) if c.status => None,
                        Some(c) => Some(format!(
                            "{what} not ready: {}={} reason:{} message:{}",
                            c.r#type, c.status, c.reason, c.message
                        )),
                        None => Some(format!("{what} not ready: unknown")),
                    }
                };
                facts.error = failing("RuntimeReady", "container runtime");
                self.kubelet.set_network_error(failing("NetworkReady", "container runtime network"));
            }
            Err(e) => facts.error = Some(format!("container runtime is down: {}", e.message)),
        }
        *self.runtime.lock() = facts;
    }

    async fn look_at_images(&self) {
        match self.kubelet.cri.list_images().await {
            Ok(images) => self.runtime.lock().images = images,
            Err(e) => tracing::debug!("images not listed: {e}"),
        }
    }

    /// Registers the node and reports its status until `stop`.
    pub async fn run(self: Arc<Self>, stop: Stop) {
        self.look_at_images().await;
        if self.kubelet.config.register_node {
            if !self.register(&stop).await {
                return;
            }
        } else if let Err(e) = self.find_version().await {
            tracing::warn!("the API server's version is not known: {e}");
        }
        let mut reported: Option<Instant> = None;
        let mut events = Conditions::default();
        loop {
            let due =
                reported.is_none_or(|r| r.elapsed() >= self.kubelet.config.node_status_report_frequency);
            match self.report(due, &mut events).await {
                Ok(true) => reported = Some(Instant::now()),
                Ok(false) => {}
                Err(e) => tracing::warn!("Unable to update node status: {e}"),
            }
            let period = self.kubelet.config.node_status_update_frequency;
            // Until the node is ready somebody waits for it.
            let ready = events.ready == Some(true);
            let wait = if ready { period } else { period.min(Duration::from_secs(1)) };
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(wait) => {} }
            self.look_at_images().await;
        }
    }

    /// Keeps asking the runtime how it is, until `stop`.
    pub async fn watch_runtime(self: Arc<Self>, stop: Stop) {
        loop {
            self.look_at_runtime().await;
            // A runtime that is not ready may be so in a moment, and pods wait for it.
            let well = self.runtime.lock().error.is_none() && self.kubelet.network_error().is_none();
            let wait = Duration::from_secs(if well { 5 } else { 1 });
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(wait) => {} }
        }
    }

    /// Makes the Node, or takes the one that is there; `false` where `stop` came first.
    async fn register(&self, stop: &Stop) -> bool {
        let name = self.kubelet.config.node_name.clone();
        let mut wait = Duration::from_millis(100);
        loop {
            let known = self.find_version().await;
            let node = self.with_facts(|f| status::new_node(f, crate::clock::now()));
            let registered = match known {
                Ok(()) => self.try_register(&node).await,
                Err(e) => Err(e),
            };
            match registered {
                Ok(made) => {
                    tracing::info!("Successfully registered node {name}");
                    self.kubelet.node.set(Arc::new(made));
                    return true;
                }
                Err(e) => tracing::warn!("Unable to register node {name:?} with API server: {e}"),
            }
            tokio::select! { _ = stop.wait() => return false, _ = tokio::time::sleep(wait) => {} }
            wait = (wait * 2).min(Duration::from_secs(7));
        }
    }

    async fn try_register(&self, node: &Node) -> Result<Node, kube::Error> {
        match self.api.create(&PostParams::default(), node).await {
            Err(kube::Error::Api(e)) if e.code == 409 => {}
            other => return other,
        }
        let name = &self.kubelet.config.node_name;
        let there = self.api.get(name).await?;
        let wanted = status::default_labels(name);
        let labels = there.metadata.labels.clone().unwrap_or_default();
        let missing: std::collections::BTreeMap<_, _> =
            wanted.into_iter().filter(|(k, v)| labels.get(k) != Some(v)).collect();
        let attach = there.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(CONTROLLER_ATTACH));
        let wants = self.kubelet.config.controller_attach_detach;
        if missing.is_empty() && attach == wants {
            return Ok(there);
        }
        let mut metadata = json!({"labels": missing});
        if attach != wants {
            metadata["annotations"] = json!({CONTROLLER_ATTACH: wants.then_some("true")});
        }
        let patch = Patch::Strategic(json!({"metadata": metadata}));
        self.api.patch(name, &PatchParams::default(), &patch).await
    }

    /// Works out the status and writes it where it is due or differs; whether it was written.
    async fn report(&self, due: bool, events: &mut Conditions) -> Result<bool, kube::Error> {
        let name = &self.kubelet.config.node_name;
        let node = match due {
            // What the watch shows is good enough, but now and then the server is asked.
            true => self.api.get(name).await?,
            false => (*self.kubelet.node.get()).clone(),
        };
        let old = node.status.clone().unwrap_or_default();
        let new = self.with_facts(|f| status::status(f, Some(&old), crate::clock::now()));
        self.tell(&new, events);
        if !due && !status::differs(&old, &new) {
            return Ok(false);
        }
        let Some(patch) = node_status_patch(&old, &new) else { return Ok(true) };
        let written = self.api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        self.kubelet.node.set(Arc::new(written));
        Ok(true)
    }

    /// Events of what changed.
    fn tell(&self, status: &NodeStatus, events: &mut Conditions) {
        let name = &self.kubelet.config.node_name;
        let is = |t: &str| {
            let c = status.conditions.iter().flatten().find(|c| c.type_ == t);
            c.map(|c| c.status == "True")
        };
        let now = Conditions {
            memory: is("MemoryPressure"),
            disk: is("DiskPressure"),
            pid: is("PIDPressure"),
            ready: is("Ready"),
        };
        let about = node_reference(name);
        let tell = |old: Option<bool>, new: Option<bool>, yes: &str, no: &str| {
            if let (true, Some(v)) = (old != new, new) {
                let reason = if v { yes } else { no };
                self.kubelet.recorder.normal(&about, reason, format!("Node {name} status is now: {reason}"));
            }
        };
        tell(events.memory, now.memory, "NodeHasInsufficientMemory", "NodeHasSufficientMemory");
        tell(events.disk, now.disk, "NodeHasDiskPressure", "NodeHasNoDiskPressure");
        tell(events.pid, now.pid, "NodeHasInsufficientPID", "NodeHasSufficientPID");
        if events.ready.is_some() || now.ready == Some(true) {
            tell(events.ready, now.ready, "NodeReady", "NodeNotReady");
        }
        *events = now;
    }
}

#[derive(Default)]
struct Conditions {
    memory: Option<bool>,
    disk: Option<bool>,
    pid: Option<bool>,
    ready: Option<bool>,
}
