//! Back-off by key, as client-go's `flowcontrol.Backoff`: the wait doubles with each failure and is forgotten when
//! twice the longest wait passed without one.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy)]
struct Entry {
    wait: Duration,
    updated: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    entries: Mutex<HashMap<String, Entry>>,
}

impl Backoff {
    /// Waits from `initial` to `max`.
    pub fn new(initial: Duration, max: Duration) -> Backoff {
        Backoff { initial, max, entries: Mutex::default() }
    }

    fn live(&self, entries: &HashMap<String, Entry>, key: &str, event: Instant) -> Option<Entry> {
        entries.get(key).copied().filter(|e| event.saturating_duration_since(e.updated) <= self.max * 2)
    }

    /// How much longer to wait where the last try ended at `event`; `None` where it is time.
    pub fn remaining_since(&self, key: &str, event: Instant) -> Option<Duration> {
        let entry = self.live(&self.entries.lock(), key, event)?;
        let passed = event.elapsed();
        (passed < entry.wait).then(|| entry.wait - passed)
    }

    /// How much longer to wait since the last failure was noted; `None` where it is time.
    pub fn remaining_since_update(&self, key: &str) -> Option<Duration> {
        let entry = self.live(&self.entries.lock(), key, Instant::now())?;
        let passed = entry.updated.elapsed();
        (passed < entry.wait).then(|| entry.wait - passed)
    }

    /// Notes a try that ended at `event`: the wait begins, or doubles.
    pub fn next(&self, key: &str, event: Instant) {
        let mut entries = self.entries.lock();
        let wait = match self.live(&entries, key, event) {
            Some(e) => (e.wait * 2).min(self.max),
            None => self.initial,
        };
        entries.insert(key.to_string(), Entry { wait, updated: Instant::now() });
    }

    /// The present wait; zero where there is none.
    pub fn wait(&self, key: &str) -> Duration {
        self.entries.lock().get(key).map_or(Duration::ZERO, |e| e.wait)
    }

    /// Forgets one key.
    pub fn reset(&self, key: &str) {
        self.entries.lock().remove(key);
    }

    /// Forgets keys that begin so.
    pub fn reset_prefix(&self, prefix: &str) {
        self.entries.lock().retain(|k, _| !k.starts_with(prefix));
    }

    /// Forgets what is old.
    pub fn collect(&self) {
        let now = Instant::now();
        self.entries.lock().retain(|_, e| now.duration_since(e.updated) <= self.max * 2);
    }
}

/// A wait as Go prints a duration: `10s`, `1m20s`, `5m0s`.
pub fn show(d: Duration) -> String {
    let s = d.as_secs();
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubles_and_is_forgotten() {
        let b = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        let mut waits = Vec::new();
        for _ in 0..7 {
            let exited = Instant::now();
            assert!(waits.is_empty() || b.remaining_since("k", exited).is_some());
            tokio::time::advance(b.wait("k")).await;
            assert_eq!(b.remaining_since("k", exited), None);
            b.next("k", exited);
            waits.push(show(b.wait("k")));
        }
        assert_eq!(waits, ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]);
        // A run of more than ten minutes earns a fresh start.
        tokio::time::advance(Duration::from_secs(601)).await;
        let exited = Instant::now();
        assert_eq!(b.remaining_since("k", exited), None);
        b.next("k", exited);
        assert_eq!(b.wait("k"), Duration::from_secs(10));
        assert!(b.remaining_since_update("k").is_some());
        b.reset("k");
        assert_eq!(b.wait("k"), Duration::ZERO);
    }
}
