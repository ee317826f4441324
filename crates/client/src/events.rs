//! Recording events on objects, as client-go's recorder does it: an event like an earlier one (same object, reason,
//! message, source) raises that one's count; many that differ only in their message are combined into one.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// As many similar events as this within [`AGGREGATE_WINDOW`] become one `(combined from similar events)`.
const AGGREGATE_AFTER: usize = 10;
const AGGREGATE_WINDOW: Duration = Duration::from_secs(600);
const CACHE: usize = 4096;
/// So many events are written side by side.
const WRITERS: u64 = 8;

/// Records events. Cheap to clone. Recording never blocks and never fails: events are best effort.
#[derive(Clone)]
pub struct EventRecorder {
    source: EventSource,
    send: mpsc::Sender<Event>,
}

/// A reference to any object, as events carry it.
pub fn reference<K: Resource>(object: &K, dt: &K::DynamicType) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(dt).into_owned()),
        kind: Some(K::kind(dt).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

impl EventRecorder {
    /// A recorder for `component` (the event's source), on `host` where it is a node's. Needs a tokio runtime.
    pub fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        let (send, mut recv) = mpsc::channel::<Event>(1000);
        // Events of one object go one after the other, those of different objects side by side: a write that must be
        // tried again holds up nobody else's.
        let writers: Vec<mpsc::Sender<Event>> =
            (0..WRITERS).map(|_| Correlator::spawn(client.clone())).collect();
        tokio::spawn(async move {
            while let Some(event) = recv.recv().await {
                let o = &event.involved_object;
                let mut hasher = DefaultHasher::new();
                (&o.kind, &o.namespace, &o.name, &o.uid).hash(&mut hasher);
                let writer = usize::try_from(hasher.finish() % WRITERS).unwrap_or(0);
                if writers[writer].try_send(event).is_err() {
                    tracing::debug!("event dropped: the queue is full");
                }
            }
        });
        EventRecorder {
            source: EventSource { component: Some(component.into()), host: host.map(String::from) },
            send,
        }
    }

    /// A recorder that hands its events to the test.
    pub fn for_test(component: &str) -> (Self, Arc<Mutex<Vec<Event>>>) {
        let (send, mut recv) = mpsc::channel::<Event>(1000);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let s = seen.clone();
        tokio::spawn(async move {
            while let Some(e) = recv.recv().await {
                s.lock().push(e);
            }
        });
        (EventRecorder { source: EventSource { component: Some(component.into()), host: None }, send }, seen)
    }

    /// Records an event of type `Normal`.
    pub fn normal(&self, object: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(object, "Normal", reason, message.into());
    }

    /// Records an event of type `Warning`.
    pub fn warning(&self, object: &ObjectReference, reason: &str, message: impl Into<String>) {
        self.record(object, "Warning", reason, message.into());
    }

    fn record(&self, object: &ObjectReference, type_: &str, reason: &str, message: String) {
        let now = Timestamp::now();
        let namespace =
            object.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
        let name = format!("{}.{:x}", object.name.as_deref().unwrap_or(""), now.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta { name: Some(name), namespace: Some(namespace), ..Default::default() },
            involved_object: object.clone(),
            reason: Some(reason.into()),
            message: Some(message),
            type_: Some(type_.into()),
            source: Some(self.source.clone()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Default::default()
        };
        if self.send.try_send(event).is_err() {
            tracing::debug!("event dropped: the queue is full");
        }
    }
}

/// So many events a source may have on an object at once, and after that one each [`SPAM_REFILL`].
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Correlator {
    written: HashMap<String, Event>,
    /// By source and object: events that may still be sent, and when that was so.
    allowed: HashMap<String, (f64, Instant)>,
    similar: HashMap<String, (Instant, Vec<String>)>,
}

impl Correlator {
    /// Starts a task that writes events one after the other.
    fn spawn(client: Client) -> mpsc::Sender<Event> {
        let (send, mut recv) = mpsc::channel::<Event>(1000);
        tokio::spawn(async move {
            let mut correlator = Correlator::default();
            while let Some(event) = recv.recv().await {
                correlator.write(&client, event).await;
            }
        });
        send
    }

    /// Combines `event` with earlier ones; the key of [`Correlator::written`] under which it counts.
    fn correlate(&mut self, event: &mut Event) -> String {
        if self.written.len() > CACHE || self.similar.len() > CACHE {
            self.written.clear();
            self.similar.clear();
        }
        let o = &event.involved_object;
        let opt = |s: &Option<String>| s.clone().unwrap_or_default();
        let source = event.source.clone().unwrap_or_default();
        let base = [
            opt(&source.component),
            opt(&source.host),
            opt(&o.kind),
            opt(&o.namespace),
            opt(&o.name),
            opt(&o.uid),
            opt(&o.api_version),
            opt(&o.field_path),
            opt(&event.type_),
            opt(&event.reason),
        ]
        .join("\n");
        let message = opt(&event.message);
        let now = Instant::now();
        let (since, messages) = self.similar.entry(base.clone()).or_insert_with(|| (now, Vec::new()));
        if now.duration_since(*since) > AGGREGATE_WINDOW {
            messages.clear();
        }
        *since = now;
        if !messages.contains(&message) {
            messages.push(message.clone());
        }
        if messages.len() >= AGGREGATE_AFTER {
            messages.pop();
            event.message = Some(format!("(combined from similar events): {message}"));
            base
        } else {
            format!("{base}\n{message}")
        }
    }

    /// Whether an event may be sent: a source that says ever more of one object is not listened to for a while.
    fn admit(&mut self, event: &Event) -> bool {
        if self.allowed.len() > CACHE {
            self.allowed.clear();
        }
        let (o, source) = (&event.involved_object, event.source.clone().unwrap_or_default());
        let parts = [&source.component, &source.host, &o.kind, &o.namespace, &o.name, &o.uid, &o.api_version];
        let key = parts.map(|p| p.as_deref().unwrap_or_default()).join("\n");
        let now = Instant::now();
        let (tokens, at) = self.allowed.entry(key).or_insert((SPAM_BURST, now));
        let refilled = *tokens + now.duration_since(*at).as_secs_f64() / SPAM_REFILL.as_secs_f64();
        (*tokens, *at) = (refilled.min(SPAM_BURST), now);
        let admitted = *tokens >= 1.0;
        if admitted {
            *tokens -= 1.0;
        }
        admitted
    }

    async fn write(&mut self, client: &Client, mut event: Event) {
        let key = self.correlate(&mut event);
        if !self.admit(&event) {
            // It counts all the same.
            if let Some(old) = self.written.get_mut(&key) {
                old.count = Some(old.count.unwrap_or(1) + 1);
            }
            return;
        }
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        for attempt in 0..3u64 {
            let result = match self.written.get(&key) {
                Some(old) => {
                    let patch = serde_json::json!({
                        "count": old.count.unwrap_or(1) + 1,
                        "lastTimestamp": event.last_timestamp,
                        "message": event.message,
                    });
                    let name = old.metadata.name.clone().unwrap_or_default();
                    match api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                        Err(kube::Error::Api(e)) if e.code == 404 => {
                            self.written.remove(&key);
                            api.create(&PostParams::default(), &event).await
                        }
                        r => r,
                    }
                }
                None => api.create(&PostParams::default(), &event).await,
            };
            match result {
                Ok(e) => {
                    self.written.insert(key, e);
                    return;
                }
                Err(kube::Error::Api(e)) => {
                    tracing::debug!("server rejected event: {e}");
                    return;
                }
                Err(e) => {
                    tracing::debug!("event not written: {e}");
                    tokio::time::sleep(Duration::from_secs(1 + attempt)).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(message: &str) -> Event {
        Event { message: Some(message.into()), reason: Some("R".into()), ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_says_too_much_is_not_listened_to() {
        let mut c = Correlator::default();
        assert_eq!((0..40).filter(|i| c.admit(&event(&i.to_string()))).count(), 25);
        let mut other = event("x");
        other.involved_object.name = Some("other".into());
        assert!(c.admit(&other));
        tokio::time::advance(SPAM_REFILL).await;
        assert!(c.admit(&event("later")));
        assert!(!c.admit(&event("later")));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_event_counts_and_many_similar_ones_combine() {
        let mut c = Correlator::default();
        assert_eq!(c.correlate(&mut event("a")), c.correlate(&mut event("a")));
        assert_ne!(c.correlate(&mut event("a")), c.correlate(&mut event("b")));
        for i in 0..7 {
            c.correlate(&mut event(&format!("m{i}")));
        }
        let mut e = event("tenth");
        let key = c.correlate(&mut e);
        assert_eq!(e.message.as_deref(), Some("(combined from similar events): tenth"));
        let mut e = event("eleventh");
        assert_eq!(c.correlate(&mut e), key);
        tokio::time::advance(Duration::from_secs(601)).await;
        let mut e = event("later");
        c.correlate(&mut e);
        assert_eq!(e.message.as_deref(), Some("later"));
    }
}
