//! The most recent events, for watches that keep up and for reads of what was just written.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{Event, KeyValue};

/// Rough cost of an event besides its bytes.
const OVERHEAD: usize = 200;

/// See the module. Every revision is one event, so an event's place follows from its revision.
#[derive(Debug)]
pub(super) struct Ring {
    events: VecDeque<Event>,
    first: u64,
    bytes: usize,
    limit: usize,
}

impl Ring {
    /// An empty ring whose first event will be that of revision `next`, of at most about `limit` bytes.
    pub(super) fn new(next: u64, limit: usize) -> Self {
        Ring { events: VecDeque::new(), first: next, bytes: 0, limit }
    }

    /// The oldest revision that is here, or the next one to come.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Adds the event of the next revision.
    pub(super) fn push(&mut self, event: Event) {
        self.bytes += cost(&event);
        self.events.push_back(event);
        while self.bytes > self.limit {
            let Some(old) = self.events.pop_front() else { break };
            self.bytes -= cost(&old);
            self.first += 1;
        }
    }

    /// What the key of that revision held since then, if that is here.
    pub(super) fn value(&self, revision: u64) -> Option<KeyValue> {
        match self.events.get(usize::try_from(revision.checked_sub(self.first)?).ok()?)? {
            Event::Put(kv) => Some(kv.clone()),
            Event::Delete { .. } => None,
        }
    }

    /// Events from revision `from` on whose keys begin with `prefix`, after looking at no more than `most`, and the
    /// revision after the last one looked at. `None` where `from` is no longer here.
    pub(super) fn read(&self, from: u64, prefix: &Bytes, most: usize) -> Option<(Vec<Event>, u64)> {
        let skip = usize::try_from(from.checked_sub(self.first)?).ok()?;
        let seen = self.events.len().saturating_sub(skip).min(most);
        let events = self
            .events
            .iter()
            .skip(skip)
            .take(most)
            .filter(|e| e.key().starts_with(prefix))
            .cloned()
            .collect();
        Some((events, from + seen as u64))
    }
}

fn cost(event: &Event) -> usize {
    OVERHEAD
        + match event {
            Event::Put(kv) => kv.key.len() + kv.value.len(),
            Event::Delete { key, .. } => key.len(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_and_knows_what_is_gone() {
        let mut ring = Ring::new(2, 3 * (OVERHEAD + 2));
        for revision in 2..7 {
            let key = if revision % 2 == 0 { "a" } else { "b" };
            let kv = KeyValue {
                key: key.into(),
                value: "v".into(),
                create_revision: revision,
                mod_revision: revision,
            };
            ring.push(Event::Put(kv));
        }
        assert_eq!(ring.first(), 4);
        assert!(ring.read(3, &Bytes::new(), 10).is_none());
        let (events, next) = ring.read(4, &"a".into(), 10).unwrap();
        assert_eq!((events.len(), next), (2, 7));
        let (events, next) = ring.read(4, &"a".into(), 2).unwrap();
        assert_eq!((events.len(), next), (1, 6));
        assert_eq!(ring.read(9, &"a".into(), 2).unwrap().1, 9);
        assert_eq!(ring.value(5).unwrap().mod_revision, 5);
        assert!(ring.value(3).is_none() && ring.value(7).is_none());
    }
}
