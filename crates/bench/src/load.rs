//! Runs one operation many times from many clients, and what came of it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use crate::histogram::Histogram;

/// How much, by how many, how fast, for how long at most.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Operations in all.
    pub n: u64,
    /// Concurrent clients.
    pub clients: usize,
    /// Operations per second in all; 0: the next as soon as the last is answered.
    pub rate: u32,
    /// After this no more are begun.
    pub limit: Duration,
}

/// What came of a plan.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Latencies of those that succeeded.
    pub latencies: Histogram,
    /// How many failed.
    pub errors: u64,
    /// The first failure.
    pub error: Option<String>,
    /// From the first's begin to the last's end.
    pub took: Duration,
}

impl Outcome {
    /// Successes per second.
    pub fn rate(&self) -> f64 {
        self.latencies.count() as f64 / self.took.as_secs_f64()
    }
}

/// Calls `op(client, index)` for each index below `plan.n` once. At a given rate a latency counts from the moment at
/// which the call was due, so that a server that stalls is charged for those that had to wait.
pub async fn run<F, R>(plan: Plan, op: F) -> Outcome
where
    F: Fn(usize, u64) -> R + Clone + Send + 'static,
    R: Future<Output = Result<()>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let clients: Vec<_> = (0..plan.clients)
        .map(|client| {
            let (op, next) = (op.clone(), next.clone());
            tokio::spawn(async move {
                let mut own = Outcome::default();
                while begin.elapsed() < plan.limit {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= plan.n {
                        break;
                    }
                    let mut from = Instant::now();
                    if plan.rate > 0 {
                        from = begin + Duration::from_secs_f64(index as f64 / f64::from(plan.rate));
                        tokio::time::sleep_until(from).await;
                    }
                    match op(client, index).await {
                        Ok(()) => own.latencies.record(from.elapsed()),
                        Err(e) => {
                            own.errors += 1;
                            own.error.get_or_insert_with(|| format!("{e:#}"));
                        }
                    }
                }
                own
            })
        })
        .collect();
    let mut all = Outcome::default();
    for client in clients {
        match client.await {
            Ok(one) => {
                all.latencies.merge(&one.latencies);
                all.errors += one.errors;
                all.error = all.error.or(one.error);
            }
            Err(e) => {
                all.errors += 1;
                all.error.get_or_insert_with(|| e.to_string());
            }
        }
    }
    all.took = begin.elapsed();
    all
}

/// Throughput through the server as a part of what the store alone does: one ratio per round.
pub fn ratios(through: &[f64], raw: &[f64]) -> Vec<f64> {
    through.iter().zip(raw).filter(|(_, raw)| **raw > 0.0).map(|(through, raw)| through / raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn plan(n: u64, clients: usize) -> Plan {
        Plan { n, clients, rate: 0, limit: Duration::from_secs(60) }
    }

    #[tokio::test(start_paused = true)]
    async fn each_index_once_in_a_closed_loop() {
        let sum = Arc::new(AtomicU64::new(0));
        let seen = sum.clone();
        let outcome = run(plan(100, 10), move |_, i| {
            let sum = sum.clone();
            async move {
                sum.fetch_add(i, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(())
            }
        })
        .await;
        assert_eq!(seen.load(Ordering::Relaxed), 4950);
        assert_eq!(outcome.latencies.count(), 100);
        assert_eq!(outcome.took, Duration::from_millis(100));
        assert!((outcome.rate() - 1000.0).abs() < 1.0);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_counted_apart() {
        let outcome = run(plan(10, 2), |_, i| async move {
            if i % 5 == 0 {
                bail!("no {i}");
            }
            Ok(())
        })
        .await;
        assert_eq!((outcome.latencies.count(), outcome.errors), (8, 2));
        assert!(outcome.error.unwrap().starts_with("no "));
    }

    #[tokio::test(start_paused = true)]
    async fn ends_at_the_limit() {
        let plan = Plan { limit: Duration::from_secs(1), ..plan(1_000_000, 1) };
        let outcome = run(plan, |_, _| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        })
        .await;
        assert_eq!(outcome.latencies.count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn at_a_rate_waiting_counts() {
        // One client that takes 20 ms, due every 10 ms: the last of ten waited for the nine before it.
        let plan = Plan { rate: 100, ..plan(10, 1) };
        let outcome = run(plan, |_, _| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(())
        })
        .await;
        assert!((outcome.latencies.max().unwrap() - 110.0).abs() < 3.0);
    }

    #[test]
    fn ratio_per_round() {
        assert_eq!(ratios(&[500.0, 300.0, 1.0], &[1000.0, 1000.0, 0.0]), [0.5, 0.3]);
    }
}
