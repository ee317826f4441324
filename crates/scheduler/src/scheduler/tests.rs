//! The whole scheduler against an API server of a few lines.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Event;
use pilothouse_component_base::metrics::Metrics as Registry;
use serde_json::Value;

use super::*;
use crate::testing::{node, pod_object};

/// Keeps pods in the informer, as a server's watch would.
struct Server {
    pods: Informer<Pod>,
    version: Mutex<u64>,
    /// Pods that cannot be bound, as often as this says.
    refuse: Mutex<u32>,
}

impl Server {
    fn change(&self, key: &str, f: impl FnOnce(&mut Value)) -> Result<(), String> {
        let pod = self.pods.get(key).ok_or_else(|| format!("pods {key:?} not found"))?;
        let mut value = serde_json::to_value(&*pod).unwrap();
        f(&mut value);
        self.put(serde_json::from_value(value).unwrap());
        Ok(())
    }

    fn put(&self, mut pod: Pod) {
        let mut version = self.version.lock();
        *version += 1;
        pod.metadata.resource_version = Some(version.to_string());
        drop(version);
        self.pods.apply(pod);
    }
}

#[async_trait]
impl Writer for Server {
    async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), String> {
        {
            let mut refuse = self.refuse.lock();
            if *refuse > 0 {
                *refuse -= 1;
                return Err("the server is tired".into());
            }
        }
        self.change(&pod.key, |p| p["spec"]["nodeName"] = node.into())
    }

    async fn patch_status(&self, pod: &PodInfo, status: Value) -> Result<(), String> {
        self.change(&pod.key, |p| {
            for (k, v) in status.as_object().unwrap() {
                p["status"][k] = v.clone();
            }
        })
    }

    async fn delete(&self, pod: &PodInfo) -> Result<(), String> {
        // Pods take a while to end.
        self.change(&pod.key, |p| p["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z".into())?;
        let (pods, key) = (self.pods.clone(), pod.key.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            pods.remove(&key);
        });
        Ok(())
    }
}

struct World {
    server: Arc<Server>,
    nodes: Informer<Node>,
    scheduler: Arc<Scheduler>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl World {
    fn new(nodes: Vec<Node>) -> World {
        Self::with_extenders(nodes, Vec::new())
    }

    fn with_extenders(nodes: Vec<Node>, extenders: Vec<Extender>) -> World {
        let server =
            Arc::new(Server { pods: Informer::new(), version: Mutex::new(0), refuse: Mutex::new(0) });
        let (recorder, events) = EventRecorder::for_test("default-scheduler");
        let scheduler = Scheduler::new(Parts {
            listers: Arc::new(Listers::default()),
            pods: server.pods.clone(),
            writer: server.clone(),
            extenders: Arc::new(extenders),
            profiles: vec![(Profile::default_for("default-scheduler"), recorder)],
            queue: Queue::default(),
            metrics: Metrics::new(&Registry::default()),
            seed: 1,
        });
        let informer = Informer::new();
        nodes.into_iter().for_each(|n| informer.apply(n));
        scheduler.follow(&informer);
        let (stopper, stop) = Stop::new();
        let running = scheduler.clone();
        tokio::spawn(async move {
            running.run(stop).await;
            drop(stopper);
        });
        World { server, nodes: informer, scheduler, events }
    }

    fn create(&self, name: &str, fields: Value) {
        let mut fields = fields;
        fields["metadata"]["name"] = name.into();
        self.server.put(pod_object(fields));
    }

    /// Lets what is under way come to rest.
    async fn settle(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    fn on(&self, name: &str) -> Option<String> {
        self.server.pods.get(&format!("ns/{name}"))?.spec.as_ref()?.node_name.clone()
    }

    fn status(&self, name: &str) -> Value {
        serde_json::to_value(&self.server.pods.get(&format!("ns/{name}")).unwrap().status).unwrap()
    }

    fn told(&self) -> Vec<(String, String)> {
        let text = |e: &Event| (e.reason.clone().unwrap(), e.message.clone().unwrap());
        self.events.lock().iter().map(text).collect()
    }
}

fn cpu(n: &str, priority: i32) -> Value {
    serde_json::json!({"spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": n}}}]}})
}

#[tokio::test(start_paused = true)]
async fn a_pod_gets_a_node_and_another_waits_until_there_is_room() {
    let w = World::new(vec![node("n", Value::Object(Default::default()))]);
    w.create("a", cpu("3", 0));
    w.settle(1).await;
    assert_eq!(w.on("a").as_deref(), Some("n"));
    assert_eq!(w.told(), [("Scheduled".into(), "Successfully assigned ns/a to n".into())]);
    w.create("b", cpu("3", 0));
    w.settle(1).await;
    let text = "0/1 nodes are available: 1 Insufficient cpu.";
    assert_eq!(w.told()[1], ("FailedScheduling".into(), text.into()));
    let condition = &w.status("b")["conditions"][0];
    assert_eq!(
        (condition["reason"].as_str(), condition["message"].as_str()),
        (Some("Unschedulable"), Some(text))
    );
    w.server.pods.remove("ns/a");
    w.settle(2).await;
    assert_eq!(w.on("b").as_deref(), Some("n"));
}

/// Waits, in real time, until something is so.
async fn until(what: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < limit, "it did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn extenders_have_a_say() {
    let url = crate::testing::serve(|_, body| {
        // Pods called "none" may go nowhere, others only to b.
        let none = body["Pod"]["metadata"]["name"] == "none";
        let fit: &[&str] = if none { &[] } else { &["b"] };
        serde_json::json!({"NodeNames": fit, "FailedNodes": {"a": "a is not mine"}})
    })
    .await;
    let config = crate::extender::ExtenderConfig {
        url_prefix: url,
        filter_verb: "filter".into(),
        node_cache_capable: true,
        ..Default::default()
    };
    let nodes = ["a", "b"].map(|n| node(n, Value::Object(Default::default()))).to_vec();
    let w = World::with_extenders(nodes, vec![Extender::new(config).unwrap()]);
    for name in ["p", "q"] {
        w.create(name, cpu("1", 0));
        until(|| w.on(name).is_some()).await;
        assert_eq!(w.on(name).as_deref(), Some("b"));
    }
    w.create("none", cpu("1", 0));
    until(|| w.told().iter().any(|(reason, _)| reason == "FailedScheduling")).await;
    assert_eq!(w.told().last().unwrap().1, "0/2 nodes are available: 1 a is not mine.");
}

#[tokio::test]
async fn an_extender_that_does_not_answer_matters_unless_it_may_be_ignored() {
    let config = |ignorable| crate::extender::ExtenderConfig {
        url_prefix: "http://127.0.0.1:1".into(),
        filter_verb: "filter".into(),
        ignorable,
        ..Default::default()
    };
    let nodes = || vec![node("n", Value::Object(Default::default()))];
    let w = World::with_extenders(nodes(), vec![Extender::new(config(true)).unwrap()]);
    w.create("p", cpu("1", 0));
    until(|| w.on("p").is_some()).await;
    let w = World::with_extenders(nodes(), vec![Extender::new(config(false)).unwrap()]);
    w.create("p", cpu("1", 0));
    until(|| !w.told().is_empty()).await;
    let (reason, text) = w.told().remove(0);
    assert_eq!(reason, "FailedScheduling");
    assert!(text.contains("Post \"http://127.0.0.1:1/filter\""), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_deleted_while_it_waits_is_skipped() {
    let w = World::new(vec![node("n", Value::Object(Default::default()))]);
    w.create("a", cpu("30", 0));
    w.settle(1).await;
    w.server.change("ns/a", |p| p["metadata"]["deletionTimestamp"] = "2020-01-01T00:00:00Z".into()).unwrap();
    w.server.pods.remove("ns/a");
    w.settle(1).await;
    assert_eq!(w.told()[1].1, "skip schedule deleting pod: ns/a");
    assert_eq!(w.scheduler.queue.lengths(), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_grows_or_comes_is_used() {
    let w = World::new(vec![]);
    w.create("a", cpu("6", 0));
    w.settle(1).await;
    assert_eq!(w.told()[0].1, "no nodes available to schedule pods");
    w.nodes.apply(node("n", Value::Object(Default::default())));
    w.settle(3).await;
    assert_eq!(w.told()[1].1, "0/1 nodes are available: 1 Insufficient cpu.");
    w.nodes.apply(node("n", serde_json::json!({"status": {"allocatable": {"cpu": "8"}}})));
    w.settle(5).await;
    assert_eq!(w.on("a").as_deref(), Some("n"));
}

#[tokio::test(start_paused = true)]
async fn the_less_important_goes_and_the_node_is_kept_for_the_more_important() {
    let w = World::new(vec![node("n", Value::Object(Default::default()))]);
    w.create("low", cpu("3", 10));
    w.settle(1).await;
    w.create("high", cpu("3", 1000));
    w.settle(1).await;
    assert_eq!(w.status("high")["nominatedNodeName"], "n");
    assert!(w.told().contains(&("Preempted".into(), "Preempted by ns/high on node n".into())));
    // While the victim ends, nobody less important takes the place.
    w.create("mid", cpu("1", 100));
    w.create("late", cpu("3", 100));
    w.settle(4).await;
    assert_eq!(w.on("high").as_deref(), Some("n"));
    assert_eq!((w.on("mid").as_deref(), w.on("late")), (Some("n"), None));
    assert!(w.server.pods.get("ns/low").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_fails_is_tried_again() {
    let w = World::new(vec![node("n", Value::Object(Default::default()))]);
    *w.server.refuse.lock() = 2;
    w.create("a", cpu("3", 0));
    w.settle(10).await;
    assert_eq!(w.on("a").as_deref(), Some("n"));
    let reasons: Vec<String> = w.told().into_iter().map(|(r, _)| r).collect();
    assert_eq!(reasons, ["FailedScheduling", "FailedScheduling", "Scheduled"]);
    assert_eq!(w.scheduler.cluster.lock().node("n").unwrap().requested.milli_cpu, 3000);
}

#[tokio::test(start_paused = true)]
async fn pods_of_others_are_left_alone() {
    let w = World::new(vec![node("n", Value::Object(Default::default()))]);
    w.create("foreign", serde_json::json!({"spec": {"schedulerName": "mine"}}));
    w.create("gated", serde_json::json!({"spec": {"schedulingGates": [{"name": "g"}]}}));
    w.settle(2).await;
    assert_eq!((w.on("foreign"), w.on("gated"), w.told().len()), (None, None, 0));
    w.create("gated", serde_json::json!({}));
    w.settle(2).await;
    assert_eq!(w.on("gated").as_deref(), Some("n"));
}

/// Not a benchmark, only that nothing is quadratic: a debug build decides on some 2,000 pods a second.
#[tokio::test(start_paused = true)]
async fn many_pods_on_many_nodes() {
    let nodes = (0..100).map(|i| node(&format!("n{i}"), Value::Object(Default::default()))).collect();
    let w = World::new(nodes);
    let begin = std::time::Instant::now();
    for i in 0..500 {
        w.create(&format!("p{i}"), cpu("100m", 0));
    }
    w.settle(5).await;
    println!("{:.0} pods per second", 500.0 / begin.elapsed().as_secs_f64());
    assert!((0..500).all(|i| w.on(&format!("p{i}")).is_some()));
    let cluster = w.scheduler.cluster.lock();
    assert!(cluster.nodes().all(|n| n.pods.len() == 5), "the pods are spread evenly");
}
