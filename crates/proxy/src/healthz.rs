//! The proxy's own health: `/healthz` on port 10256. What changed in the API has to be in the kernel before long.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use parking_lot::Mutex;
use pilothouse_component_base::serve::Page;
use tokio::time::Instant;

/// How long a change may wait for the kernel to have it: twice the period after which all is compared.
const LATE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct State {
    /// When the oldest change came that the kernel does not have.
    waiting: Option<Instant>,
    /// When the kernel had all the last time.
    updated: Option<Timestamp>,
}

/// See the module. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Healthz(Arc<Mutex<State>>);

impl Healthz {
    /// Something has changed in the API.
    pub fn queued(&self) {
        self.0.lock().waiting.get_or_insert_with(Instant::now);
    }

    /// The kernel has all of it.
    pub fn updated(&self) {
        *self.0.lock() = State { waiting: None, updated: Some(Timestamp::now()) };
    }

    /// Status and body. At the beginning, when nothing waits yet, all is well.
    pub fn answer(&self, now: Timestamp) -> (StatusCode, String) {
        let state = self.0.lock();
        let healthy = state.waiting.is_none_or(|since| since.elapsed() < LATE);
        let (code, updated) = match healthy {
            // As if it had been compared this moment: it would have changed nothing.
            true => (StatusCode::OK, Some(now)),
            false => (StatusCode::SERVICE_UNAVAILABLE, state.updated),
        };
        let text = |at: Option<Timestamp>| match at {
            Some(at) => at.strftime("%Y-%m-%d %H:%M:%S.%9f +0000 UTC").to_string(),
            None => "0001-01-01 00:00:00 +0000 UTC".into(),
        };
        (code, format!("{{\"lastUpdated\": {:?},\"currentTime\": {:?}}}", text(updated), text(Some(now))))
    }

    /// The page that shows it.
    pub fn page(&self) -> Page {
        let own = self.clone();
        Arc::new(move || {
            let (code, body) = own.answer(Timestamp::now());
            (code, "application/json", body)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_that_waits_too_long_is_ill() {
        let healthz = Healthz::default();
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let well = "{\"lastUpdated\": \"2026-01-02 03:04:05.000000000 +0000 UTC\",\"currentTime\": \"2026-01-02 03:04:05.000000000 +0000 UTC\"}";
        assert_eq!(healthz.answer(now), (StatusCode::OK, well.into()));
        healthz.queued();
        tokio::time::advance(LATE - Duration::from_secs(1)).await;
        // A later one does not make the first younger.
        healthz.queued();
        assert_eq!(healthz.answer(now).0, StatusCode::OK);
        tokio::time::advance(Duration::from_secs(1)).await;
        let (code, body) = healthz.answer(now);
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.starts_with("{\"lastUpdated\": \"0001-01-01 00:00:00 +0000 UTC\","), "{body}");
        healthz.updated();
        assert_eq!(healthz.answer(now), (StatusCode::OK, well.into()));
    }
}
