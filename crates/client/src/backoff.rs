//! How long to wait before a list or watch that failed is tried again: long enough not to press a server that is away,
//! short enough to be back soon after it.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use rand::Rng;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(5);
/// After so long without a failure the next one counts as the first.
const CALM: Duration = Duration::from_secs(60);

/// Half a second to begin with, twice as long each time up to five, and up to as much again by lot so that many do not
/// come back at once. A success alone does not start it anew: a list that succeeds before each watch that fails must not
/// be repeated without end.
#[derive(Debug, Clone)]
pub struct WatchBackoff {
    next: Duration,
    failed: Option<Instant>,
}

impl Default for WatchBackoff {
    fn default() -> Self {
        WatchBackoff { next: FIRST, failed: None }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.failed.is_none_or(|at| at.elapsed() > CALM) {
            self.next = FIRST;
        }
        let wait = self.next.mul_f64(1.0 + rand::rng().random::<f64>());
        self.next = (self.next * 2).min(LONGEST);
        self.failed = Some(Instant::now());
        Some(wait)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn grows_to_its_limit_and_starts_anew_after_calm() {
        let mut b = WatchBackoff::default();
        let waits: Vec<u128> = (0..6).filter_map(|_| b.next()).map(|w| w.as_millis()).collect();
        for (wait, least) in waits.iter().zip([500, 1000, 2000, 4000, 5000, 5000]) {
            assert!((least..=2 * least).contains(wait), "{waits:?}");
        }
        b.reset();
        assert!(b.next().unwrap() >= LONGEST);
        tokio::time::advance(CALM + Duration::from_secs(1)).await;
        assert!(b.next().unwrap() <= 2 * FIRST);
    }
}
