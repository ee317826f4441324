//! One watch, as a state machine: initial objects, then changes, bookmarks in between, an end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pilothouse_apimachinery::status::Status;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cache::Cache;
use crate::cache::entry::{Entry, FormKey, Part};
use crate::cache::resource::{Change, Cursor, Lost, ResourceCache};
use crate::conversion::View;
use crate::selection::Selection;

/// How often bookmarks are sent.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// The last bookmark comes so long before the end.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// How many changes are looked at in one go.
const BATCH: usize = 500;
/// A piece of a stream grows to about this size before it is sent: a frame of HTTP/2. A thousand watchers that cannot
/// keep up hold one each.
const PIECE: usize = 16 * 1024;

/// Type of a watch event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// An object is new, or new to the selection.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or out of the selection.
    Deleted,
    /// All changes up to a revision have been sent.
    Bookmark,
    /// The watch failed.
    Error,
}

impl EventType {
    /// What an object is of the event, where there is one.
    pub fn part(self) -> Option<Part> {
        match self {
            EventType::Added => Some(Part::Added),
            EventType::Modified => Some(Part::Modified),
            EventType::Deleted => Some(Part::Deleted),
            EventType::Bookmark | EventType::Error => None,
        }
    }

    /// `ADDED` and so on.
    pub fn name(self) -> &'static str {
        match self {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
            EventType::Bookmark => "BOOKMARK",
            EventType::Error => "ERROR",
        }
    }
}

/// Makes the bytes of events in the form that a client has asked for.
pub trait EventEncoder: Send + Sync {
    /// An event of an object, which is shown with `revision`.
    fn object(&self, type_: EventType, entry: &Entry, revision: u64) -> Result<Bytes, Status>;

    /// A bookmark; `initial_end` marks the end of the initial objects.
    fn bookmark(&self, revision: u64, initial_end: bool) -> Result<Bytes, Status>;

    /// A failure.
    fn error(&self, status: &Status) -> Bytes;

    /// The form's key where its events can be shared between watchers; none where they differ, as tables' ages do.
    fn shared(&self, type_: EventType) -> Option<FormKey>;
}

/// What a watch wants.
pub struct Wish {
    /// Which objects.
    pub selection: Selection,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// Whether a bookmark is to mark the end of the initial objects.
    pub mark_initial_end: bool,
    /// When it ends.
    pub timeout: Duration,
}

/// A running watch.
pub struct Watcher {
    cache: Arc<Cache>,
    resource: Arc<ResourceCache>,
    /// The version in which objects are shown, where that is not how they are stored.
    view: Option<Arc<View>>,
    encoder: Arc<dyn EventEncoder>,
    selection: Selection,
    initial: VecDeque<Arc<Entry>>,
    /// Whether the initial objects are in the view's version by now.
    converted: bool,
    /// Revision of the initial objects, where their end is to be marked.
    mark: Option<u64>,
    cursor: Cursor,
    /// Changes that have been read and not been sent.
    unsent: VecDeque<Arc<Change>>,
    changed: watch::Receiver<u64>,
    bookmark_at: Option<Instant>,
    end: Instant,
    ended: bool,
    /// Revision of the last change that was read.
    seen: u64,
}

impl Watcher {
    /// A watch of all changes after `revision`.
    pub fn after(
        cache: &Arc<Cache>,
        resource: Arc<ResourceCache>,
        view: Option<Arc<View>>,
        encoder: Arc<dyn EventEncoder>,
        wish: Wish,
        revision: u64,
    ) -> Result<Watcher, Status> {
        let changed = resource.subscribe();
        let cursor = resource.cursor_after(revision).map_err(|lost| too_old(lost, revision))?;
        Ok(Self::new(cache, resource, view, encoder, wish, VecDeque::new(), None, cursor, changed))
    }

    /// A watch that begins with the objects as they are in the cache.
    pub fn from_state(
        cache: &Arc<Cache>,
        resource: Arc<ResourceCache>,
        view: Option<Arc<View>>,
        encoder: Arc<dyn EventEncoder>,
        wish: Wish,
    ) -> Watcher {
        let changed = resource.subscribe();
        let applied = cache.applied();
        let prefix = wish.selection.prefix();
        let (snapshot, cursor) = resource.snapshot_and_cursor(prefix);
        // Another version may have other fields to select by: seen when it is converted.
        let entries = snapshot.entries;
        let initial = if view.is_some() { entries } else { wish.selection.filter(entries) }.into();
        let mark = wish.mark_initial_end.then_some(snapshot.revision.max(applied));
        Self::new(cache, resource, view, encoder, wish, initial, mark, cursor, changed)
    }

    fn new(
        cache: &Arc<Cache>,
        resource: Arc<ResourceCache>,
        view: Option<Arc<View>>,
        encoder: Arc<dyn EventEncoder>,
        wish: Wish,
        initial: VecDeque<Arc<Entry>>,
        mark: Option<u64>,
        cursor: Cursor,
        changed: watch::Receiver<u64>,
    ) -> Watcher {
        let now = Instant::now();
        let end = now + wish.timeout;
        let bookmark_at = wish.bookmarks.then(|| next_bookmark(now, end)).flatten();
        Watcher {
            cache: cache.clone(),
            resource,
            view,
            encoder,
            selection: wish.selection,
            initial,
            converted: false,
            mark,
            cursor,
            unsent: VecDeque::new(),
            changed,
            bookmark_at,
            end,
            ended: false,
            seen: 0,
        }
    }

    /// The next bytes to send; none at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            match self.ready().await {
                Ok(Some(piece)) => return Some(piece),
                Ok(None) => self.wait().await,
                Err(None) => self.ended = true,
                Err(Some(failure)) => {
                    self.ended = true;
                    return Some(self.encoder.error(&failure));
                }
            }
        }
        None
    }

    /// What can be sent now. `Err(None)` is the end.
    async fn ready(&mut self) -> Result<Option<Bytes>, Option<Status>> {
        let mut piece = Vec::new();
        let mut size = 0;
        if let Some(view) = self.view.clone().filter(|_| !self.initial.is_empty() && !self.converted) {
            let shown = view.show(std::mem::take(&mut self.initial).into()).await.map_err(Some)?;
            self.initial = self.selection.filter(shown).into();
            self.converted = true;
        }
        while size < PIECE {
            let Some(entry) = self.initial.pop_front() else { break };
            let frame = self.encoder.object(EventType::Added, &entry, entry.revision).map_err(Some)?;
            size += frame.len();
            piece.push(frame);
        }
        if self.initial.is_empty()
            && let Some(revision) = self.mark.take()
        {
            piece.push(self.encoder.bookmark(revision, true).map_err(Some)?);
        }
        if !piece.is_empty() {
            return Ok(Some(joined(piece)));
        }

        let mut applied = None;
        while size < PIECE {
            if self.unsent.is_empty() {
                // Seen before the changes are read: a change that comes in between is not missed.
                self.changed.borrow_and_update();
                applied = Some(self.cache.applied());
                // A watcher that fell behind ends; its client lists or watches again.
                self.unsent = self.resource.read(&mut self.cursor, BATCH).map_err(|_| None)?.into();
            }
            let Some(change) = self.unsent.pop_front() else { break };
            if let Some(frame) = self.frame(&change).await.map_err(Some)? {
                size += frame.len();
                piece.push(frame);
            }
            self.seen = change.revision;
        }
        if !piece.is_empty() {
            self.resource.sent(size);
            return Ok(Some(joined(piece)));
        }
        let now = Instant::now();
        if now >= self.end {
            return Err(None);
        }
        if self.bookmark_at.is_some_and(|at| now >= at) {
            self.bookmark_at = next_bookmark(now, self.end);
            let revision = self.seen.max(applied.unwrap_or(0));
            return self.encoder.bookmark(revision, false).map(Some).map_err(Some);
        }
        Ok(None)
    }

    /// The event that a change is for this watcher.
    async fn frame(&self, change: &Change) -> Result<Option<Bytes>, Status> {
        let (current, previous) = match &self.view {
            Some(view) => {
                let show = async |entry: &Option<Arc<Entry>>| {
                    view.show(entry.iter().cloned().collect()).await.map(|mut shown| shown.pop())
                };
                (show(&change.current).await?, show(&change.previous).await?)
            }
            None => (change.current.clone(), change.previous.clone()),
        };
        let is = current.as_ref().filter(|e| self.selection.matches(e));
        let was = previous.as_ref().filter(|e| self.selection.matches(e));
        let (type_, entry) = match (is, was) {
            (Some(e), None) => (EventType::Added, e),
            (Some(e), Some(_)) => (EventType::Modified, e),
            (None, Some(e)) => (EventType::Deleted, e),
            (None, None) => return Ok(None),
        };
        let make = || self.encoder.object(type_, entry, change.revision);
        match self.encoder.shared(type_) {
            Some(key) => change.frame(&key, make).map(Some),
            None => make().map(Some),
        }
    }

    async fn wait(&mut self) {
        let until = self.bookmark_at.map_or(self.end, |at| at.min(self.end));
        tokio::select! {
            changed = self.changed.changed() => {
                // The resource is gone: a custom resource whose definition was deleted.
                if changed.is_err() {
                    self.ended = true;
                }
            }
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

fn joined(mut frames: Vec<Bytes>) -> Bytes {
    if frames.len() == 1 {
        return frames.swap_remove(0);
    }
    let mut out = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
    frames.iter().for_each(|f| out.extend_from_slice(f));
    out.freeze()
}

fn next_bookmark(now: Instant, end: Instant) -> Option<Instant> {
    let near_end = end.checked_sub(BOOKMARK_BEFORE_END).filter(|t| *t > now);
    let regular = Some(now + BOOKMARK_EVERY).filter(|t| *t < end);
    match (regular, near_end) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// 410: the watch would begin before history does.
pub fn too_old(lost: Lost, revision: u64) -> Status {
    let floor = match lost {
        Lost::TooOld { floor } => floor,
        Lost::Behind => 0,
    };
    Status::expired(format!("too old resource version: {revision} ({floor})"))
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::{Value, json};

    use super::*;
    use crate::cache::entry::tests::Plain;
    use crate::cache::resource::Window;
    use crate::cache::test_store::MemoryStore;
    use crate::negotiate::{Media, Shape};
    use pilothouse_apimachinery::field_selector::FieldSelector;
    use pilothouse_apimachinery::selector::Selector;

    struct Lines;

    impl EventEncoder for Lines {
        fn object(&self, type_: EventType, entry: &Entry, revision: u64) -> Result<Bytes, Status> {
            Ok(format!("{} {} {revision};", type_.name(), entry.key).into())
        }
        fn bookmark(&self, revision: u64, initial_end: bool) -> Result<Bytes, Status> {
            Ok(format!("BOOKMARK {revision} {initial_end};").into())
        }
        fn error(&self, status: &Status) -> Bytes {
            format!("ERROR {};", status.code).into()
        }
        fn shared(&self, type_: EventType) -> Option<FormKey> {
            let part = type_.part()?;
            Some(FormKey { media: Media::Json, shape: Shape::Object, part, api_version: "v1".into() })
        }
    }

    fn entry(key: &str, revision: u64, app: &str) -> Arc<Entry> {
        let o: Value = json!({"metadata": {"name": key, "labels": {"app": app}}});
        Arc::new(Entry::new(&Plain, key, revision, Arc::new(o), None))
    }

    fn world() -> (Arc<Cache>, Arc<ResourceCache>) {
        let (cache, _feed) = Cache::new(Arc::new(MemoryStore::default()), "/registry/", Window::default());
        let pods = cache.add_early("pods", Arc::new(Plain));
        pods.replace(vec![entry("a/1", 2, "x"), entry("a/2", 3, "y"), entry("b/1", 4, "x")], 10);
        (cache, pods)
    }

    fn wish(namespace: &str, labels: &str, seconds: u64) -> Wish {
        let labels = Selector::parse(labels).unwrap();
        Wish {
            selection: Selection::new(true, namespace, labels, FieldSelector::default()),
            bookmarks: false,
            mark_initial_end: false,
            timeout: Duration::from_secs(seconds),
        }
    }

    async fn all(mut w: Watcher) -> String {
        let mut out = String::new();
        while let Some(piece) = w.next().await {
            out.push_str(std::str::from_utf8(&piece).unwrap());
        }
        out
    }

    #[tokio::test(start_paused = true)]
    async fn selectors_turn_changes_into_arrivals_and_departures() {
        let (cache, pods) = world();
        let watch =
            Watcher::after(&cache, pods.clone(), None, Arc::new(Lines), wish("a", "app=x", 5), 10).unwrap();
        pods.apply("a/1", Some(entry("a/1", 11, "x")), 11);
        pods.apply("a/1", Some(entry("a/1", 12, "y")), 12);
        pods.apply("a/1", Some(entry("a/1", 13, "y")), 13);
        pods.apply("a/1", Some(entry("a/1", 14, "x")), 14);
        pods.apply("b/1", None, 15);
        pods.apply("a/1", None, 16);
        assert_eq!(all(watch).await, "MODIFIED a/1 11;DELETED a/1 12;ADDED a/1 14;DELETED a/1 16;");
    }

    #[tokio::test(start_paused = true)]
    async fn state_first_then_changes() {
        let (cache, pods) = world();
        let mut w = wish("", "", 5);
        w.mark_initial_end = true;
        let watch = Watcher::from_state(&cache, pods.clone(), None, Arc::new(Lines), w);
        pods.apply("a/3", Some(entry("a/3", 11, "x")), 11);
        assert_eq!(all(watch).await, "ADDED a/1 2;ADDED a/2 3;ADDED b/1 4;BOOKMARK 10 true;ADDED a/3 11;");
    }

    #[tokio::test(start_paused = true)]
    async fn bookmarks_come_each_minute_and_before_the_end() {
        let (cache, pods) = world();
        let mut w = wish("", "", 100);
        w.bookmarks = true;
        let started = Instant::now();
        let watch = Watcher::after(&cache, pods, None, Arc::new(Lines), w, 10).unwrap();
        assert_eq!(all(watch).await.matches("BOOKMARK").count(), 2);
        assert_eq!(started.elapsed(), Duration::from_secs(100));
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_come_in_pieces() {
        let (cache, pods) = world();
        let mut watch =
            Watcher::after(&cache, pods.clone(), None, Arc::new(Lines), wish("", "", 5), 10).unwrap();
        let key = format!("a/{}", "x".repeat(1000));
        for revision in 11..111 {
            pods.apply(&key, Some(entry(&key, revision, "x")), revision);
        }
        let mut pieces = Vec::new();
        while let Some(piece) = watch.next().await {
            assert!(piece.len() < PIECE + 2_000);
            pieces.push(piece);
        }
        assert!((6..10).contains(&pieces.len()), "{}", pieces.len());
        let text = String::from_utf8(pieces.concat()).unwrap();
        let revisions: Vec<&str> = text.split(';').filter_map(|event| event.rsplit(' ').next()).collect();
        let expected: Vec<String> = (11..111).map(|r| r.to_string()).collect();
        assert_eq!(&revisions[..100], expected);
    }

    #[tokio::test(start_paused = true)]
    async fn history_that_is_gone_ends_watches() {
        let (cache, pods) = world();
        let e =
            Watcher::after(&cache, pods.clone(), None, Arc::new(Lines), wish("", "", 5), 3).err().unwrap();
        assert_eq!((e.code, e.message.as_str()), (410, "too old resource version: 3 (10)"));
        let started = Instant::now();
        let watch =
            Watcher::after(&cache, pods.clone(), None, Arc::new(Lines), wish("", "", 500), 10).unwrap();
        pods.replace(Vec::new(), 50);
        assert_eq!(all(watch).await, "");
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
