//! API priority and fairness: who is served when more is asked than the server takes on
//! (<https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>).
//!
//! FlowSchemas sort requests into priority levels; each level has a share of the places and queues of its own
//! ([`queues`]), in which flows take turns. A request that finds a free place takes no queue: it costs one lock.

pub mod dump;
pub mod level;
pub mod matching;
pub mod queues;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::{Mutex, RwLock};
use pilothouse_apimachinery::json::{Value, json};

use self::level::{Counts, Level, Place, Refusal};
use self::matching::Matcher;
use self::queues::{Shape, share};
use crate::json::{get, str_at};
use crate::request::{RequestInfo, UserInfo};

/// How often places are lent anew.
pub const LEND: Duration = Duration::from_secs(10);
/// What a level may have at most where its configuration does not say.
const NO_LIMIT: usize = usize::MAX / 4;

/// A flow schema, ready to be asked.
#[derive(Debug)]
struct Schema {
    name: Arc<str>,
    uid: HeaderValue,
    precedence: i64,
    matcher: Matcher,
    level: Arc<Level>,
    level_uid: HeaderValue,
    counts: Arc<Counts>,
}

/// A limited level's rights to places.
#[derive(Debug)]
struct Rights {
    level: Arc<Level>,
    shape: Shape,
    nominal: usize,
    least: usize,
    most: usize,
    /// How many it would have liked lately.
    wish: f64,
}

#[derive(Debug, Default)]
struct State {
    /// By precedence.
    schemas: Arc<Vec<Schema>>,
}

/// Priority levels and flow schemas at work.
#[derive(Debug)]
pub struct Fairness {
    /// Places of all levels together.
    total: usize,
    /// How long a request waits at most.
    patience: Duration,
    /// Whether levels lend each other places, as after v1.20.
    lending: bool,
    state: RwLock<State>,
    levels: Mutex<BTreeMap<String, Arc<Level>>>,
    rights: Mutex<Vec<Rights>>,
    counts: Mutex<BTreeMap<(String, String), Arc<Counts>>>,
}

/// What became of a request, and by whose rule.
#[derive(Debug)]
pub struct Entered {
    /// UID of the flow schema.
    pub schema_uid: HeaderValue,
    /// UID of the priority level.
    pub level_uid: HeaderValue,
    /// Its place.
    pub place: Result<Place, Refusal>,
}

fn number(value: &Value, path: &[&str]) -> Option<i64> {
    get(value, path).as_i64()
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn count(n: i64) -> usize {
    usize::try_from(n).unwrap_or(0)
}

/// A level's shares. Their field has two names.
fn shares(level: &Value) -> i64 {
    let of = |part: &str| {
        number(level, &["spec", part, "nominalConcurrencyShares"])
            .or_else(|| number(level, &["spec", part, "assuredConcurrencyShares"]))
    };
    match str_at(level, &["spec", "type"]) {
        "Exempt" => of("exempt").unwrap_or(0),
        _ => of("limited").unwrap_or(30),
    }
}

fn shape(level: &Value) -> Shape {
    let path = ["spec", "limited", "limitResponse"];
    let limit = get(level, &path);
    if str_at(limit, &["type"]) != "Queue" {
        return Shape { queues: 0, hand: 0, length: 0 };
    }
    let of = |key: &str, default: i64| count(number(limit, &["queuing", key]).unwrap_or(default));
    Shape { queues: of("queues", 64), hand: of("handSize", 8), length: of("queueLengthLimit", 50) }
}

/// The objects that are there whatever the store holds: what is exempt, and what catches the rest.
fn mandatory() -> (Vec<Value>, Vec<Value>) {
    let star = json!(["*"]);
    let rule = |subjects: Value| {
        json!([{"subjects": subjects,
            "resourceRules": [{"apiGroups": star, "clusterScope": true, "namespaces": star, "resources": star, "verbs": star}],
            "nonResourceRules": [{"nonResourceURLs": star, "verbs": star}]}])
    };
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let schema = |name: &str, precedence: i64, subjects: Value| {
        json!({"metadata": {"name": name}, "spec": {"priorityLevelConfiguration": {"name": name},
            "matchingPrecedence": precedence, "distinguisherMethod": {"type": "ByUser"}, "rules": rule(subjects)}})
    };
    let levels = vec![
        json!({"metadata": {"name": "exempt"}, "spec": {"type": "Exempt"}}),
        json!({"metadata": {"name": "catch-all"}, "spec": {"type": "Limited",
            "limited": {"nominalConcurrencyShares": 5, "limitResponse": {"type": "Reject"}}}}),
    ];
    let schemas = vec![
        schema("exempt", 1, json!([group("system:masters")])),
        schema("catch-all", 10_000, json!([group("system:authenticated"), group("system:unauthenticated")])),
    ];
    (levels, schemas)
}

/// What is configured, and of the mandatory objects those that are not.
fn complete(given: &[Arc<Value>], mandatory: Vec<Value>) -> Vec<Arc<Value>> {
    let name = |v: &Value| str_at(v, &["metadata", "name"]).to_string();
    let missing: Vec<Arc<Value>> =
        mandatory.into_iter().filter(|m| !given.iter().any(|g| name(g) == name(m))).map(Arc::new).collect();
    given.iter().cloned().chain(missing).collect()
}

impl Fairness {
    /// With the mandatory objects only. `total`: places of all levels, 0 for no limit.
    pub fn new(total: usize, patience: Duration, lending: bool) -> Fairness {
        let fairness = Fairness {
            total: if total == 0 { NO_LIMIT } else { total },
            patience,
            lending,
            state: RwLock::default(),
            levels: Mutex::default(),
            rights: Mutex::default(),
            counts: Mutex::default(),
        };
        fairness.configure(&[], &[]);
        fairness
    }

    /// Takes on PriorityLevelConfigurations and FlowSchemas. Levels that go on to be go on with what they have.
    pub fn configure(&self, levels: &[Arc<Value>], schemas: &[Arc<Value>]) {
        let (must_levels, must_schemas) = mandatory();
        let levels = complete(levels, must_levels);
        let schemas = complete(schemas, must_schemas);
        let sum: i64 = levels.iter().map(|l| shares(l)).sum();
        let nominal = |shares: i64| match sum {
            0 => self.total,
            _ if self.total == NO_LIMIT => NO_LIMIT,
            _ => (self.total * count(shares)).div_ceil(count(sum)),
        };
        let mut kept = self.levels.lock();
        let mut rights = self.rights.lock();
        let (mut next, mut next_rights) = (BTreeMap::new(), Vec::new());
        let mut uids = BTreeMap::new();
        for object in &levels {
            let name = str_at(object, &["metadata", "name"]);
            uids.insert(name.to_string(), str_at(object, &["metadata", "uid"]).to_string());
            let exempt = str_at(object, &["spec", "type"]) == "Exempt";
            let old = kept.get(name).filter(|l| l.queues.is_none() == exempt).cloned();
            let level = if exempt {
                old.unwrap_or_else(|| Arc::new(Level::new(name, None)))
            } else {
                let (shape, nominal) = (shape(object), nominal(shares(object)));
                let percent = |key: &str| number(object, &["spec", "limited", key]).map(count);
                let lent = nominal.min(self.total) * percent("lendablePercent").unwrap_or(0) / 100;
                let most = percent("borrowingLimitPercent")
                    .map_or(self.total, |p| nominal + nominal.min(self.total) * p / 100);
                let had = rights.iter().find(|r| &*r.level.name == name);
                let level = match old {
                    Some(level) => {
                        let changed = had.is_none_or(|r| r.nominal != nominal || r.shape != shape);
                        if changed {
                            level.reshape(shape, nominal);
                        }
                        level
                    }
                    None => Arc::new(Level::new(name, Some((shape, nominal)))),
                };
                next_rights.push(Rights {
                    level: level.clone(),
                    shape,
                    nominal,
                    least: nominal - lent.min(nominal),
                    most,
                    wish: had.map_or(0.0, |r| r.wish),
                });
                level
            };
            next.insert(name.to_string(), level);
        }
        *kept = next;
        *rights = next_rights;
        let mut compiled: Vec<Schema> =
            schemas.iter().filter_map(|s| self.compile(s, &kept, &uids)).collect();
        compiled.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        self.state.write().schemas = Arc::new(compiled);
    }

    /// None for a schema whose level is not there.
    fn compile(
        &self,
        schema: &Value,
        levels: &BTreeMap<String, Arc<Level>>,
        uids: &BTreeMap<String, String>,
    ) -> Option<Schema> {
        let name = str_at(schema, &["metadata", "name"]);
        let level_name = str_at(schema, &["spec", "priorityLevelConfiguration", "name"]);
        let level = levels.get(level_name)?.clone();
        let counts =
            self.counts.lock().entry((level_name.to_string(), name.to_string())).or_default().clone();
        Some(Schema {
            name: name.into(),
            uid: header(str_at(schema, &["metadata", "uid"])),
            precedence: number(schema, &["spec", "matchingPrecedence"]).unwrap_or(1000),
            matcher: Matcher::parse(schema),
            level,
            level_uid: header(uids.get(level_name).map_or("", String::as_str)),
            counts,
        })
    }

    /// A place for a request, when its turn comes.
    pub async fn enter(&self, user: &UserInfo, info: &RequestInfo) -> Entered {
        let schemas = self.state.read().schemas.clone();
        let found = schemas.iter().find(|s| s.matcher.matches(user, info)).or_else(|| schemas.last());
        let Some(schema) = found else {
            // There is always what catches the rest.
            let none = || HeaderValue::from_static("");
            return Entered { schema_uid: none(), level_uid: none(), place: Err(Refusal::Cancelled) };
        };
        let flow = schema.matcher.distinguisher(user, info);
        let place = schema.level.enter(&schema.name, flow, &schema.counts, self.patience).await;
        Entered { schema_uid: schema.uid.clone(), level_uid: schema.level_uid.clone(), place }
    }

    /// Lends places that are not wanted in one level to others, where the release has that.
    pub fn lend(&self) {
        if !self.lending || self.total == NO_LIMIT {
            return;
        }
        let mut rights = self.rights.lock();
        let mut wishes = Vec::new();
        for r in rights.iter_mut() {
            let most = r.level.queues.as_ref().map_or(0, |q| q.lock().take_most());
            // A wish is remembered for a while after it has passed.
            r.wish = (r.wish * 0.977).max(most as f64);
            let least = r.least.max(r.nominal.min(most));
            let wish = least.max(r.wish.ceil() as usize);
            wishes.push((least, wish, r.most.max(least)));
        }
        let total = rights.iter().map(|r| r.nominal).sum();
        for (r, limit) in rights.iter().zip(share(total, &wishes)) {
            let now = r.level.queues.as_ref().map_or(0, |q| q.lock().limit());
            if limit != now {
                r.level.reshape(r.shape, limit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestContext;

    fn level(name: &str, shares: i64, more: Value) -> Arc<Value> {
        let mut limited = json!({"nominalConcurrencyShares": shares,
            "limitResponse": {"type": "Queue", "queuing": {"queues": 8, "handSize": 2, "queueLengthLimit": 5}}});
        for (k, v) in more.as_object().into_iter().flatten() {
            limited[k] = v.clone();
        }
        Arc::new(
            json!({"metadata": {"name": name, "uid": format!("u-{name}")}, "spec": {"type": "Limited", "limited": limited}}),
        )
    }

    fn schema(name: &str, level: &str, precedence: i64, user: &str) -> Arc<Value> {
        let star = json!(["*"]);
        Arc::new(json!({"metadata": {"name": name, "uid": format!("s-{name}")},
            "spec": {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
                "rules": [{"subjects": [{"kind": "User", "user": {"name": user}}],
                    "resourceRules": [{"apiGroups": star, "clusterScope": true, "namespaces": star, "resources": star, "verbs": star}]}]}}))
    }

    fn user(name: &str, group: &str) -> UserInfo {
        UserInfo { name: name.into(), groups: vec![group.into()], ..UserInfo::default() }
    }

    async fn ask(f: &Fairness, user: &UserInfo) -> Entered {
        f.enter(user, &RequestContext::for_test("GET", "/api/v1/nodes").info).await
    }

    #[tokio::test(start_paused = true)]
    async fn schemas_are_tried_by_precedence() {
        let f = Fairness::new(10, Duration::from_secs(15), false);
        f.configure(
            &[level("low", 5, json!({})), level("high", 10, json!({}))],
            &[
                schema("b", "low", 20, "jane"),
                schema("a", "high", 10, "jane"),
                schema("lost", "nowhere", 1, "jane"),
            ],
        );
        let e = ask(&f, &user("jane", "system:authenticated")).await;
        assert_eq!((e.schema_uid.to_str().unwrap(), e.level_uid.to_str().unwrap()), ("s-a", "u-high"));
        assert!(e.place.is_ok());
        // 5, 10 and the 5 of what catches the rest: of ten places 3, 5 and 3.
        let limits: Vec<usize> = f.rights.lock().iter().map(|r| r.nominal).collect();
        assert_eq!(limits, [3, 5, 3]);
        for _ in 0..50 {
            assert!(ask(&f, &user("root", "system:masters")).await.place.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_much_waits_and_then_is_refused() {
        let f = Fairness::new(2, Duration::from_secs(15), false);
        f.configure(&[level("l", 1000, json!({}))], &[schema("s", "l", 5, "jane")]);
        let jane = user("jane", "system:authenticated");
        let a = ask(&f, &jane).await;
        let _b = ask(&f, &jane).await;
        assert_eq!(ask(&f, &jane).await.place.err(), Some(Refusal::TimeOut));
        drop(a);
        assert!(ask(&f, &jane).await.place.is_ok());
        // Nothing is queued in the level that catches the rest: one place of two (rounded up).
        let other = user("joe", "system:authenticated");
        let _c = ask(&f, &other).await;
        assert_eq!(ask(&f, &other).await.place.err(), Some(Refusal::ConcurrencyLimit));
    }

    #[tokio::test(start_paused = true)]
    async fn idle_levels_lend_what_they_may() {
        let f = Fairness::new(21, Duration::from_secs(1), true);
        let half = json!({"lendablePercent": 50});
        f.configure(
            &[level("busy", 8, half.clone()), level("idle", 8, half)],
            &[schema("b", "busy", 5, "jane"), schema("i", "idle", 5, "joe")],
        );
        let (jane, joe) = (user("jane", "g"), user("joe", "g"));
        let limit = |name: &str| {
            f.rights
                .lock()
                .iter()
                .find(|r| &*r.level.name == name)
                .map(|r| r.level.queues.as_ref().unwrap().lock().limit())
        };
        assert_eq!((limit("busy"), limit("idle")), (Some(8), Some(8)));
        let mut places = Vec::new();
        for _ in 0..8 {
            places.push(ask(&f, &jane).await.place.unwrap());
        }
        assert!(ask(&f, &jane).await.place.is_err());
        f.lend();
        assert!((4..8).contains(&limit("idle").unwrap()), "{:?}", limit("idle"));
        assert!(limit("busy").unwrap() >= 9);
        places.push(ask(&f, &jane).await.place.unwrap());
        // What is lent comes back when it is wanted.
        let left = limit("idle").unwrap();
        for _ in 0..left {
            places.push(ask(&f, &joe).await.place.unwrap());
        }
        assert!(ask(&f, &joe).await.place.is_err());
        f.lend();
        assert!(limit("idle").unwrap() > left);
    }
}
