//! The objects of one resource with the recent history of their changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;

use super::entry::{Codec, Entry, FormKey};

/// A change as watchers see it.
#[derive(Debug)]
pub struct Change {
    /// Its revision.
    pub revision: u64,
    /// The object now; `None` when it was deleted.
    pub current: Option<Arc<Entry>>,
    /// The object before; `None` when it is new.
    pub previous: Option<Arc<Entry>>,
    at: Instant,
    /// Serialized watch events, by type and form, shared by all watchers.
    frames: Mutex<Vec<(FormKey, Bytes)>>,
}

impl Change {
    /// The serialized event of a form, made by `make` for the first watcher that asks.
    pub fn frame<E>(&self, key: &FormKey, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        // Held while the event is made: a thousand watchers arrive here at once and all but one are to wait.
        let mut frames = self.frames.lock();
        if let Some((_, bytes)) = frames.iter().find(|(k, _)| k == key) {
            return Ok(bytes.clone());
        }
        let bytes = make()?;
        frames.push((key.clone(), bytes.clone()));
        Ok(bytes)
    }
}

/// How much history is kept: at least `events`, and beyond that what is younger than `age` within `bytes`.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// So many events are always kept.
    pub events: usize,
    /// Older ones go.
    pub age: Duration,
    /// Bytes of objects held by history.
    pub bytes: usize,
}

impl Default for Window {
    fn default() -> Window {
        Window { events: 100, age: Duration::from_secs(300), bytes: 48 << 20 }
    }
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Box<str>, Arc<Entry>>,
    /// Keys by the value of the indexed field.
    index: HashMap<Box<str>, BTreeSet<Box<str>>>,
    history: VecDeque<Arc<Change>>,
    /// Number of the first change in `history`, counted from the start of the cache.
    first: u64,
    /// History is complete after this revision.
    floor: u64,
    /// Revision of the last change.
    revision: u64,
    history_bytes: usize,
    /// Raised when history is lost; watchers of before end.
    epoch: u64,
}

/// The cache of one resource.
pub struct ResourceCache {
    codec: Arc<dyn Codec>,
    window: Window,
    state: RwLock<State>,
    /// Tells watchers of changes.
    bell: Arc<Bell>,
}

/// How long watchers are left alone after they have been told of changes: about three times what it takes to wake one of
/// them, and to send it so much, so that most of the time is left to others while changes come without a pause.
const REST_PER_WATCHER: Duration = Duration::from_micros(15);
const REST_PER_KIB: Duration = Duration::from_micros(6);
/// No watcher waits longer than this.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// Tells watchers of changes. The first change after a rest is told at once. Those that follow are told together: to
/// wake a thousand watchers for each of them would be all that the server does, and writers would stand still.
struct Bell {
    /// Number of the next change: watchers wait for it to move.
    next: watch::Sender<u64>,
    /// Bytes that watchers have sent since they were told last.
    sent: AtomicU64,
    state: Mutex<BellState>,
}

#[derive(Default)]
struct BellState {
    next: u64,
    told: Option<Instant>,
    /// Whether a task is waiting for the rest to end.
    waiting: bool,
}

impl Bell {
    fn new() -> Arc<Bell> {
        Arc::new(Bell { next: watch::channel(0).0, sent: AtomicU64::new(0), state: Mutex::default() })
    }

    fn ring(self: &Arc<Bell>, next: u64) {
        let mut state = self.state.lock();
        state.next = next;
        if state.waiting {
            return;
        }
        let now = Instant::now();
        match self.rested(&state).filter(|rested| *rested > now) {
            None => self.tell(&mut state),
            Some(rested) => {
                state.waiting = true;
                tokio::spawn(self.clone().tell_at(rested));
            }
        }
    }

    async fn tell_at(self: Arc<Bell>, mut at: Instant) {
        loop {
            tokio::time::sleep_until(at).await;
            let mut state = self.state.lock();
            match self.rested(&state).filter(|rested| *rested > Instant::now()) {
                // More has been sent meanwhile.
                Some(later) => at = later,
                None => {
                    state.waiting = false;
                    return self.tell(&mut state);
                }
            }
        }
    }

    /// When watchers may be told again; none where they never have been.
    fn rested(&self, state: &BellState) -> Option<Instant> {
        let watchers = u32::try_from(self.next.receiver_count()).unwrap_or(u32::MAX);
        let kib = u32::try_from(self.sent.load(Ordering::Relaxed) >> 10).unwrap_or(u32::MAX);
        let rest = REST_PER_WATCHER.saturating_mul(watchers) + REST_PER_KIB.saturating_mul(kib);
        state.told.map(|told| told + rest.min(LONGEST_REST))
    }

    fn tell(&self, state: &mut BellState) {
        state.told = Some(Instant::now());
        self.sent.store(0, Ordering::Relaxed);
        self.next.send_replace(state.next);
    }
}

/// Why a watcher cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The revision asked for is older than history, which begins after `floor`.
    TooOld {
        /// The oldest revision to watch from.
        floor: u64,
    },
    /// The watcher fell behind, or the cache was read anew.
    Behind,
}

/// A watcher's place in history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    next: u64,
    epoch: u64,
    /// Changes up to this revision are not delivered.
    after: u64,
}

/// A consistent look at objects.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Objects in key order.
    pub entries: Vec<Arc<Entry>>,
    /// Revision of the last change among all objects of the resource.
    pub revision: u64,
}

impl ResourceCache {
    /// An empty cache.
    pub fn new(codec: Arc<dyn Codec>, window: Window) -> ResourceCache {
        ResourceCache { codec, window, state: RwLock::default(), bell: Bell::new() }
    }

    /// How objects of the resource are read.
    pub fn codec(&self) -> &Arc<dyn Codec> {
        &self.codec
    }

    /// Puts the objects in place as they are at `revision`, and forgets history.
    pub fn replace(&self, entries: Vec<Arc<Entry>>, revision: u64) {
        let mut s = self.state.write();
        s.objects.clear();
        s.index.clear();
        for e in entries {
            reindex(&*self.codec, &mut s, None, Some(&e));
            s.objects.insert(e.key.clone(), e);
        }
        let dropped = s.history.len() as u64;
        s.first += dropped;
        s.history.clear();
        s.history_bytes = 0;
        s.floor = revision;
        s.revision = revision;
        s.epoch += 1;
        drop(s);
        self.bell.next.send_modify(|_| {});
    }

    /// Applies one change. Changes that the objects already contain are left out.
    pub fn apply(&self, key: &str, current: Option<Arc<Entry>>, revision: u64) {
        let mut s = self.state.write();
        if revision <= s.revision {
            return;
        }
        let previous = match &current {
            Some(e) => s.objects.insert(e.key.clone(), e.clone()),
            None => s.objects.remove(key),
        };
        reindex(&*self.codec, &mut s, previous.as_ref(), current.as_ref());
        s.revision = revision;
        if current.is_none() && previous.is_none() {
            return;
        }
        s.history_bytes += size(&current, &previous);
        let now = Instant::now();
        s.history.push_back(Arc::new(Change {
            revision,
            current,
            previous,
            at: now,
            frames: Mutex::default(),
        }));
        while s.history.len() > self.window.events {
            let old = s.history.front().is_some_and(|c| now.duration_since(c.at) > self.window.age);
            if !old && s.history_bytes <= self.window.bytes {
                break;
            }
            if let Some(gone) = s.history.pop_front() {
                s.history_bytes -= size(&gone.current, &gone.previous);
                s.floor = gone.revision;
                s.first += 1;
            }
        }
        let next = s.first + s.history.len() as u64;
        drop(s);
        self.bell.ring(next);
    }

    /// One object.
    pub fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.state.read().objects.get(key).cloned()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Revision of the last change.
    pub fn revision(&self) -> u64 {
        self.state.read().revision
    }

    /// The objects whose keys begin with `prefix` (`""` for all, `ns/` for a namespace).
    pub fn list(&self, prefix: &str) -> Snapshot {
        let s = self.state.read();
        Snapshot { entries: range(&s.objects, prefix), revision: s.revision }
    }

    /// The objects with a value of the indexed field; `None` where that field is not indexed.
    pub fn list_by_field(&self, field: &str, value: &str) -> Option<Snapshot> {
        if self.codec.indexed_field() != Some(field) {
            return None;
        }
        let s = self.state.read();
        let keys = s.index.get(value);
        let entries = keys.into_iter().flatten().filter_map(|k| s.objects.get(k).cloned()).collect();
        Some(Snapshot { entries, revision: s.revision })
    }

    /// A cursor that delivers all changes after `revision`.
    pub fn cursor_after(&self, revision: u64) -> Result<Cursor, Lost> {
        let s = self.state.read();
        if revision < s.floor {
            return Err(Lost::TooOld { floor: s.floor });
        }
        let skip = s.history.partition_point(|c| c.revision <= revision) as u64;
        Ok(Cursor { next: s.first + skip, epoch: s.epoch, after: revision })
    }

    /// The objects below `prefix` now, and a cursor that delivers all changes after that.
    pub fn snapshot_and_cursor(&self, prefix: &str) -> (Snapshot, Cursor) {
        let s = self.state.read();
        let cursor = Cursor { next: s.first + s.history.len() as u64, epoch: s.epoch, after: s.revision };
        (Snapshot { entries: range(&s.objects, prefix), revision: s.revision }, cursor)
    }

    /// Up to `max` changes at the cursor, which moves on.
    pub fn read(&self, cursor: &mut Cursor, max: usize) -> Result<Vec<Arc<Change>>, Lost> {
        let s = self.state.read();
        if cursor.epoch != s.epoch || cursor.next < s.first {
            return Err(Lost::Behind);
        }
        let start = usize::try_from(cursor.next - s.first).unwrap_or(usize::MAX).min(s.history.len());
        let end = (start + max).min(s.history.len());
        cursor.next = s.first + end as u64;
        Ok(s.history.range(start..end).filter(|c| c.revision > cursor.after).cloned().collect())
    }

    /// Tells of changes: [`watch::Receiver::changed`] returns when there is something new to [`ResourceCache::read`].
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.bell.next.subscribe()
    }

    /// Notes that a watcher has sent so many bytes.
    pub fn sent(&self, bytes: usize) {
        self.bell.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How many watchers there are.
    pub fn watchers(&self) -> usize {
        self.bell.next.receiver_count()
    }
}

fn size(current: &Option<Arc<Entry>>, previous: &Option<Arc<Entry>>) -> usize {
    // Only what nobody else holds counts: the previous object, and the current one once it is replaced. Counting both
    // is simple, and twice too much at worst.
    [current, previous].into_iter().flatten().map(|e| e.body().len() + 200).sum()
}

fn range(objects: &BTreeMap<Box<str>, Arc<Entry>>, prefix: &str) -> Vec<Arc<Entry>> {
    if prefix.is_empty() {
        return objects.values().cloned().collect();
    }
    objects
        .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(|(k, _)| k.starts_with(prefix))
        .map(|(_, e)| e.clone())
        .collect()
}

fn reindex(codec: &dyn Codec, s: &mut State, previous: Option<&Arc<Entry>>, current: Option<&Arc<Entry>>) {
    let Some(field) = codec.indexed_field() else { return };
    let (old, new) = (previous.and_then(|e| e.field(field)), current.and_then(|e| e.field(field)));
    if old == new {
        return;
    }
    if let (Some(e), Some(value)) = (previous, old)
        && let Some(keys) = s.index.get_mut(value)
    {
        keys.remove(&e.key);
        if keys.is_empty() {
            s.index.remove(value);
        }
    }
    if let (Some(e), Some(value)) = (current, new) {
        s.index.entry(value.into()).or_default().insert(e.key.clone());
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::super::entry::Part;
    use super::super::entry::tests::Plain;
    use super::*;
    use crate::negotiate::{Media, Shape};

    fn entry(key: &str, revision: u64, node: &str) -> Arc<Entry> {
        let object = json!({"metadata": {"name": key}, "spec": {"nodeName": node}});
        Arc::new(Entry::new(&Plain, key, revision, Arc::new(object), None))
    }

    fn cache(window: Window) -> ResourceCache {
        let c = ResourceCache::new(Arc::new(Plain), window);
        c.replace(vec![entry("a/1", 3, "n1"), entry("b/1", 5, "n2")], 10);
        c
    }

    fn revisions(c: &ResourceCache, cursor: &mut Cursor) -> Result<Vec<u64>, Lost> {
        c.read(cursor, 100).map(|v| v.iter().map(|c| c.revision).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn lists_and_index_follow_changes() {
        let c = cache(Window::default());
        assert_eq!(c.list("a/").entries.len(), 1);
        c.apply("a/2", Some(entry("a/2", 11, "n1")), 11);
        c.apply("a/1", Some(entry("a/1", 12, "n2")), 12);
        c.apply("a/1", Some(entry("a/1", 4, "n9")), 4);
        assert_eq!(c.list("a/").entries.len(), 2);
        assert_eq!(c.list("").revision, 12);
        let by = |node| c.list_by_field("spec.nodeName", node).unwrap().entries.len();
        assert_eq!((by("n1"), by("n2"), by("n9")), (1, 2, 0));
        c.apply("b/1", None, 13);
        assert_eq!((by("n2"), c.len()), (1, 2));
        assert!(c.list_by_field("other", "x").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn cursors_see_each_change_once() {
        let c = cache(Window::default());
        let mut from_start = c.cursor_after(10).unwrap();
        let (snapshot, mut from_now) = c.snapshot_and_cursor("");
        assert_eq!((snapshot.entries.len(), snapshot.revision), (2, 10));
        for r in 11..15 {
            c.apply("a/1", Some(entry("a/1", r, "n")), r);
        }
        let mut later = c.cursor_after(12).unwrap();
        let mut future = c.cursor_after(14).unwrap();
        assert_eq!(revisions(&c, &mut from_start).unwrap(), [11, 12, 13, 14]);
        assert_eq!(revisions(&c, &mut from_now).unwrap(), [11, 12, 13, 14]);
        assert_eq!(revisions(&c, &mut later).unwrap(), [13, 14]);
        assert!(revisions(&c, &mut future).unwrap().is_empty());
        c.apply("a/1", None, 20);
        assert_eq!(revisions(&c, &mut from_start).unwrap(), [20]);
        assert_eq!(c.cursor_after(9), Err(Lost::TooOld { floor: 10 }));
        // A watcher may begin at a revision that this resource has not reached.
        let mut ahead = c.cursor_after(30).unwrap();
        c.apply("a/1", Some(entry("a/1", 30, "n")), 30);
        c.apply("a/1", Some(entry("a/1", 31, "n")), 31);
        assert_eq!(revisions(&c, &mut ahead).unwrap(), [31]);
    }

    #[tokio::test(start_paused = true)]
    async fn history_is_bounded_and_slow_watchers_are_cut() {
        let c = cache(Window { events: 2, age: Duration::from_secs(60), bytes: 1 << 20 });
        let mut slow = c.cursor_after(10).unwrap();
        for r in 11..15 {
            c.apply("a/1", Some(entry("a/1", r, "n")), r);
        }
        let mut fast = c.cursor_after(14).unwrap();
        assert_eq!(revisions(&c, &mut slow.clone()).unwrap().len(), 4);
        tokio::time::advance(Duration::from_secs(61)).await;
        c.apply("a/1", Some(entry("a/1", 15, "n")), 15);
        assert_eq!(revisions(&c, &mut slow), Err(Lost::Behind));
        assert_eq!(revisions(&c, &mut fast).unwrap(), [15]);
        assert_eq!(c.cursor_after(12), Err(Lost::TooOld { floor: 13 }));
        c.replace(Vec::new(), 40);
        assert_eq!(revisions(&c, &mut fast), Err(Lost::Behind));
        assert_eq!(c.cursor_after(15), Err(Lost::TooOld { floor: 40 }));
    }

    #[tokio::test(start_paused = true)]
    async fn watchers_are_told_at_once_and_then_of_many_changes_together() {
        let c = cache(Window::default());
        let mut watchers: Vec<_> = (0..200).map(|_| c.subscribe()).collect();
        let mut told = || {
            let told: Vec<bool> = watchers.iter_mut().map(|w| w.has_changed().unwrap()).collect();
            watchers.iter_mut().for_each(watch::Receiver::mark_unchanged);
            assert!(told.iter().all(|t| *t == told[0]));
            told[0]
        };
        let change = |revision| c.apply("a/1", Some(entry("a/1", revision, "n")), revision);
        let after = |ms| tokio::time::sleep(Duration::from_millis(ms));
        assert!(!told());
        change(11);
        assert!(told());
        change(12);
        change(13);
        assert!(!told());
        after(5).await;
        assert!(told());
        after(5).await;
        assert!(!told());
        change(14);
        assert!(told());
        // Much to send, even where it is only seen while somebody waits already.
        change(15);
        c.sent(20 << 20);
        after(5).await;
        assert!(!told());
        after(150).await;
        assert!(told());
        c.sent(1 << 40);
        change(16);
        after(450).await;
        assert!(!told());
        after(60).await;
        assert!(told());
        // What the cache was read for anew is told at once.
        change(17);
        c.replace(Vec::new(), 20);
        assert!(told());
    }

    #[test]
    fn events_are_serialized_once() {
        let change = Change {
            revision: 1,
            current: None,
            previous: None,
            at: Instant::now(),
            frames: Mutex::default(),
        };
        let key = FormKey {
            media: Media::Json,
            shape: Shape::Object,
            part: Part::Object,
            api_version: "v1".into(),
        };
        let first = change.frame::<()>(&key, || Ok(Bytes::from_static(b"x"))).unwrap();
        let second = change.frame::<()>(&key, || Err(())).unwrap();
        assert_eq!(first, second);
    }
}
