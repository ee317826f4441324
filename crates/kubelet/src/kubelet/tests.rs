//! The life of pods on a runtime that pretends, with tokio's clock paused.

use async_trait::async_trait;
use pilothouse_component_base::signals::Stop;
use serde_json::{Value, json};

use super::*;
use crate::api::ApiError;
use crate::objects::FixedObjects;
use crate::runtime::fake::FakeCri;
use crate::runtime::{ExecOutput, RuntimeError};
use crate::volumes::fake::FakeVolumes;

/// An API server that has pods only.
#[derive(Default)]
struct Server {
    pods: Mutex<HashMap<String, Pod>>,
    deleted: Mutex<Vec<String>>,
    kubelet: Mutex<Option<Weak<Kubelet>>>,
}

impl Server {
    fn tell(&self, pod: &Pod) {
        if let Some(k) = self.kubelet.lock().as_ref().and_then(Weak::upgrade) {
            k.set_pod(Arc::new(pod.clone()));
        }
    }
}

#[async_trait]
impl PodApi for Server {
    async fn patch_status(&self, _: &str, name: &str, patch: &Value) -> Result<Pod, ApiError> {
        let pod = {
            let mut pods = self.pods.lock();
            let pod = pods.get_mut(name).ok_or(ApiError::NotFound)?;
            let mut status = serde_json::to_value(pod.pod_status()).unwrap();
            for (k, v) in patch["status"].as_object().unwrap() {
                if k.starts_with('$') {
                    continue;
                }
                if k == "conditions" {
                    let list = status[k].as_array().cloned().unwrap_or_default();
                    let changed = |t: &Value| v.as_array().unwrap().iter().find(|c| c["type"] == *t).cloned();
                    let mut all: Vec<Value> = list
                        .iter()
                        .map(|c| {
                            let mut c = c.clone();
                            for (k, v) in
                                changed(&c["type"]).iter().flat_map(|n| n.as_object().unwrap().clone())
                            {
                                c[k] = v;
                            }
                            c
                        })
                        .collect();
                    all.extend(
                        v.as_array()
                            .unwrap()
                            .iter()
                            .filter(|n| !list.iter().any(|c| c["type"] == n["type"]))
                            .cloned(),
                    );
                    status[k] = all.into();
                } else {
                    status[k] = v.clone();
                }
            }
            pod.status = serde_json::from_value(status).unwrap();
            let v: u64 = pod.metadata.resource_version.as_deref().unwrap_or("0").parse().unwrap();
            pod.metadata.resource_version = Some((v + 1).to_string());
            pod.clone()
        };
        self.tell(&pod);
        Ok(pod)
    }

    async fn delete(&self, _: &str, name: &str, _: &str) -> Result<(), ApiError> {
        let pod = self.pods.lock().remove(name).ok_or(ApiError::NotFound)?;
        self.deleted.lock().push(name.to_string());
        if let Some(k) = self.kubelet.lock().as_ref().and_then(Weak::upgrade) {
            k.remove_pod(&pod);
        }
        Ok(())
    }

    async fn create(&self, pod: &Pod) -> Result<Pod, ApiError> {
        let mut made = pod.clone();
        made.metadata.uid = Some(format!("api-{}", pod.name()));
        self.pods.lock().insert(pod.name().to_string(), made.clone());
        Ok(made)
    }
}

struct World {
    kubelet: Arc<Kubelet>,
    cri: FakeCri,
    server: Arc<Server>,
    volumes: Arc<FakeVolumes>,
    events: Arc<Mutex<Vec<k8s_openapi::api::core::v1::Event>>>,
    _dir: tempfile::TempDir,
    _stop: pilothouse_component_base::signals::Stopper,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let mut config = crate::testing::config(dir.path());
    config.resolv_conf = String::new();
    config.cluster_dns = vec!["10.0.0.10".parse().unwrap()];
    let cri = FakeCri::with_images(&["busybox"]);
    let server = Arc::new(Server::default());
    let (recorder, events) = EventRecorder::for_test("kubelet");
    let volumes = Arc::new(FakeVolumes::new(dir.path()));
    let node =
        serde_json::from_value(json!({"metadata": {"name": "node01", "uid": "n"}, "status": {"allocatable":
        {"cpu": "4", "memory": "8Gi", "pods": "110"}}}))
        .unwrap();
    let kubelet = Kubelet::new(
        config,
        Dependencies {
            cri: Arc::new(cri.clone()),
            volumes: volumes.clone(),
            objects: Arc::new(FixedObjects::default()),
            api: server.clone(),
            recorder,
            services: Informer::new(),
            metrics: Metrics::unread(),
            cgroups: None,
            node: NodeView::new(node, "20.0.0.103".into(), 8 << 30),
            keyring: Keyring::default(),
        },
    );
    *server.kubelet.lock() = Some(Arc::downgrade(&kubelet));
    let (stopper, stop) = Stop::new();
    tokio::spawn(kubelet.clone().watch_runtime(stop));
    World { kubelet, cri, server, volumes, events, _dir: dir, _stop: stopper }
}

impl World {
    fn create(&self, name: &str, spec: Value) {
        let mut base = json!({"nodeName": "node01", "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "image": "busybox"}]});
        base.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "n", "uid": format!("uid-{name}"),
            "resourceVersion": "1"}, "spec": base, "status": {"phase": "Pending"}}),
        )
        .unwrap();
        self.server.pods.lock().insert(name.into(), pod.clone());
        self.kubelet.set_pod(Arc::new(pod));
    }

    fn delete(&self, name: &str, grace: i64) {
        let pod = {
            let mut pods = self.server.pods.lock();
            let pod = pods.get_mut(name).unwrap();
            pod.metadata.deletion_timestamp = Some(crate::pod::now());
            pod.metadata.deletion_grace_period_seconds = Some(grace);
            pod.clone()
        };
        self.kubelet.set_pod(Arc::new(pod));
    }

    fn status(&self, name: &str) -> Value {
        let pods = self.server.pods.lock();
        pods.get(name).map_or(Value::Null, |p| serde_json::to_value(p.pod_status()).unwrap())
    }

    fn events(&self) -> Vec<String> {
        self.events
            .lock()
            .iter()
            .map(|e| format!("{}: {}", e.reason.as_deref().unwrap(), e.message.as_deref().unwrap()))
            .collect()
    }
}

async fn seconds(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_is_deleted() {
    let w = world();
    w.create("p", json!({}));
    seconds(2).await;
    let s = w.status("p");
    assert_eq!(s["phase"], "Running");
    assert_eq!(s["containerStatuses"][0]["ready"], true);
    assert_eq!(s["hostIP"], "20.0.0.103");
    assert!(s["podIP"].is_string() && s["startTime"].is_string());
    assert_eq!(
        w.events(),
        [
            "Pulled: Container image \"busybox\" already present on machine",
            "Created: Created container c",
            "Started: Started container c"
        ]
    );
    assert_eq!(w.cri.take_calls(), ["run_sandbox p", "create c", "start c"]);
    w.delete("p", 30);
    seconds(5).await;
    assert_eq!(w.cri.take_calls(), ["stop c 30", "stop_sandbox", "remove c", "remove_sandbox"]);
    assert_eq!(*w.server.deleted.lock(), ["p"]);
    assert!(!w.kubelet.has_worker("uid-p"));
    assert_eq!(w.cri.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_stays_to_be_seen() {
    let w = world();
    w.create("p", json!({"restartPolicy": "Never"}));
    seconds(2).await;
    w.cri.exit("c", 3);
    seconds(3).await;
    let s = w.status("p");
    assert_eq!(
        (&s["phase"], &s["containerStatuses"][0]["state"]["terminated"]["exitCode"]),
        (&json!("Failed"), &json!(3))
    );
    assert!(s["podIP"].is_string());
    assert!(w.cri.take_calls().contains(&"stop_sandbox".to_string()));
    seconds(300).await;
    assert_eq!(w.cri.take_calls(), Vec::<String>::new(), "nothing is done for a pod that ended");
    assert_eq!(w.cri.counts(), (1, 1), "its logs can be read");
    w.delete("p", 30);
    seconds(2).await;
    assert_eq!(*w.server.deleted.lock(), ["p"]);
}

#[tokio::test(start_paused = true)]
async fn crash_loops_wait_longer_and_longer() {
    let w = world();
    w.create("p", json!({}));
    let mut starts = Vec::new();
    let began = Instant::now();
    for _ in 0..1200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if w.cri.running() > 0 {
            starts.push(began.elapsed().as_secs());
            w.cri.exit("c", 1);
        }
    }
    let gaps: Vec<u64> = starts.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps[0] <= 2, "{gaps:?}");
    assert!(
        (10..=12).contains(&gaps[1]) && (20..=22).contains(&gaps[2]) && (40..=42).contains(&gaps[3]),
        "{gaps:?}"
    );
    let c = w.status("p")["containerStatuses"][0].clone();
    assert_eq!(c["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(
        c["state"]["waiting"]["message"],
        "back-off 1m20s restarting failed container=c pod=p_n(uid-p)"
    );
    assert_eq!(c["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(w.status("p")["phase"], "Running");
    assert!(w.cri.counts().1 <= 3, "dead containers are collected");
    w.delete("p", 30);
    seconds(1).await;
    assert_eq!(*w.server.deleted.lock(), ["p"]);
}

#[tokio::test(start_paused = true)]
async fn images_that_cannot_be_pulled() {
    let w = world();
    w.cri.fail("pull", RuntimeError::unknown("no route"));
    w.create(
        "p",
        json!({"containers": [{"name": "c", "image": "nosuch:1", "imagePullPolicy": "IfNotPresent"}]}),
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waiting = |w: &World| w.status("p")["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(
        waiting(&w),
        json!({"reason": "ErrImagePull", "message": "rpc error: code = Unknown desc = no route"})
    );
    seconds(2).await;
    assert_eq!(
        waiting(&w),
        json!({"reason": "ImagePullBackOff", "message": "Back-off pulling image \"nosuch:1\""})
    );
    seconds(28).await;
    let events = w.events();
    let pulls = events.iter().filter(|e| e.starts_with("Pulling")).count();
    assert_eq!(pulls, 3, "at 0, 10 and 30 seconds: {events:?}");
    assert!(events.contains(&"Failed: Error: ErrImagePull".to_string()));
    assert!(events.contains(&"Failed: Error: ImagePullBackOff".to_string()));
    w.cri.heal();
    seconds(40).await;
    assert_eq!(w.status("p")["phase"], "Running");
}

#[tokio::test(start_paused = true)]
async fn probes_and_hooks() {
    let w = world();
    w.cri.on_exec("live", ExecOutput { exit_code: 1, ..Default::default() });
    w.cri.on_exec("bye", ExecOutput { exit_code: 3, stdout: b"oops\n".to_vec(), ..Default::default() });
    w.create(
        "p",
        json!({"containers": [{"name": "c", "image": "busybox", "livenessProbe": {"exec": {"command": ["live"]},
        "failureThreshold": 1, "periodSeconds": 1, "initialDelaySeconds": 5, "timeoutSeconds": 1, "successThreshold": 1},
        "lifecycle": {"preStop": {"exec": {"command": ["bye"]}}}}]}),
    );
    seconds(4).await;
    assert_eq!(w.status("p")["containerStatuses"][0]["ready"], true);
    seconds(4).await;
    assert_eq!(w.status("p")["containerStatuses"][0]["restartCount"], 1);
    let events = w.events();
    for e in [
        "Unhealthy: Liveness probe failed: ",
        "Killing: Container c failed liveness probe, will be restarted",
        "FailedPreStopHook: Exec lifecycle hook ([bye]) for Container \"c\" in Pod \"p_n(uid-p)\" failed - error: command 'bye' exited with 3: , message: \"oops\\n\"",
    ] {
        assert!(events.iter().any(|x| x == e), "{e} is not in {events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn readiness_is_written_without_a_sync() {
    let w = world();
    w.cri.on_exec("ready", ExecOutput { exit_code: 1, ..Default::default() });
    w.create(
        "p",
        json!({"containers": [{"name": "c", "image": "busybox", "readinessProbe": {"exec": {"command": ["ready"]},
        "failureThreshold": 1, "periodSeconds": 1, "timeoutSeconds": 1, "successThreshold": 1}}]}),
    );
    seconds(4).await;
    let ready = |w: &World| {
        let s = w.status("p");
        (
            s["containerStatuses"][0]["ready"].clone(),
            s["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap()["status"]
                .clone(),
        )
    };
    assert_eq!(ready(&w), (json!(false), json!("False")));
    w.cri.on_exec("ready", ExecOutput::default());
    seconds(2).await;
    assert_eq!(ready(&w), (json!(true), json!("True")));
}

#[tokio::test(start_paused = true)]
async fn volumes_that_fail_hold_the_pod() {
    let w = world();
    w.volumes.fail(Some("secret \"no\" not found"));
    w.create("p", json!({"volumes": [{"name": "v", "secret": {"secretName": "no"}}]}));
    seconds(3).await;
    let s = w.status("p");
    assert_eq!(s["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    assert!(s["podIP"].is_null());
    assert!(
        w.events()
            .iter()
            .all(|e| e == "FailedMount: MountVolume.SetUp failed for volume \"v\" : secret \"no\" not found")
    );
    w.volumes.fail(None);
    seconds(10).await;
    assert_eq!(w.status("p")["phase"], "Running");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_fit_is_rejected() {
    let w = world();
    w.create("p", json!({"nodeSelector": {"no": "such"}}));
    seconds(1).await;
    let s = w.status("p");
    assert_eq!(
        (&s["phase"], &s["reason"], &s["message"]),
        (&json!("Failed"), &json!("NodeAffinity"), &json!("Pod Predicate NodeAffinity failed"))
    );
    assert!(s["startTime"].is_string() && s.get("conditions").is_none());
    assert_eq!(w.events(), ["NodeAffinity: Predicate NodeAffinity failed"]);
    w.delete("p", 30);
    seconds(1).await;
    assert_eq!(*w.server.deleted.lock(), ["p"]);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_pod() {
    let w = world();
    w.create("p", json!({"activeDeadlineSeconds": 3, "restartPolicy": "Never"}));
    seconds(6).await;
    let s = w.status("p");
    assert_eq!((&s["phase"], &s["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
    assert_eq!(w.cri.running(), 0);
    let deadline = w.events().iter().filter(|e| e.starts_with("DeadlineExceeded")).count();
    assert_eq!(deadline, 1);
}

#[tokio::test(start_paused = true)]
async fn an_eviction_replaces_the_status() {
    let w = world();
    w.create("p", json!({}));
    seconds(2).await;
    let status =
        PodStatus { phase: Some("Failed".into()), reason: Some("Evicted".into()), ..Default::default() };
    assert!(w.kubelet.evict("uid-p", status, Some(0)));
    seconds(2).await;
    let s = w.status("p");
    assert_eq!((&s["phase"], &s["reason"]), (&json!("Failed"), &json!("Evicted")));
    assert!(w.cri.take_calls().contains(&"stop c 0".to_string()));
    assert_eq!(w.cri.counts(), (0, 0));
    w.delete("p", 0);
    seconds(1).await;
    assert_eq!(*w.server.deleted.lock(), ["p"]);
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_has_a_mirror() {
    let w = world();
    let text = "kind: Pod\nmetadata: {name: st, namespace: n}\nspec:\n  containers:\n  - {name: c, image: busybox, imagePullPolicy: IfNotPresent}\n";
    let pod = |t: &str| {
        Arc::new(
            crate::pods::sources::file::parse(t, std::path::Path::new("/a"), "node01").unwrap().remove(0),
        )
    };
    let first = pod(text);
    w.kubelet.set_pod(first.clone());
    seconds(2).await;
    assert_eq!(w.status("st-node01")["phase"], "Running");
    // A new file: the old pod goes first.
    let second = pod(&text.replace("name: c,", "name: c2,"));
    w.kubelet.remove_pod(&first);
    w.kubelet.set_pod(second.clone());
    seconds(5).await;
    let s = w.status("st-node01");
    assert_eq!((&s["phase"], &s["containerStatuses"][0]["name"]), (&json!("Running"), &json!("c2")));
    assert_eq!(w.cri.running(), 1);
    w.kubelet.remove_pod(&second);
    seconds(3).await;
    assert!(w.server.pods.lock().is_empty());
    assert_eq!(w.cri.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn init_containers_come_first() {
    let w = world();
    w.create("p", json!({"initContainers": [{"name": "i", "image": "busybox"}]}));
    seconds(2).await;
    assert_eq!(w.status("p")["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    w.cri.exit("i", 0);
    seconds(3).await;
    let s = w.status("p");
    assert_eq!((&s["phase"], &s["initContainerStatuses"][0]["ready"]), (&json!("Running"), &json!(true)));
}

#[tokio::test(start_paused = true)]
async fn containers_survive_a_restart_of_the_kubelet_and_orphans_do_not() {
    let w = world();
    w.create("p", json!({}));
    let labels = HashMap::from([(crate::runtime::labels::POD_UID.to_string(), "uid-gone".to_string())]);
    let sandbox = crate::runtime::cri::PodSandboxConfig { labels: labels.clone(), ..Default::default() };
    let sandbox = w.cri.run_sandbox(sandbox, "").await.unwrap();
    let metadata = Some(crate::runtime::cri::ContainerMetadata { name: "c".into(), attempt: 0 });
    let orphan = crate::runtime::cri::ContainerConfig { labels, metadata, ..Default::default() };
    let orphan = w.cri.create_container(&sandbox, orphan, Default::default()).await.unwrap();
    w.cri.start_container(&orphan).await.unwrap();
    seconds(2).await;
    w.cri.take_calls();
    // A new kubelet on the same runtime knows one of the two.
    let other = world();
    let config = w.kubelet.config.clone();
    let (recorder, _) = EventRecorder::for_test("kubelet");
    let k = Kubelet::new(
        config,
        Dependencies {
            cri: Arc::new(w.cri.clone()),
            volumes: w.volumes.clone(),
            objects: Arc::new(FixedObjects::default()),
            api: other.server.clone(),
            recorder,
            services: Informer::new(),
            metrics: Metrics::unread(),
            cgroups: None,
            node: NodeView::new((*w.kubelet.node.get()).clone(), "20.0.0.103".into(), 8 << 30),
            keyring: Keyring::default(),
        },
    );
    let pod = w.server.pods.lock()["p"].clone();
    k.set_pod(Arc::new(pod));
    let (_stopper, stop) = Stop::new();
    tokio::spawn(k.clone().keep_house(stop));
    seconds(10).await;
    let calls = w.cri.take_calls();
    assert!(!calls.iter().any(|c| c.starts_with("run_sandbox") || c.starts_with("create")), "{calls:?}");
    assert_eq!(calls.iter().filter(|c| c.starts_with("stop c")).count(), 1);
    assert_eq!(w.cri.counts(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_critical_pod_takes_the_place_of_another() {
    let w = world();
    let asks =
        |cpu: &str| json!([{"name": "c", "image": "busybox", "resources": {"requests": {"cpu": cpu}}}]);
    w.create("a", json!({"containers": asks("2")}));
    w.create("b", json!({"containers": asks("1")}));
    seconds(2).await;
    w.cri.take_calls();
    w.create("critical", json!({"priority": 2_000_000_000, "containers": asks("3")}));
    seconds(5).await;
    let s = w.status("a");
    assert_eq!((&s["phase"], &s["reason"]), (&json!("Failed"), &json!("Preempting")));
    assert_eq!(
        (&w.status("b")["phase"], &w.status("critical")["phase"]),
        (&json!("Running"), &json!("Running"))
    );
    assert!(w.events().contains(&"Preempting: Preempted in order to admit critical pod".to_string()));
    let calls = w.cri.take_calls();
    let at = |what: &str| calls.iter().position(|c| c.starts_with(what)).unwrap();
    assert!(at("stop c") < at("run_sandbox critical"), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_container_is_added_to_a_running_pod_and_never_restarted() {
    let w = world();
    w.create("p", json!({}));
    seconds(2).await;
    let mut pod = w.server.pods.lock()["p"].clone();
    pod.spec.as_mut().unwrap().ephemeral_containers = Some(vec![
        serde_json::from_value(json!({"name": "debug", "image": "busybox", "targetContainerName": "c"}))
            .unwrap(),
    ]);
    w.server.pods.lock().insert("p".into(), pod.clone());
    w.kubelet.set_pod(Arc::new(pod));
    seconds(2).await;
    let debug = |w: &World| w.status("p")["ephemeralContainerStatuses"][0].clone();
    assert!(debug(&w)["state"]["running"].is_object());
    assert_eq!(w.status("p")["containerStatuses"][0]["ready"], true);
    w.cri.take_calls();
    w.cri.exit("debug", 3);
    seconds(120).await;
    assert_eq!(debug(&w)["state"]["terminated"]["exitCode"], 3);
    assert_eq!(w.cri.take_calls(), Vec::<String>::new());
    assert_eq!(w.status("p")["phase"], "Running");
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_profile_is_not_there_waits() {
    let w = world();
    let profile = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "no-such-profile"}});
    w.create("p", json!({"securityContext": profile}));
    seconds(5).await;
    let s = w.status("p");
    assert_eq!((&s["phase"], &s["reason"]), (&json!("Pending"), &json!("AppArmor")));
    assert!(s["message"].as_str().unwrap().starts_with("Cannot enforce AppArmor: "));
    assert_eq!(s["containerStatuses"][0]["state"]["waiting"]["reason"], "Blocked");
    assert_eq!(w.cri.take_calls(), Vec::<String>::new());
}
