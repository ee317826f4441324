//! The queues of one priority level: who waits where, and whose turn it is. Knows neither clocks nor tasks: the time is
//! given, and what waits is anything.
//!
//! Fair queuing as in Kubernetes: each queue has a virtual time at which its next request would start if all queues with
//! work were served at once and evenly; whose next would be done first has its turn. How long a request takes is guessed
//! when it starts and corrected when it has ended.

use std::collections::VecDeque;
use std::time::Duration;

use super::matching::deal;

/// What a request is taken to last until it has ended, in seconds.
const GUESS: f64 = 60.0;

/// How a level queues what it cannot serve at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of queues; 0: nothing waits.
    pub queues: usize,
    /// Queues that one flow may use.
    pub hand: usize,
    /// Requests that may wait in a queue.
    pub length: usize,
}

/// One queue.
#[derive(Debug)]
pub struct Queue<T> {
    /// What waits, the oldest first.
    pub waiting: VecDeque<T>,
    /// Requests out of this queue that are being served.
    pub executing: usize,
    /// When the next one would start, in virtual seconds.
    pub virtual_start: f64,
}

/// The state of a level.
#[derive(Debug)]
pub struct Queues<T> {
    shape: Shape,
    limit: usize,
    executing: usize,
    waiting: usize,
    /// Never fewer than there were: requests remember their queue by its place.
    queues: Vec<Queue<T>>,
    virtual_time: f64,
    updated: Duration,
    robin: usize,
    most: usize,
}

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is served at once.
    Served,
    /// It waits in this queue.
    Waits(usize),
    /// Too many are there, and nothing waits in this level.
    Refused,
    /// Its queues are full.
    QueueFull,
}

impl<T> Queues<T> {
    /// An idle level that serves `limit` requests at a time.
    pub fn new(shape: Shape, limit: usize) -> Queues<T> {
        let mut queues = Queues {
            shape,
            limit,
            executing: 0,
            waiting: 0,
            queues: Vec::new(),
            virtual_time: 0.0,
            updated: Duration::ZERO,
            robin: 0,
            most: 0,
        };
        queues.reshape(shape, limit);
        queues
    }

    /// Changes the configuration. What waits goes on waiting where it is.
    pub fn reshape(&mut self, shape: Shape, limit: usize) {
        self.shape = shape;
        self.limit = limit;
        let empty = || Queue { waiting: VecDeque::new(), executing: 0, virtual_start: 0.0 };
        let length = self.queues.len().max(shape.queues);
        self.queues.resize_with(length, empty);
    }

    /// How many may be served at a time.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many are served.
    pub fn executing(&self) -> usize {
        self.executing
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// All queues.
    pub fn queues(&self) -> &[Queue<T>] {
        &self.queues
    }

    /// The most that were there at a time since this was asked last.
    pub fn take_most(&mut self) -> usize {
        std::mem::replace(&mut self.most, self.executing + self.waiting)
    }

    fn note(&mut self) {
        self.most = self.most.max(self.executing + self.waiting);
    }

    /// A request arrives. Where it has to wait, `request` makes what waits; `gone` says of what waits that nobody is
    /// interested any more. `hash` gives the flow's number.
    pub fn arrive(
        &mut self,
        now: Duration,
        hash: impl FnOnce() -> u64,
        request: impl FnOnce() -> T,
        gone: impl Fn(&T) -> bool,
    ) -> Arrival {
        if self.waiting == 0 && self.executing < self.limit {
            self.executing += 1;
            self.note();
            return Arrival::Served;
        }
        if self.shape.queues == 0 {
            return Arrival::Refused;
        }
        self.advance(now);
        let hand = deal(hash(), self.shape.queues, self.shape.hand);
        let load = |q: &usize| self.queues[*q].waiting.len() + self.queues[*q].executing;
        let Some(chosen) = hand.into_iter().min_by_key(load) else { return Arrival::Refused };
        if self.queues[chosen].waiting.len() >= self.shape.length {
            self.prune(chosen, &gone);
            if self.queues[chosen].waiting.len() >= self.shape.length {
                return Arrival::QueueFull;
            }
        }
        let time = self.virtual_time;
        let queue = &mut self.queues[chosen];
        if queue.waiting.is_empty() && queue.executing == 0 {
            queue.virtual_start = time;
        }
        queue.waiting.push_back(request());
        self.waiting += 1;
        self.note();
        Arrival::Waits(chosen)
    }

    /// Forgets what nobody waits for any more in a queue.
    pub fn prune(&mut self, queue: usize, gone: impl Fn(&T) -> bool) {
        let Some(queue) = self.queues.get_mut(queue) else { return };
        let before = queue.waiting.len();
        queue.waiting.retain(|r| !gone(r));
        self.waiting -= before - queue.waiting.len();
    }

    /// A request has been served, `took` long; `queue` is where it had waited, if it had.
    pub fn finish(&mut self, now: Duration, queue: Option<usize>, took: Duration) {
        self.executing -= 1;
        if let Some(queue) = queue {
            self.advance(now);
            let queue = &mut self.queues[queue];
            queue.executing -= 1;
            queue.virtual_start -= GUESS - took.as_secs_f64();
        }
    }

    /// The request whose turn it is, with its queue; none while all places are taken or nothing waits.
    pub fn next(&mut self, now: Duration) -> Option<(usize, T)> {
        if self.waiting == 0 || self.executing >= self.limit {
            return None;
        }
        self.advance(now);
        let count = self.queues.len();
        // From the one behind the last on, so that equals take turns.
        let order = (0..count).map(|i| (self.robin + 1 + i) % count);
        let finish = |q: &usize| self.queues[*q].virtual_start;
        let waiting = order.filter(|q| !self.queues[*q].waiting.is_empty());
        let chosen = waiting.min_by(|a, b| finish(a).total_cmp(&finish(b)))?;
        let queue = &mut self.queues[chosen];
        let request = queue.waiting.pop_front()?;
        queue.executing += 1;
        queue.virtual_start += GUESS;
        self.robin = chosen;
        self.waiting -= 1;
        self.executing += 1;
        Some((chosen, request))
    }

    /// Moves the virtual time on to now.
    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.updated).as_secs_f64();
        self.updated = now;
        let active = self.queues.iter().filter(|q| !q.waiting.is_empty() || q.executing > 0).count();
        if active > 0 {
            let served = self.executing.min(self.limit);
            self.virtual_time += passed * served as f64 / active as f64;
        }
    }
}

/// Shares a number of places among levels: each gets between `low` and `high` of what it would like, the same fraction
/// of that as the others where there is too little or too much.
pub fn share(total: usize, levels: &[(usize, usize, usize)]) -> Vec<usize> {
    let at = |fraction: f64| {
        levels.iter().map(move |(low, wish, high)| {
            let wished = (*wish as f64 * fraction).round() as usize;
            wished.clamp(*low, (*high).max(*low))
        })
    };
    let (mut less, mut more) = (0.0, 1.0);
    while at(more).sum::<usize>() < total && more < 1e9 {
        more *= 2.0;
    }
    for _ in 0..60 {
        let middle = (less + more) / 2.0;
        if at(middle).sum::<usize>() > total { more = middle } else { less = middle }
    }
    at(less).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { queues: 8, hand: 2, length: 3 };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn arrive(q: &mut Queues<u64>, now: u64, flow: u64) -> Arrival {
        q.arrive(at(now), || flow * 7919, || flow, |_| false)
    }

    #[test]
    fn a_free_place_costs_no_queue() {
        let mut q = Queues::new(SHAPE, 2);
        assert_eq!(arrive(&mut q, 0, 1), Arrival::Served);
        assert_eq!(arrive(&mut q, 0, 1), Arrival::Served);
        assert!(matches!(arrive(&mut q, 0, 1), Arrival::Waits(_)));
        assert_eq!((q.executing(), q.waiting(), q.next(at(0))), (2, 1, None));
        q.finish(at(1), None, at(1));
        let (queue, flow) = q.next(at(1)).unwrap();
        assert_eq!((flow, q.executing(), q.waiting()), (1, 2, 0));
        q.finish(at(2), Some(queue), at(1));
        q.finish(at(2), None, at(2));
        assert_eq!((q.executing(), q.next(at(2))), (0, None));
        assert_eq!(q.take_most(), 3);
        assert_eq!(q.take_most(), 0);
    }

    #[test]
    fn full_queues_refuse_and_levels_without_queues_too() {
        let mut q = Queues::new(Shape { queues: 1, hand: 1, length: 2 }, 1);
        arrive(&mut q, 0, 1);
        arrive(&mut q, 0, 1);
        arrive(&mut q, 0, 1);
        assert_eq!(arrive(&mut q, 0, 1), Arrival::QueueFull);
        // Those whose clients have gone make room.
        assert_eq!(q.arrive(at(0), || 0, || 9, |flow| *flow == 1), Arrival::Waits(0));
        assert_eq!(q.waiting(), 1);
        let mut q = Queues::new(Shape { queues: 0, hand: 0, length: 0 }, 1);
        assert_eq!(arrive(&mut q, 0, 1), Arrival::Served);
        assert_eq!(arrive(&mut q, 0, 1), Arrival::Refused);
    }

    #[test]
    fn a_mouse_is_not_kept_waiting_by_an_elephant() {
        let mut q = Queues::new(Shape { queues: 64, hand: 1, length: 1000 }, 1);
        assert_eq!(arrive(&mut q, 0, 1), Arrival::Served);
        for _ in 0..200 {
            assert!(matches!(arrive(&mut q, 0, 1), Arrival::Waits(_)));
        }
        for _ in 0..3 {
            assert!(matches!(arrive(&mut q, 0, 2), Arrival::Waits(_)));
        }
        q.finish(at(1), None, at(1));
        let mut order = Vec::new();
        for now in 1..10 {
            let (queue, flow) = q.next(at(now)).unwrap();
            order.push(flow);
            q.finish(at(now + 1), Some(queue), at(1));
        }
        let mice: Vec<usize> = order.iter().enumerate().filter(|(_, f)| **f == 2).map(|(i, _)| i).collect();
        assert_eq!(mice.len(), 3, "{order:?}");
        assert!(mice[2] <= 6, "{order:?}");
    }

    #[test]
    fn longer_requests_have_fewer_turns() {
        let mut q = Queues::new(Shape { queues: 64, hand: 1, length: 1000 }, 1);
        arrive(&mut q, 0, 3);
        for _ in 0..100 {
            arrive(&mut q, 0, 1);
            arrive(&mut q, 0, 2);
        }
        q.finish(at(0), None, at(0));
        let (mut now, mut turns) = (0, [0, 0, 0]);
        for _ in 0..60 {
            let (queue, flow) = q.next(at(now)).unwrap();
            let took = if flow == 1 { 5 } else { 1 };
            now += took;
            turns[flow as usize] += 1;
            q.finish(at(now), Some(queue), at(took));
        }
        assert!(turns[2] >= 4 * turns[1], "{turns:?}");
        assert!(turns[1] >= 8, "{turns:?}");
    }

    #[test]
    fn fewer_queues_strand_nobody() {
        let mut q = Queues::new(SHAPE, 1);
        for flow in 0..6 {
            arrive(&mut q, 0, flow);
        }
        q.reshape(Shape { queues: 1, hand: 1, length: 9 }, 1);
        let mut done = 0;
        q.finish(at(1), None, at(1));
        while let Some((queue, _)) = q.next(at(1)) {
            done += 1;
            q.finish(at(1), Some(queue), at(0));
        }
        assert_eq!(done, 5);
    }

    #[test]
    fn places_are_lent() {
        // Nobody wants more than its own: nobody loses what it may be asked for.
        assert_eq!(share(100, &[(50, 50, 100), (50, 50, 100)]), [50, 50]);
        // One is busy, the other lends all but what it must keep.
        assert_eq!(share(100, &[(10, 90, 100), (10, 10, 100)]), [90, 10]);
        // Too many wishes: the same fraction for each.
        assert_eq!(share(60, &[(0, 100, 100), (0, 50, 100)]), [40, 20]);
        // No more than is allowed to be borrowed.
        assert_eq!(share(100, &[(10, 500, 70), (10, 10, 100)])[0], 70);
    }
}
