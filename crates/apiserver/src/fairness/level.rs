//! A priority level at work: its places and those who wait for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::matching::flow_hash;
use super::queues::{Arrival, Queues, Shape};

/// Why a request is refused, as metrics call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The flow's queues are full.
    QueueFull,
    /// All places are taken, and the level has no queues.
    ConcurrencyLimit,
    /// It has waited too long.
    TimeOut,
    /// The client has gone.
    Cancelled,
}

/// All of them, with their names.
pub const REFUSALS: [(Refusal, &str); 4] = [
    (Refusal::QueueFull, "queue-full"),
    (Refusal::ConcurrencyLimit, "concurrency-limit"),
    (Refusal::TimeOut, "time-out"),
    (Refusal::Cancelled, "cancelled"),
];

/// Upper bounds of durations' buckets, in seconds.
pub const BUCKETS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

/// A histogram that costs two additions.
#[derive(Debug, Default)]
pub struct Durations {
    counts: [AtomicU64; BUCKETS.len() + 1],
    micros: AtomicU64,
}

impl Durations {
    fn add(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|b| seconds <= *b).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    /// Counts by bucket, not cumulated, and the sum in seconds.
    pub fn read(&self) -> (Vec<u64>, f64) {
        let counts = self.counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        (counts, self.micros.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

/// What is counted of the requests of one flow schema in one level.
#[derive(Debug, Default)]
pub struct Counts {
    /// Served, or being served.
    pub dispatched: AtomicU64,
    /// By [`REFUSALS`].
    pub refused: [AtomicU64; REFUSALS.len()],
    /// In work now.
    pub executing: AtomicU64,
    /// Waiting now.
    pub waiting: AtomicU64,
    /// How long those that were served had waited.
    pub waited: Durations,
    /// How long those that were refused had waited.
    pub waited_in_vain: Durations,
    /// How long they took.
    pub executed: Durations,
}

impl Counts {
    fn refuse(&self, why: Refusal, waited: Duration) -> Refusal {
        if let Some(i) = REFUSALS.iter().position(|(r, _)| *r == why) {
            self.refused[i].fetch_add(1, Ordering::Relaxed);
        }
        self.waited_in_vain.add(waited);
        why
    }
}

/// A request that waits, for those who look at the queues.
#[derive(Debug)]
pub struct Waiter {
    place: oneshot::Sender<Place>,
    /// Its flow schema.
    pub schema: Arc<str>,
    /// Its flow.
    pub distinguisher: String,
    /// When it came.
    pub since: SystemTime,
}

/// What can be queued for.
#[derive(Debug)]
pub struct Level {
    /// Its name.
    pub name: Arc<str>,
    /// `None`: requests are served without limit.
    pub queues: Option<Mutex<Queues<Waiter>>>,
    /// What its times are counted from.
    began: Instant,
}

/// A request's place in a level; given back when dropped.
#[derive(Debug)]
pub struct Place {
    level: Arc<Level>,
    queue: Option<usize>,
    started: Instant,
    counts: Arc<Counts>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.counts.executing.fetch_sub(1, Ordering::Relaxed);
        self.counts.executed.add(took);
        if let Some(queues) = &self.level.queues {
            queues.lock().finish(self.level.began.elapsed(), self.queue, took);
            self.level.dispatch();
        }
    }
}

/// Takes a request out of its queue's count when it no longer waits, however that came.
struct Waiting<'a> {
    level: &'a Level,
    queue: usize,
    counts: &'a Counts,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.counts.waiting.fetch_sub(1, Ordering::Relaxed);
        if let Some(queues) = &self.level.queues {
            queues.lock().prune(self.queue, |w| w.place.is_closed());
        }
    }
}

impl Level {
    /// A level; without a shape it is without limit.
    pub fn new(name: &str, limited: Option<(Shape, usize)>) -> Level {
        let queues = limited.map(|(shape, limit)| Mutex::new(Queues::new(shape, limit)));
        Level { name: name.into(), queues, began: Instant::now() }
    }

    /// Changes the configuration of a limited level.
    pub fn reshape(self: &Arc<Self>, shape: Shape, limit: usize) {
        if let Some(queues) = &self.queues {
            queues.lock().reshape(shape, limit);
            self.dispatch();
        }
    }

    fn place(self: &Arc<Self>, queue: Option<usize>, counts: &Arc<Counts>) -> Place {
        counts.dispatched.fetch_add(1, Ordering::Relaxed);
        counts.executing.fetch_add(1, Ordering::Relaxed);
        Place { level: self.clone(), queue, started: Instant::now(), counts: counts.clone() }
    }

    /// Gives free places to those whose turn it is.
    fn dispatch(self: &Arc<Self>) {
        let Some(queues) = &self.queues else { return };
        loop {
            let next = queues.lock().next(self.began.elapsed());
            let Some((queue, waiter)) = next else { return };
            // Not counted as served before it has been taken: the one who waits does that. A place that nobody takes
            // comes back at once, which is why nothing is locked here.
            let place = Place {
                level: self.clone(),
                queue: Some(queue),
                started: Instant::now(),
                counts: Arc::default(),
            };
            place.counts.executing.fetch_add(1, Ordering::Relaxed);
            let _ = waiter.place.send(place);
        }
    }

    /// A place for a request of a flow; waits for one at most `limit` long.
    pub async fn enter(
        self: &Arc<Self>,
        schema: &Arc<str>,
        distinguisher: &str,
        counts: &Arc<Counts>,
        limit: Duration,
    ) -> Result<Place, Refusal> {
        let Some(queues) = &self.queues else {
            counts.waited.add(Duration::ZERO);
            return Ok(self.place(None, counts));
        };
        let mut receiver = None;
        let arrival = queues.lock().arrive(
            self.began.elapsed(),
            || flow_hash(schema, distinguisher),
            || {
                let (place, wait) = oneshot::channel();
                receiver = Some(wait);
                Waiter {
                    place,
                    schema: schema.clone(),
                    distinguisher: distinguisher.to_string(),
                    since: SystemTime::now(),
                }
            },
            |w| w.place.is_closed(),
        );
        let (queue, wait) = match (arrival, receiver) {
            (Arrival::Served, _) => {
                counts.waited.add(Duration::ZERO);
                return Ok(self.place(None, counts));
            }
            (Arrival::Waits(queue), Some(wait)) => (queue, wait),
            (Arrival::QueueFull, _) => return Err(counts.refuse(Refusal::QueueFull, Duration::ZERO)),
            _ => return Err(counts.refuse(Refusal::ConcurrencyLimit, Duration::ZERO)),
        };
        counts.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting { level: self, queue, counts };
        let since = Instant::now();
        let outcome = tokio::time::timeout(limit, wait).await;
        drop(waiting);
        match outcome {
            Ok(Ok(mut given)) => {
                counts.waited.add(since.elapsed());
                counts.dispatched.fetch_add(1, Ordering::Relaxed);
                counts.executing.fetch_add(1, Ordering::Relaxed);
                given.counts = counts.clone();
                Ok(given)
            }
            Ok(Err(_)) => Err(counts.refuse(Refusal::Cancelled, since.elapsed())),
            Err(_) => Err(counts.refuse(Refusal::TimeOut, since.elapsed())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(limit: usize) -> Arc<Level> {
        Arc::new(Level::new("l", Some((Shape { queues: 4, hand: 1, length: 2 }, limit))))
    }

    const LONG: Duration = Duration::from_secs(15);

    async fn enter(level: &Arc<Level>, counts: &Arc<Counts>) -> Result<Place, Refusal> {
        level.enter(&"s".into(), "u", counts, LONG).await
    }

    fn state(level: &Level) -> (usize, usize) {
        let queues = level.queues.as_ref().unwrap().lock();
        (queues.executing(), queues.waiting())
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gets_the_next_place() {
        let (level, counts) = (level(1), Arc::new(Counts::default()));
        let first = enter(&level, &counts).await.unwrap();
        let (l, c) = (level.clone(), counts.clone());
        let second = tokio::spawn(async move { enter(&l, &c).await });
        while state(&level).1 == 0 {
            tokio::task::yield_now().await;
        }
        drop(first);
        let second = second.await.unwrap().unwrap();
        assert_eq!((state(&level), counts.dispatched.load(Ordering::Relaxed)), ((1, 0), 2));
        drop(second);
        assert_eq!((state(&level), counts.executing.load(Ordering::Relaxed)), ((0, 0), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let (level, counts) = (level(1), Arc::new(Counts::default()));
        let _first = enter(&level, &counts).await.unwrap();
        assert_eq!(enter(&level, &counts).await.err(), Some(Refusal::TimeOut));
        assert_eq!(state(&level), (1, 0));
        // A client that goes leaves nothing behind.
        let waiting = tokio::spawn({
            let (level, counts) = (level.clone(), counts.clone());
            async move { enter(&level, &counts).await.map(drop) }
        });
        while state(&level).1 == 0 {
            tokio::task::yield_now().await;
        }
        waiting.abort();
        assert!(waiting.await.is_err());
        assert_eq!((state(&level), counts.waiting.load(Ordering::Relaxed)), ((1, 0), 0));
        assert_eq!(counts.refused[2].load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn levels_grow_at_work() {
        let (level, counts) = (level(1), Arc::new(Counts::default()));
        let _first = enter(&level, &counts).await.unwrap();
        let (l, c) = (level.clone(), counts.clone());
        let second = tokio::spawn(async move { enter(&l, &c).await });
        while state(&level).1 == 0 {
            tokio::task::yield_now().await;
        }
        level.reshape(Shape { queues: 4, hand: 1, length: 2 }, 2);
        let _second = second.await.unwrap().unwrap();
        assert_eq!(state(&level), (2, 0));
        let exempt = Arc::new(Level::new("exempt", None));
        let many: Vec<Place> = futures::future::join_all((0..1000).map(|_| enter(&exempt, &counts)))
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(many.len(), 1000);
    }
}
