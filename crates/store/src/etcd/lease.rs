//! Leases for keys with a time to live. A lease costs etcd more than a key does, so keys whose times end close to each
//! other share one, as in Kubernetes: a lease lives a little longer than asked for and is used again for that while.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::CALL_TIMEOUT;
use super::endpoints::{Call, Endpoints};
use crate::Error;

/// How many keys share a lease.
const SHARED_BY: usize = 1000;
/// How long a lease is used again, at most.
const REUSE: Duration = Duration::from_secs(60);
/// The same, as a part of the time to live.
const REUSE_PART: u32 = 20;

struct Lease {
    id: i64,
    /// Until when new keys get it.
    until: Instant,
    keys: usize,
}

/// The leases in use, by their time to live in seconds.
#[derive(Default)]
pub(super) struct Leases(Mutex<HashMap<u64, Lease>>);

fn reuse(ttl: u64) -> u64 {
    (Duration::from_secs(ttl) / REUSE_PART).min(REUSE).as_secs()
}

impl Leases {
    /// A lease that lives for at least `ttl`.
    pub(super) async fn get(&self, endpoints: &Endpoints, ttl: Duration) -> Result<i64, Error> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = seconds.max(1);
        let mut leases = self.0.lock().await;
        let now = Instant::now();
        leases.retain(|_, l| l.until >= now);
        if let Some(lease) = leases.get_mut(&seconds).filter(|l| l.keys < SHARED_BY) {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let lives = seconds + reuse(seconds);
        let granted = endpoints
            .call(Call::Read(CALL_TIMEOUT), |client| async move {
                client.lease_client().grant(i64::try_from(lives).unwrap_or(i64::MAX), None).await
            })
            .await?;
        let id = granted.id();
        leases.insert(seconds, Lease { id, until: now + Duration::from_secs(reuse(seconds)), keys: 1 });
        Ok(id)
    }

    /// Uses none of the leases again.
    pub(super) async fn forget(&self) {
        self.0.lock().await.clear();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_lease_is_used_again_for_a_twentieth_of_its_time_and_a_minute_at_most() {
        assert_eq!([2, 20, 600, 3600].map(super::reuse), [0, 1, 30, 60]);
    }
}
