//! Pods that wait for a node: those to be tried now, those that failed and wait a while, and those for which trying
//! again makes no sense until something changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Cluster;
use crate::types::PodInfo;

/// After how long a pod is tried again although nothing has changed.
const LEFT_OVER: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// Pods that have waited long enough come back together, at most so often: the more important among them first.
const TICK: Duration = Duration::from_secs(1);

/// A pod that waits.
#[derive(Debug, Clone)]
pub struct Queued {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// How often it was tried.
    pub attempts: u32,
    /// When it came into the queue it is in.
    pub since: Instant,
    /// When it came first.
    pub first: Instant,
}

/// Pods for which nodes are being made free.
#[derive(Debug, Clone, Default)]
pub struct Nominated {
    by_node: HashMap<String, Vec<Arc<PodInfo>>>,
    nodes: HashMap<String, String>,
}

impl Nominated {
    /// Those for which a node is being made free.
    pub fn on(&self, node: &str) -> impl Iterator<Item = &Arc<PodInfo>> {
        self.by_node.get(node).into_iter().flatten()
    }

    fn add(&mut self, pod: &Arc<PodInfo>, node: Option<&str>) {
        self.remove(&pod.key);
        if let Some(node) = node.or(pod.nominated_node()) {
            self.nodes.insert(pod.key.clone(), node.into());
            self.by_node.entry(node.into()).or_default().push(pod.clone());
        }
    }

    fn remove(&mut self, key: &str) {
        let Some(node) = self.nodes.remove(key) else { return };
        if let Some(pods) = self.by_node.get_mut(&node) {
            pods.retain(|p| p.key != key);
            if pods.is_empty() {
                self.by_node.remove(&node);
            }
        }
    }
}

/// Higher priorities first, then those that have waited longer.
type ActiveKey = (Reverse<i32>, Instant, u64);

#[derive(Debug, Clone, Copy)]
enum Place {
    Active(ActiveKey),
    Backoff((Instant, u64)),
    Unschedulable,
}

#[derive(Default)]
struct State {
    active: BTreeMap<ActiveKey, Queued>,
    backoff: BTreeMap<(Instant, u64), Queued>,
    unschedulable: HashMap<String, Queued>,
    places: HashMap<String, Place>,
    nominated: Nominated,
    sequence: u64,
    /// How many pods have been taken out.
    cycle: u64,
    /// The cycle in which something changed last.
    moved: Option<u64>,
    left_over_look: Option<Instant>,
}

/// See the module.
pub struct Queue {
    state: Mutex<State>,
    begin: Instant,
    wake: Notify,
    initial_backoff: Duration,
    max_backoff: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Queue::new(Duration::from_secs(1), Duration::from_secs(10))
    }
}

/// Whether a change of a pod may make a difference to where it fits.
pub fn changed(old: &Pod, new: &Pod) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    old.spec != new.spec
        || a.labels != b.labels
        || a.annotations != b.annotations
        || a.owner_references != b.owner_references
        || a.finalizers != b.finalizers
        || a.deletion_timestamp != b.deletion_timestamp
}

impl Queue {
    /// A queue that makes pods wait `initial` after their first failure, twice that after the next, up to `max`.
    pub fn new(initial: Duration, max: Duration) -> Queue {
        Queue {
            state: Mutex::default(),
            begin: Instant::now(),
            wake: Notify::new(),
            initial_backoff: initial,
            max_backoff: max,
        }
    }

    /// Until when a pod must wait.
    fn backoff(&self, queued: &Queued) -> Instant {
        let doublings = queued.attempts.saturating_sub(1).min(30);
        queued.since + self.initial_backoff.saturating_mul(1 << doublings).min(self.max_backoff)
    }

    /// The first tick from that time on.
    fn tick(&self, at: Instant) -> Instant {
        let ticks = at.duration_since(self.begin).as_nanos().div_ceil(TICK.as_nanos());
        self.begin + TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    /// Adds a new pod.
    pub fn add(&self, pod: Arc<PodInfo>) {
        let now = Instant::now();
        let mut s = self.state.lock();
        s.take(&pod.key);
        s.nominated.add(&pod, None);
        s.activate(Queued { pod, attempts: 0, since: now, first: now });
        self.wake.notify_one();
    }

    /// Takes a change of a pod in.
    pub fn update(&self, old: &Pod, pod: Arc<PodInfo>) {
        let mut s = self.state.lock();
        let place = s.places.get(&pod.key).copied();
        let Some(queued) = s.take(&pod.key) else {
            drop(s);
            return self.add(pod);
        };
        let nominated = s.nominated.nodes.get(&pod.key).cloned();
        s.nominated.add(&pod, pod.nominated_node().is_none().then_some(nominated.as_deref()).flatten());
        let different = changed(old, &pod.pod);
        let queued = Queued { pod, ..queued };
        match place {
            Some(Place::Backoff(key)) => s.back_off(key.0, queued),
            Some(Place::Unschedulable) if !different => s.park(queued),
            _ => {
                s.activate(queued);
                self.wake.notify_one();
            }
        }
    }

    /// Takes a pod out.
    pub fn delete(&self, key: &str) {
        let mut s = self.state.lock();
        s.take(key);
        s.nominated.remove(key);
    }

    /// Takes a pod out if it was tried and waits for something to change or for its time; whether it did.
    pub fn take_waiting(&self, key: &str) -> bool {
        let mut s = self.state.lock();
        let waiting = matches!(s.places.get(key), Some(Place::Unschedulable | Place::Backoff(_)));
        if waiting {
            s.take(key);
            s.nominated.remove(key);
        }
        waiting
    }

    /// Puts a pod back that was tried in `cycle` and failed. `node` is being made free for it.
    pub fn put_back(&self, mut queued: Queued, cycle: u64, node: Option<&str>) {
        let mut s = self.state.lock();
        if s.places.contains_key(&queued.pod.key) {
            return;
        }
        queued.since = Instant::now();
        s.nominated.add(&queued.pod, node);
        // Where something changed while it was tried, what it failed for may be over.
        if s.moved.is_some_and(|m| m >= cycle) {
            let until = self.tick(self.backoff(&queued));
            s.back_off(until, queued);
        } else {
            s.park(queued);
        }
        self.wake.notify_one();
    }

    /// Says that the pod no longer has a node made free for it.
    pub fn forget_nomination(&self, key: &str) {
        self.state.lock().nominated.remove(key);
    }

    /// Something changed that may make room: all pods are tried again.
    pub fn move_all(&self) {
        self.move_where(|_| true);
    }

    /// A pod is now on a node: those are tried again that want to be near it.
    pub fn pod_assigned(&self, pod: &PodInfo, cluster: &Cluster) {
        self.move_where(|waiting| waiting.affinity.iter().any(|t| t.matches(pod, cluster)));
    }

    fn move_where(&self, which: impl Fn(&PodInfo) -> bool) {
        let now = Instant::now();
        let mut s = self.state.lock();
        let keys: Vec<String> =
            s.unschedulable.values().filter(|q| which(&q.pod)).map(|q| q.pod.key.clone()).collect();
        for key in keys {
            let Some(queued) = s.take(&key) else { continue };
            let until = self.backoff(&queued);
            if until > now { s.back_off(self.tick(until), queued) } else { s.activate(queued) }
        }
        s.moved = Some(s.cycle);
        self.wake.notify_one();
    }

    /// Runs `f` on the pods for which nodes are being made free.
    pub fn with_nominated<T>(&self, f: impl FnOnce(&Nominated) -> T) -> T {
        f(&self.state.lock().nominated)
    }

    /// Pods with less priority for which `node` is being made free, too.
    pub fn nominated_below(&self, node: &str, priority: i32) -> Vec<Arc<PodInfo>> {
        self.with_nominated(|n| n.on(node).filter(|p| p.priority < priority).cloned().collect())
    }

    /// How many pods are active, wait a while, and are unschedulable.
    pub fn lengths(&self) -> (usize, usize, usize) {
        let s = self.state.lock();
        (s.active.len(), s.backoff.len(), s.unschedulable.len())
    }

    /// The next pod and the number of its cycle, when there is one.
    pub async fn next(&self) -> (Queued, u64) {
        loop {
            let woken = self.wake.notified();
            let until = {
                let now = Instant::now();
                let mut s = self.state.lock();
                s.flush(now);
                if let Some((_, mut queued)) = s.active.pop_first() {
                    s.places.remove(&queued.pod.key);
                    s.cycle += 1;
                    queued.attempts += 1;
                    return (queued, s.cycle);
                }
                s.next_look(now)
            };
            match until {
                Some(at) => tokio::select! { _ = woken => {}, _ = tokio::time::sleep_until(at) => {} },
                None => woken.await,
            }
        }
    }
}

impl State {
    fn activate(&mut self, queued: Queued) {
        self.sequence += 1;
        let key = (Reverse(queued.pod.priority), queued.since, self.sequence);
        self.places.insert(queued.pod.key.clone(), Place::Active(key));
        self.active.insert(key, queued);
    }

    fn back_off(&mut self, until: Instant, queued: Queued) {
        self.sequence += 1;
        let key = (until, self.sequence);
        self.places.insert(queued.pod.key.clone(), Place::Backoff(key));
        self.backoff.insert(key, queued);
    }

    fn park(&mut self, queued: Queued) {
        self.places.insert(queued.pod.key.clone(), Place::Unschedulable);
        self.unschedulable.insert(queued.pod.key.clone(), queued);
    }

    fn take(&mut self, key: &str) -> Option<Queued> {
        match self.places.remove(key)? {
            Place::Active(k) => self.active.remove(&k),
            Place::Backoff(k) => self.backoff.remove(&k),
            Place::Unschedulable => self.unschedulable.remove(key),
        }
    }

    /// Makes active what has waited long enough.
    fn flush(&mut self, now: Instant) {
        while let Some(entry) = self.backoff.first_entry().filter(|e| e.key().0 <= now) {
            let queued = entry.remove();
            self.activate(queued);
        }
        if self.left_over_look.is_some_and(|at| at <= now) {
            self.left_over_look = None;
            let old = |q: &&Queued| now.duration_since(q.since) > LEFT_OVER;
            let keys: Vec<String> =
                self.unschedulable.values().filter(old).map(|q| q.pod.key.clone()).collect();
            for key in keys {
                if let Some(queued) = self.take(&key) {
                    self.activate(queued);
                }
            }
        }
    }

    /// When [`State::flush`] has something to do next.
    fn next_look(&mut self, now: Instant) -> Option<Instant> {
        if self.unschedulable.is_empty() {
            self.left_over_look = None;
        } else if self.left_over_look.is_none() {
            self.left_over_look = Some(now + LOOK);
        }
        let backoff = self.backoff.first_key_value().map(|(k, _)| k.0);
        [backoff, self.left_over_look].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, placed, pod, pod_object};
    use serde_json::json;

    fn p(name: &str, priority: i32) -> Arc<PodInfo> {
        Arc::new(pod(json!({"metadata": {"name": name}, "spec": {"priority": priority}})))
    }

    async fn next(q: &Queue) -> String {
        q.next().await.0.pod.name.clone()
    }

    #[tokio::test(start_paused = true)]
    async fn by_priority_then_by_age() {
        let q = Queue::default();
        for (name, priority) in [("old", 0), ("young", 0), ("high", 9)] {
            q.add(p(name, priority));
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!([next(&q).await, next(&q).await, next(&q).await], ["high", "old", "young"]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_more_important_of_those_that_waited_comes_first() {
        let q = Queue::default();
        for (name, priority) in [("low", 0), ("high", 9)] {
            q.add(p(name, priority));
            let (queued, cycle) = q.next().await;
            tokio::time::advance(Duration::from_millis(200)).await;
            q.put_back(queued, cycle, None);
        }
        q.move_all();
        assert_eq!(q.lengths(), (0, 2, 0));
        assert_eq!([next(&q).await, next(&q).await], ["high", "low"]);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_and_only_after_a_change() {
        let q = Queue::default();
        q.add(p("a", 0));
        let mut waits = Vec::new();
        for _ in 0..6 {
            let (queued, cycle) = q.next().await;
            q.put_back(queued, cycle, None);
            assert_eq!(q.lengths(), (0, 0, 1));
            let begin = Instant::now();
            q.move_all();
            let (queued, cycle) = q.next().await;
            waits.push(begin.elapsed().as_secs());
            // Nothing changed since: it would stay, and is tried again after a minute in any case.
            q.put_back(queued, cycle + 1, None);
            q.next().await;
            q.delete("ns/a");
            let attempts = waits.len() as u32;
            let queued = Queued { pod: p("a", 0), attempts, since: Instant::now(), first: Instant::now() };
            q.state.lock().activate(queued);
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_the_try_counts() {
        let q = Queue::default();
        q.add(p("a", 0));
        let (queued, cycle) = q.next().await;
        q.move_all();
        q.put_back(queued, cycle, None);
        assert_eq!(q.lengths(), (0, 1, 0));
        assert_eq!(next(&q).await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn left_overs_are_tried_again() {
        let q = Queue::default();
        q.add(p("a", 0));
        let (queued, cycle) = q.next().await;
        q.put_back(queued, cycle, None);
        let begin = Instant::now();
        assert_eq!(next(&q).await, "a");
        assert!((60..=90).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn updates_count_when_they_may_matter() {
        let q = Queue::default();
        q.add(p("p", 0));
        let (queued, cycle) = q.next().await;
        let old = pod_object(json!({}));
        q.put_back(queued, cycle, None);
        q.update(&old, Arc::new(pod(json!({"status": {"message": "m"}}))));
        assert_eq!(q.lengths(), (0, 0, 1));
        q.update(&old, Arc::new(pod(json!({"spec": {"nodeSelector": {"a": "b"}}}))));
        assert_eq!(q.lengths(), (1, 0, 0));
        q.delete("ns/p");
        assert_eq!(q.lengths(), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nominations_and_neighbours() {
        let q = Queue::default();
        let near = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]}}}});
        q.add(Arc::new(pod(near)));
        let (queued, cycle) = q.next().await;
        q.put_back(queued, cycle, Some("n"));
        assert_eq!(q.nominated_below("n", 1).len(), 1);
        assert_eq!(q.nominated_below("n", 0).len(), 0);
        let c = cluster([node("n", json!({}))], []);
        q.pod_assigned(&placed("x", "n", "db", json!({})), &c);
        assert_eq!(q.lengths(), (0, 0, 1));
        q.pod_assigned(&placed("x", "n", "web", json!({})), &c);
        assert_eq!(q.lengths(), (0, 1, 0));
        q.delete("ns/p");
        assert_eq!(q.nominated_below("n", 1).len(), 0);
    }
}
