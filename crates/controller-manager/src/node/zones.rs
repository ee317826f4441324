//! Zones: where many nodes fail at once, the fault is more likely between us and them, so taints come slowly or not at
//! all (<https://kubernetes.io/docs/concepts/architecture/nodes/#rate-limits-on-eviction>).

use std::collections::VecDeque;

use k8s_openapi::api::core::v1::Node;
use tokio::time::Instant;

use super::condition;

/// How a zone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Not looked at yet.
    #[default]
    Initial,
    /// Well.
    Normal,
    /// Many nodes are not ready.
    Partial,
    /// No node is ready.
    Full,
}

/// The rates of eviction, in nodes a second.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Normally.
    pub normal: f64,
    /// Where many nodes of a large zone are not ready.
    pub secondary: f64,
    /// From how many nodes a zone is large.
    pub large: usize,
    /// From which share of nodes a zone counts as unhealthy.
    pub threshold: f64,
}

/// One zone: its state and the nodes that wait for their taint.
#[derive(Debug)]
pub struct Zone {
    /// Its state.
    pub state: State,
    waiting: VecDeque<String>,
    rate: f64,
    tokens: f64,
    filled: Instant,
}

impl Zone {
    /// A zone that was just seen.
    pub fn new(rate: f64) -> Self {
        Zone { state: State::Initial, waiting: VecDeque::new(), rate, tokens: 1.0, filled: Instant::now() }
    }

    /// Puts a node into the queue, once.
    pub fn add(&mut self, node: &str) {
        if !self.waiting.iter().any(|n| n == node) {
            self.waiting.push_back(node.to_string());
        }
    }

    /// Takes a node out of the queue.
    pub fn remove(&mut self, node: &str) {
        self.waiting.retain(|n| n != node);
    }

    /// Whether no node waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() || self.rate <= 0.0
    }

    /// Another rate from now on.
    pub fn set_rate(&mut self, rate: f64) {
        if rate != self.rate {
            (self.rate, self.tokens, self.filled) = (rate, 1.0, Instant::now());
        }
    }

    /// The next node, if the rate allows one now.
    pub fn take(&mut self, now: Instant) -> Option<String> {
        let earned = now.duration_since(self.filled).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + earned).min(1.0);
        self.filled = now;
        if self.tokens < 1.0 || self.is_idle() {
            return None;
        }
        self.tokens -= 1.0;
        self.waiting.pop_front()
    }
}

/// The state of a zone by the `Ready` conditions of its nodes.
pub fn state<'a>(nodes: impl IntoIterator<Item = &'a Node>, threshold: f64) -> State {
    let (mut ready, mut not) = (0u32, 0u32);
    for node in nodes {
        match condition(node, "Ready") {
            Some(c) if c.status == "True" => ready += 1,
            _ => not += 1,
        }
    }
    match (ready, not) {
        (0, 1..) => State::Full,
        (_, 3..) if f64::from(not) / f64::from(not + ready) >= threshold => State::Partial,
        _ => State::Normal,
    }
}

/// The rate for a zone of that state and size while not all zones have failed.
pub fn rate(state: State, nodes: usize, rates: Rates) -> f64 {
    match state {
        State::Partial if nodes > rates.large => rates.secondary,
        State::Partial => 0.0,
        _ => rates.normal,
    }
}

/// The key of a node's zone: region and zone; empty where it has none.
pub fn key(node: &Node) -> String {
    let label = |names: [&str; 2]| {
        let labels = node.metadata.labels.as_ref();
        names.iter().find_map(|n| labels?.get(*n)).cloned().unwrap_or_default()
    };
    let region = label(["failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"]);
    let zone = label(["failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"]);
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:\0:{zone}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn nodes(ready: usize, not: usize) -> Vec<Node> {
        let node = |status: &str| {
            serde_json::from_value(serde_json::json!({"metadata": {},
                "status": {"conditions": [{"type": "Ready", "status": status}]}}))
            .unwrap()
        };
        (0..ready).map(|_| node("True")).chain((0..not).map(|_| node("Unknown"))).collect()
    }

    #[test]
    fn states() {
        let s = |r, n| state(&nodes(r, n), 0.55);
        assert_eq!((s(0, 0), s(3, 0), s(1, 2)), (State::Normal, State::Normal, State::Normal));
        assert_eq!((s(0, 1), s(2, 3), s(3, 3)), (State::Full, State::Partial, State::Normal));
        let rates = Rates { normal: 0.1, secondary: 0.01, large: 50, threshold: 0.55 };
        assert_eq!(rate(State::Partial, 50, rates), 0.0);
        assert_eq!(rate(State::Partial, 51, rates), 0.01);
        assert_eq!(rate(State::Full, 5, rates), 0.1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_node_every_ten_seconds() {
        let mut zone = Zone::new(0.1);
        for n in ["a", "b", "b"] {
            zone.add(n);
        }
        assert_eq!(zone.take(Instant::now()).as_deref(), Some("a"));
        assert_eq!(zone.take(Instant::now()), None);
        tokio::time::advance(Duration::from_millis(10_001)).await;
        assert_eq!(zone.take(Instant::now()).as_deref(), Some("b"));
        assert!(zone.is_idle());
    }
}
