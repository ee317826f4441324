//! A work queue: each key is in it at most once, a key that is being worked on waits until that is over, and a key
//! that failed comes back after a delay that doubles. The behaviour is that of client-go's workqueue.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilothouse_component_base::signals::Stop;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

struct State<T> {
    ready: VecDeque<T>,
    dirty: HashSet<T>,
    working: HashSet<T>,
    failures: HashMap<T, u32>,
    /// When keys that were put in with a delay come in.
    waiting: HashMap<T, Instant>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Notify,
    base: Duration,
    max: Duration,
}

/// See the module. Cheap to clone.
pub struct Queue<T>(Arc<Shared<T>>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue(self.0.clone())
    }
}

impl<T: Clone + Eq + Hash + Send + Sync + 'static> Default for Queue<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Clone + Eq + Hash + Send + Sync + 'static> Queue<T> {
    /// A queue with client-go's delays: 5 ms, doubling to 1,000 s.
    pub fn new() -> Self {
        Self::with_backoff(Duration::from_millis(5), Duration::from_secs(1000))
    }

    /// A queue whose delay after the first failure is `base`, and never over `max`.
    pub fn with_backoff(base: Duration, max: Duration) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            failures: HashMap::new(),
            waiting: HashMap::new(),
        };
        Queue(Arc::new(Shared { state: Mutex::new(state), wake: Notify::new(), base, max }))
    }

    /// Puts a key in; does nothing where it is in already.
    pub fn add(&self, key: T) {
        let mut s = self.0.state.lock();
        if s.dirty.insert(key.clone()) && !s.working.contains(&key) {
            s.ready.push_back(key);
            drop(s);
            self.0.wake.notify_one();
        }
    }

    /// Puts a key in after a delay; of several that are under way the soonest counts. Needs a tokio runtime.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        {
            let mut s = self.0.state.lock();
            if s.waiting.get(&key).is_some_and(|soonest| *soonest <= at) {
                return;
            }
            s.waiting.insert(key.clone(), at);
        }
        let me = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(at).await;
            {
                let mut s = me.0.state.lock();
                if s.waiting.get(&key) != Some(&at) {
                    return;
                }
                s.waiting.remove(&key);
            }
            me.add(key);
        });
    }

    /// Puts a key in after the delay that its failures so far have earned, and counts one more.
    pub fn add_rate_limited(&self, key: T) {
        let delay = {
            let mut s = self.0.state.lock();
            let n = s.failures.entry(key.clone()).or_insert(0);
            let delay = self.0.base.saturating_mul(1u32.checked_shl(*n).unwrap_or(u32::MAX)).min(self.0.max);
            *n = (*n + 1).min(31);
            delay
        };
        self.add_after(key, delay);
    }

    /// Forgets a key's failures.
    pub fn forget(&self, key: &T) {
        self.0.state.lock().failures.remove(key);
    }

    /// How often a key has failed in a row.
    pub fn failures(&self, key: &T) -> u32 {
        self.0.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// How many keys are ready.
    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key, when there is one. The caller says [`Queue::done`] when it has worked on it.
    pub async fn next(&self) -> T {
        loop {
            let woken = self.0.wake.notified();
            {
                let mut s = self.0.state.lock();
                if let Some(key) = s.ready.pop_front() {
                    s.dirty.remove(&key);
                    s.working.insert(key.clone());
                    if !s.ready.is_empty() {
                        self.0.wake.notify_one();
                    }
                    return key;
                }
            }
            woken.await;
        }
    }

    /// Ends the work on a key; puts it in again where it was added meanwhile.
    pub fn done(&self, key: &T) {
        let mut s = self.0.state.lock();
        s.working.remove(key);
        if s.dirty.contains(key) {
            s.ready.push_back(key.clone());
            drop(s);
            self.0.wake.notify_one();
        }
    }

    /// Starts `workers` tasks that call `sync` for each key until `stop`. An error is logged and the key comes back
    /// after its delay; `Ok(Some(d))` brings it back after `d`; `Ok(None)` is done.
    pub fn run<F, Fut, E>(
        &self,
        name: &'static str,
        workers: usize,
        stop: Stop,
        sync: F,
    ) -> Vec<JoinHandle<()>>
    where
        T: std::fmt::Debug,
        F: Fn(T) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Result<Option<Duration>, E>> + Send + 'static,
        E: std::fmt::Display + Send,
    {
        (0..workers)
            .map(|_| {
                let (queue, stop, sync) = (self.clone(), stop.clone(), sync.clone());
                tokio::spawn(async move {
                    loop {
                        let key = tokio::select! { _ = stop.wait() => return, k = queue.next() => k };
                        match sync(key.clone()).await {
                            Ok(again) => {
                                queue.forget(&key);
                                if let Some(d) = again {
                                    queue.add_after(key.clone(), d);
                                }
                            }
                            Err(e) => {
                                tracing::debug!(controller = name, ?key, "sync failed: {e}");
                                queue.add_rate_limited(key.clone());
                            }
                        }
                        queue.done(&key);
                    }
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_worked_on_by_one_at_a_time() {
        let q: Queue<&str> = Queue::new();
        q.add("a");
        q.add("a");
        assert_eq!(q.next().await, "a");
        q.add("a");
        assert!(q.is_empty());
        q.done(&"a");
        assert_eq!(q.next().await, "a");
        q.done(&"a");
        assert!(q.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_delays_the_shortest_counts_once() {
        let q: Queue<u8> = Queue::new();
        let start = Instant::now();
        for s in [20, 10, 15] {
            q.add_after(1, Duration::from_secs(s));
        }
        q.next().await;
        q.done(&1);
        assert_eq!(start.elapsed().as_secs(), 10);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(q.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_double_the_delay() {
        let q: Queue<u8> = Queue::with_backoff(Duration::from_secs(10), Duration::from_secs(35));
        let mut waits = Vec::new();
        for _ in 0..4 {
            let t = tokio::time::Instant::now();
            q.add_rate_limited(1);
            q.next().await;
            q.done(&1);
            waits.push(t.elapsed().as_secs());
        }
        assert_eq!(waits, [10, 20, 35, 35]);
        q.forget(&1);
        assert_eq!(q.failures(&1), 0);
    }
}
