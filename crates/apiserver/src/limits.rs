//! How many requests may be in the server at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Whether a request only reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// `get`, `list` and the like.
    ReadOnly,
    /// Everything else.
    Mutating,
}

impl Class {
    /// The class of a verb.
    pub fn of(verb: &str) -> Class {
        if matches!(verb, "get" | "list" | "head" | "options") { Class::ReadOnly } else { Class::Mutating }
    }
}

#[derive(Debug, Default)]
struct Counter {
    limit: usize,
    now: AtomicUsize,
}

/// Counts the requests in the server, in both classes. Long-running requests are not counted here.
#[derive(Debug, Clone, Default)]
pub struct Limits(Arc<[Counter; 2]>);

/// A request's place; given back when dropped.
#[derive(Debug)]
pub struct Place(Limits, Class);

impl Limits {
    /// Limits of both classes; 0 is no limit.
    pub fn new(read_only: usize, mutating: usize) -> Limits {
        Limits(Arc::new([
            Counter { limit: read_only, now: AtomicUsize::new(0) },
            Counter { limit: mutating, now: AtomicUsize::new(0) },
        ]))
    }

    fn counter(&self, class: Class) -> &Counter {
        &self.0[usize::from(class == Class::Mutating)]
    }

    /// A place for a request; none where all are taken, unless the request is `exempt` (of `system:masters`).
    pub fn enter(&self, class: Class, exempt: bool) -> Option<Place> {
        let counter = self.counter(class);
        let before = counter.now.fetch_add(1, Ordering::AcqRel);
        if counter.limit > 0 && before >= counter.limit && !exempt {
            counter.now.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Place(self.clone(), class))
    }

    /// How many requests of a class there are.
    pub fn current(&self, class: Class) -> usize {
        self.counter(class).now.load(Ordering::Acquire)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.counter(self.1).now.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let limits = Limits::new(2, 1);
        let a = limits.enter(Class::ReadOnly, false).unwrap();
        let _b = limits.enter(Class::ReadOnly, false).unwrap();
        assert!(limits.enter(Class::ReadOnly, false).is_none());
        assert!(limits.enter(Class::ReadOnly, true).is_some());
        drop(a);
        assert!(limits.enter(Class::ReadOnly, false).is_some());
        let _m = limits.enter(Class::Mutating, false).unwrap();
        assert!(limits.enter(Class::Mutating, false).is_none());
        assert_eq!((limits.current(Class::ReadOnly), limits.current(Class::Mutating)), (1, 1));
        assert!(Limits::new(0, 0).enter(Class::Mutating, false).is_some());
    }

    #[test]
    fn classes() {
        assert_eq!(Class::of("list"), Class::ReadOnly);
        assert_eq!(Class::of("deletecollection"), Class::Mutating);
        assert_eq!(Class::of("post"), Class::Mutating);
    }
}
