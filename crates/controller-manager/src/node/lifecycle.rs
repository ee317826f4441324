//! The node life cycle controller: notices nodes that fall silent, says so in their conditions and taints, and marks
//! their pods as not ready.
//!
//! <https://kubernetes.io/docs/concepts/architecture/nodes/#node-controller>

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_client::events::reference;
use pilothouse_client::{Change, EventRecorder, Informer, Queue, key_of};
use tokio::time::{Instant, MissedTickBehavior};

use super::health::{self, Health};
use super::taints::{self, NOT_READY, UNREACHABLE, taint};
use super::zones::{self, Rates, State, Zone};
use super::{condition, eviction, index_by_node, node_reference, pods_on};
use crate::context::Context;
use crate::control::{has_code, now};

/// How often waiting nodes are looked at.
const TAINT_PERIOD: Duration = Duration::from_millis(100);

/// Label, and the older label that repeats it.
const LABELS: &[(&str, &str)] =
    &[("kubernetes.io/arch", "beta.kubernetes.io/arch"), ("kubernetes.io/os", "beta.kubernetes.io/os")];

struct Shared {
    client: Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    leases: Informer<Lease>,
    /// Status of the `Ready` condition that each node was last seen with.
    ready: Mutex<HashMap<String, String>>,
}

struct Monitor {
    shared: Arc<Shared>,
    period: Duration,
    grace: Duration,
    startup_grace: Duration,
    evict: bool,
    rates: Rates,
    known: BTreeMap<String, Option<String>>,
    health: HashMap<String, Health>,
    zones: BTreeMap<String, Zone>,
    /// Nodes whose pods could not all be marked as not ready.
    retry: HashSet<String>,
    all_disrupted: bool,
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let shared = Arc::new(Shared {
        client: context.client.clone(),
        recorder: context.recorder("node-controller"),
        nodes: context.informer::<Node>(),
        pods: context.informer::<Pod>(),
        leases: context.informer::<Lease>(),
        ready: Mutex::default(),
    });
    index_by_node(&shared.pods);
    let config = &context.config;
    if config.enable_taint_manager {
        eviction::start(&context);
    }
    let monitor = Monitor {
        shared: shared.clone(),
        period: config.node_monitor_period,
        grace: config.node_monitor_grace_period,
        startup_grace: config.node_startup_grace_period,
        evict: config.enable_taint_manager,
        rates: Rates {
            normal: config.node_eviction_rate,
            secondary: config.secondary_node_eviction_rate,
            large: usize::try_from(config.large_cluster_size_threshold).unwrap_or(0),
            threshold: config.unhealthy_zone_threshold,
        },
        known: BTreeMap::new(),
        health: HashMap::new(),
        zones: BTreeMap::new(),
        retry: HashSet::new(),
        all_disrupted: false,
    };
    let stop = context.stop.clone();
    tokio::spawn(async move {
        shared.nodes.wait_synced().await;
        shared.pods.wait_synced().await;
        shared.leases.wait_synced().await;
        shared.clone().keep_taints_and_labels(&context);
        shared.clone().watch_new_pods(&context);
        tokio::select! { _ = stop.wait() => {} _ = monitor.run() => {} }
    });
    Ok(())
}

impl Shared {
    /// Keeps the `NoSchedule` taints that follow from conditions, and the older labels.
    fn keep_taints_and_labels(self: Arc<Self>, context: &Context) {
        let queue: Queue<String> = Queue::new();
        let q = queue.clone();
        self.nodes.on_change(move |c| {
            if !matches!(c, Change::Deleted(_)) {
                q.add(key_of(&**c.object()));
            }
        });
        queue.run("nodelifecycle", 8, context.stop.clone(), move |name| {
            let me = self.clone();
            async move {
                let Some(node) = me.nodes.get(&name) else { return Ok(None) };
                let (add, remove) = taints::no_schedule_changes(&node);
                if !add.is_empty() || !remove.is_empty() {
                    taints::swap(&me.client, &name, &add, &remove).await?;
                }
                if let Some(labels) = label_changes(&node) {
                    let patch = Patch::Strategic(serde_json::json!({"metadata": {"labels": labels}}));
                    let api: Api<Node> = Api::all(me.client.clone());
                    api.patch(&name, &PatchParams::default(), &patch).await?;
                }
                Ok::<_, kube::Error>(None)
            }
        });
    }

    /// Marks pods as not ready that come to a node after it was found not to be ready.
    fn watch_new_pods(self: Arc<Self>, context: &Context) {
        let queue: Queue<String> = Queue::new();
        let q = queue.clone();
        self.pods.on_change(move |c| {
            let node = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone());
            let new = match c {
                Change::Added(p) => node(p).is_some(),
                Change::Updated(old, p) => node(p).is_some() && node(old) != node(p),
                Change::Deleted(_) => false,
            };
            if new {
                q.add(key_of(&**c.object()));
            }
        });
        queue.run("nodelifecycle-pods", 4, context.stop.clone(), move |key| {
            let me = self.clone();
            async move {
                let Some(pod) = me.pods.get(&key) else { return Ok(None) };
                let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
                let ready = me.ready.lock().get(&node).cloned();
                if ready.is_some_and(|r| r != "True") {
                    me.mark_not_ready(&pod).await?;
                }
                Ok::<_, kube::Error>(None)
            }
        });
    }

    async fn mark_not_ready(&self, pod: &Pod) -> Result<(), kube::Error> {
        let mut pod = pod.clone();
        let conditions = pod.status.as_mut().and_then(|s| s.conditions.as_mut());
        let Some(ready) =
            conditions.and_then(|c| c.iter_mut().find(|c| c.type_ == "Ready" && c.status != "False"))
        else {
            return Ok(());
        };
        ready.status = "False".into();
        ready.last_transition_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
        let (namespace, name) = (
            pod.metadata.namespace.clone().unwrap_or_default(),
            pod.metadata.name.clone().unwrap_or_default(),
        );
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        match api.replace_status(&name, &PostParams::default(), &pod).await {
            Ok(_) => {}
            Err(e) if has_code(&e, 404) => return Ok(()),
            Err(e) => return Err(e),
        }
        self.recorder.warning(&reference(&pod, &()), "NodeNotReady", "Node is not ready");
        Ok(())
    }

    async fn mark_all_not_ready(&self, node: &str) -> Result<(), kube::Error> {
        let mut failed = None;
        for pod in pods_on(&self.pods, node) {
            match self.mark_not_ready(&pod).await {
                Ok(()) => {}
                // The local copy is behind: with the pod as it is now it may go.
                Err(e) => failed = Some(e),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// The older labels that are missing or wrong.
fn label_changes(node: &Node) -> Option<BTreeMap<&'static str, String>> {
    let labels = node.metadata.labels.as_ref()?;
    let wrong = LABELS.iter().filter_map(|(from, to)| {
        let value = labels.get(*from)?;
        (labels.get(*to) != Some(value)).then(|| (*to, value.clone()))
    });
    Some(wrong.collect::<BTreeMap<_, _>>()).filter(|w| !w.is_empty())
}

impl Monitor {
    async fn run(mut self) {
        let mut monitor = tokio::time::interval(self.period.max(Duration::from_millis(10)));
        monitor.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let waiting = self.evict && self.zones.values().any(|z| !z.is_idle());
            tokio::select! {
                _ = monitor.tick() => self.look_at_all().await,
                _ = tokio::time::sleep(TAINT_PERIOD), if waiting => self.taint_waiting().await,
            }
        }
    }

    async fn look_at_all(&mut self) {
        let nodes = self.shared.nodes.list();
        self.note_new_and_gone(&nodes).await;
        let mut now_nodes: Vec<Node> = Vec::with_capacity(nodes.len());
        for node in &nodes {
            match self.look_at(node).await {
                Ok(node) => now_nodes.push(node),
                Err(e) => {
                    tracing::warn!(node = key_of(&**node), "node health: {e}");
                    now_nodes.push((**node).clone());
                }
            }
        }
        self.handle_disruption(&now_nodes).await;
    }

    async fn note_new_and_gone(&mut self, nodes: &[Arc<Node>]) {
        let names: BTreeMap<String, Option<String>> =
            nodes.iter().map(|n| (key_of(&**n), n.metadata.uid.clone())).collect();
        let event = |name: &str, uid: Option<&str>, reason: &str, what: String| {
            let text = format!("Node {name} event: {what}");
            self.shared.recorder.normal(&node_reference(name, uid), reason, text);
        };
        for (name, uid) in names.iter().filter(|(n, _)| !self.known.contains_key(*n)) {
            event(name, uid.as_deref(), "RegisteredNode", format!("Registered Node {name} in Controller"));
        }
        for (name, uid) in self.known.iter().filter(|(n, _)| !names.contains_key(*n)) {
            event(name, uid.as_deref(), "RemovingNode", format!("Removing Node {name} from Controller"));
        }
        let new: Vec<&Arc<Node>> =
            nodes.iter().filter(|n| !self.known.contains_key(&key_of(&***n))).collect();
        for node in new {
            let rate = self.rates.normal;
            self.zones.entry(zones::key(node)).or_insert_with(|| Zone::new(rate));
            self.mark_reachable(node).await;
        }
        let gone: Vec<String> = self.known.keys().filter(|n| !names.contains_key(*n)).cloned().collect();
        for name in gone {
            self.health.remove(&name);
            self.retry.remove(&name);
            self.shared.ready.lock().remove(&name);
            self.zones.values_mut().for_each(|z| z.remove(&name));
        }
        self.known = names;
    }

    /// Looks at one node and acts on how it is; the node as it then is.
    async fn look_at(&mut self, node: &Node) -> Result<Node, kube::Error> {
        let name = key_of(node);
        let now = Timestamp::now();
        let lease = self.shared.leases.get(&format!("kube-node-lease/{name}"));
        let mut health = health::observe(self.health.get(&name), node, lease.as_deref(), now);
        let observed = health.ready.as_ref().map_or("Unknown", |c| c.status.as_str()).to_string();
        let mut updated = node.clone();
        if health::is_silent(&health, self.grace, self.startup_grace, now)
            && let Some(conditions) = health::unknown_conditions(node, now)
        {
            // Remembered even where the write fails, so that time goes on counting.
            self.health.insert(name.clone(), health.clone());
            updated = self.write_conditions(node, conditions).await?;
            health.ready = condition(&updated, "Ready").cloned();
        }
        let current = health.ready.as_ref().map(|c| c.status.clone());
        self.health.insert(name.clone(), health);
        match &current {
            Some(c) => self.shared.ready.lock().insert(name.clone(), c.clone()),
            None => self.shared.ready.lock().remove(&name),
        };
        let Some(current) = current else { return Ok(updated) };
        if self.evict {
            self.taint(node, &observed).await;
        }
        let fell = current != "True" && observed == "True";
        if fell {
            let text = format!("Node {name} status is now: NodeNotReady");
            let object = node_reference(&name, node.metadata.uid.as_deref());
            self.shared.recorder.normal(&object, "NodeNotReady", text);
        }
        if fell || (self.retry.contains(&name) && observed != "True") {
            self.retry.remove(&name);
            if let Err(e) = self.shared.mark_all_not_ready(&name).await {
                tracing::debug!(node = name, "marking pods not ready: {e}");
                self.retry.insert(name);
            }
        } else {
            self.retry.remove(&name);
        }
        Ok(updated)
    }

    async fn write_conditions(
        &self,
        node: &Node,
        conditions: Vec<NodeCondition>,
    ) -> Result<Node, kube::Error> {
        let mut node = node.clone();
        let name = key_of(&node);
        node.status.get_or_insert_default().conditions = Some(conditions);
        Api::<Node>::all(self.shared.client.clone())
            .replace_status(&name, &PostParams::default(), &node)
            .await
    }

    fn zone(&mut self, node: &Node) -> &mut Zone {
        let rate = self.rates.normal;
        self.zones.entry(zones::key(node)).or_insert_with(|| Zone::new(rate))
    }

    /// Brings a node's `NoExecute` taint into line with its state, or has it wait for its zone's turn.
    async fn taint(&mut self, node: &Node, observed: &str) {
        let name = key_of(node);
        let (wanted, other) = match observed {
            "True" => return self.mark_reachable(node).await,
            "False" => (NOT_READY, UNREACHABLE),
            _ => (UNREACHABLE, NOT_READY),
        };
        if taints::has(node, other, "NoExecute") {
            let (add, remove) = ([taint(wanted, "NoExecute")], [taint(other, "NoExecute")]);
            if let Err(e) = taints::swap(&self.shared.client, &name, &add, &remove).await {
                tracing::warn!(node = name, "taint: {e}");
            }
        } else if !taints::has(node, wanted, "NoExecute") && !self.all_disrupted {
            self.zone(node).add(&name);
        }
    }

    async fn mark_reachable(&mut self, node: &Node) {
        let name = key_of(node);
        self.zone(node).remove(&name);
        let remove = [taint(UNREACHABLE, "NoExecute"), taint(NOT_READY, "NoExecute")];
        if !remove.iter().any(|t| taints::has(node, &t.key, &t.effect)) {
            return;
        }
        if let Err(e) = taints::swap(&self.shared.client, &name, &[], &remove).await {
            tracing::warn!(node = name, "taint: {e}");
        }
    }

    /// Taints those nodes whose turn has come.
    async fn taint_waiting(&mut self) {
        let now = Instant::now();
        let due: Vec<String> = self
            .zones
            .values_mut()
            .flat_map(|z| std::iter::from_fn(|| z.take(now)).collect::<Vec<_>>())
            .collect();
        for name in due {
            let Some(node) = self.shared.nodes.get(&name) else { continue };
            let (wanted, other) = match condition(&node, "Ready").map(|c| c.status.as_str()) {
                Some("False") => (NOT_READY, UNREACHABLE),
                Some("Unknown") => (UNREACHABLE, NOT_READY),
                _ => continue,
            };
            let (add, remove) = ([taint(wanted, "NoExecute")], [taint(other, "NoExecute")]);
            if let Err(e) = taints::swap(&self.shared.client, &name, &add, &remove).await {
                tracing::warn!(node = name, "taint: {e}");
                self.zone(&node).add(&name);
            }
        }
    }

    /// Adapts the rates to the states of the zones. Where all zones are down, nothing is evicted at all: it is more
    /// likely that we are cut off.
    async fn handle_disruption(&mut self, nodes: &[Node]) {
        let mut by_zone: BTreeMap<String, Vec<&Node>> = BTreeMap::new();
        for node in nodes {
            by_zone.entry(zones::key(node)).or_default().push(node);
        }
        let states: BTreeMap<&String, State> =
            by_zone.iter().map(|(k, n)| (k, zones::state(n.iter().copied(), self.rates.threshold))).collect();
        self.zones.retain(|k, _| by_zone.contains_key(k));
        let all_full = !states.is_empty() && states.values().all(|s| *s == State::Full);
        if all_full && !self.all_disrupted {
            tracing::info!(
                "Controller detected that all Nodes are not-Ready. Entering master disruption mode."
            );
            self.all_disrupted = true;
            for node in nodes {
                self.mark_reachable(node).await;
            }
            self.zones.values_mut().for_each(|z| z.set_rate(0.0));
        } else if !all_full && self.all_disrupted {
            tracing::info!("Controller detected that some Nodes are Ready. Exiting master disruption mode.");
            self.all_disrupted = false;
            // Nobody could be heard of meanwhile: everybody's time starts anew.
            let now = Timestamp::now();
            self.health.values_mut().for_each(|h| h.probed = now);
        }
        for (key, state) in states {
            let rate =
                if self.all_disrupted { 0.0 } else { zones::rate(state, by_zone[key].len(), self.rates) };
            let normal = self.rates.normal;
            let zone = self.zones.entry(key.clone()).or_insert_with(|| Zone::new(normal));
            if zone.state != state {
                tracing::info!(
                    zone = key.replace('\0', ""),
                    "Controller detected that zone is now in state {state:?}."
                );
                zone.state = state;
            }
            zone.set_rate(rate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_labels_repeat_the_new_ones() {
        let node: Node = serde_json::from_value(serde_json::json!({"metadata": {"labels": {
            "kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64", "beta.kubernetes.io/arch": "amd64"}}}))
        .unwrap();
        let changes = label_changes(&node).unwrap();
        assert_eq!(changes["beta.kubernetes.io/os"], "linux");
        assert_eq!(changes["beta.kubernetes.io/arch"], "arm64");
        assert_eq!(label_changes(&Node::default()), None);
    }
}
