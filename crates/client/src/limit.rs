//! A limit on how many requests a client makes, as client-go's: a bucket of `burst` that fills at `qps`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use pilothouse_component_base::flags::Flags;
use tokio::time::Instant;
use tower::{Layer, Service};

/// How many requests a client may make.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// Requests per second in the long run.
    pub qps: f64,
    /// As many at once.
    pub burst: u32,
}

impl Limit {
    /// From `--kube-api-qps` and `--kube-api-burst`. Their defaults protect a server much slower than ours: where neither
    /// is given, or the rate is negative, there is no limit.
    pub fn from_flags(flags: &Flags) -> Option<Limit> {
        let (qps, burst) = (flags.float("kube-api-qps"), flags.int("kube-api-burst"));
        let given = flags.given("kube-api-qps") || flags.given("kube-api-burst");
        Limit::new(qps, burst).filter(|_| given)
    }

    /// `None` where the rate is not positive: no limit.
    pub fn new(qps: f64, burst: i64) -> Option<Limit> {
        (qps > 0.0).then(|| Limit { qps, burst: u32::try_from(burst).unwrap_or(0).max(1) })
    }
}

/// A bucket. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
struct Bucket(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    limit: Limit,
    /// Requests that may be made at `at`; below zero where others wait already.
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new(limit: Limit) -> Self {
        Bucket(Arc::new(Mutex::new(State { limit, tokens: f64::from(limit.burst), at: Instant::now() })))
    }

    /// Takes one request; when it may be made.
    fn take(&self) -> Instant {
        let mut s = self.0.lock();
        let now = Instant::now();
        let filled = s.tokens + now.duration_since(s.at).as_secs_f64() * s.limit.qps;
        s.tokens = filled.min(f64::from(s.limit.burst)) - 1.0;
        s.at = now;
        now + Duration::from_secs_f64((-s.tokens).max(0.0) / s.limit.qps)
    }
}

/// Puts the limit around a client's service.
#[derive(Clone)]
pub struct LimitLayer(Bucket);

impl LimitLayer {
    /// One bucket for all services that this layer is put around.
    pub fn new(limit: Limit) -> Self {
        LimitLayer(Bucket::new(limit))
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, bucket: self.0.clone() }
    }
}

/// See [`LimitLayer`].
#[derive(Clone)]
pub struct Limited<S> {
    inner: S,
    bucket: Bucket,
}

impl<S, R> Service<R> for Limited<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let at = self.bucket.take();
        // Nothing is sent before the future is first polled.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if at > Instant::now() {
                tokio::time::sleep_until(at).await;
            }
            answer.await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_the_rate() {
        let limit = LimitLayer::new(Limit { qps: 10.0, burst: 2 });
        let mut service = limit.layer(tower::service_fn(|()| async { Ok::<_, ()>(()) }));
        let start = Instant::now();
        let calls: Vec<_> = (0..4).map(|_| service.call(())).collect();
        let mut done = Vec::new();
        for call in calls {
            call.await.unwrap();
            done.push(start.elapsed().as_millis() / 10);
        }
        assert_eq!(done, [0, 0, 10, 20]);
        tokio::time::advance(Duration::from_secs(60)).await;
        let start = Instant::now();
        for _ in 0..3 {
            service.call(()).await.unwrap();
        }
        assert_eq!(start.elapsed().as_millis() / 10, 10);
    }
}
