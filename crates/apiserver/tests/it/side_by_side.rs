//! One etcd, two API servers: what Kubernetes v1.20 has left in it is served here, and what is written here can be read
//! by its rules.

use std::sync::Arc;
use std::time::Duration;

use crate::common::proto::{Message, THEN, fields, meta, uid};
use crate::common::{Api, LIMIT, World, start_on};
use crate::etcd::Etcd;
use bytes::Bytes;
use http::{Method, StatusCode};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_store::etcd::{EtcdConfig, EtcdStore};
use pilothouse_store::{Expect, Range, Store, prefix_end};

const TEN: &str = "2021-01-01T00:00:00Z";

async fn connect(etcd: &Etcd) -> Arc<dyn Store> {
    let config = EtcdConfig {
        endpoints: vec![etcd.url.clone()],
        ca_file: None,
        cert_file: None,
        key_file: None,
        prefix: "/registry".into(),
    };
    EtcdStore::connect(config).await.unwrap()
}

async fn put(store: &Arc<dyn Store>, key: &str, value: impl Into<Bytes>) {
    store.put(format!("/registry/{key}").into(), value.into(), Expect::Absent, None).await.unwrap();
}

async fn stored(store: &Arc<dyn Store>, key: &str) -> Bytes {
    let (found, _) = store.get(format!("/registry/{key}").as_bytes()).await.unwrap();
    found.unwrap_or_else(|| panic!("nothing at {key}")).value
}

/// Waits until something is so: what a server does by itself, it does a little after it is ready.
async fn until(so: impl AsyncFn() -> bool) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("it does not come to that");
}

/// What v1.20's admission gives to pods.
fn toleration(condition: &str) -> Message {
    Message::new()
        .text(1, &format!("node.kubernetes.io/{condition}"))
        .text(2, "Exists")
        .text(3, "")
        .text(4, "NoExecute")
        .int(5, 300)
}

/// A pod's spec with what v1.20's defaults put in.
fn pod_spec(image: &str, node: &str) -> Message {
    let container = Message::new()
        .text(1, "c")
        .text(2, image)
        .text(5, "")
        .message(8, Message::new())
        .text(13, "/dev/termination-log")
        .text(14, "IfNotPresent")
        .text(20, "File");
    Message::new()
        .message(2, container)
        .text(3, "Always")
        .int(4, 30)
        .text(6, "ClusterFirst")
        .text(8, "default")
        .text(9, "default")
        .text(10, node)
        .int(11, 0)
        .int(12, 0)
        .int(13, 0)
        .message(14, Message::new())
        .text(16, "")
        .text(17, "")
        .text(19, "default-scheduler")
        .message(22, toleration("not-ready"))
        .message(22, toleration("unreachable"))
        .text(24, "")
        .int(25, 0)
        .int(30, 1)
}

fn template() -> Message {
    Message::new().message(1, Message::new().map(11, &[("app", "web")])).message(2, pod_spec("web:1", ""))
}

fn selector() -> Message {
    Message::new().map(1, &[("app", "web")])
}

/// A service's cluster address and node port.
fn service(namespace: &str, name: &str, ip: &str, node_port: i64) -> Vec<u8> {
    let port =
        Message::new().text(1, "http").text(2, "TCP").int(3, 80).int_or_string(4, 8080).int(5, node_port);
    let spec = Message::new()
        .message(1, port)
        .map(2, &[("app", "web")])
        .text(3, ip)
        .text(4, if node_port == 0 { "ClusterIP" } else { "NodePort" })
        .text(7, "None")
        .text(8, "")
        .text(10, "")
        .text(11, if node_port == 0 { "" } else { "Cluster" })
        .int(12, 0)
        .int(13, 0)
        .text(18, ip);
    Message::new()
        .message(1, meta(namespace, name, &[]))
        .message(2, spec)
        .message(3, Message::new().message(1, Message::new()))
        .object("v1", "Service")
}

/// A bitmap as Go's `big.Int` writes it.
fn bitmap(bits: &[usize]) -> Vec<u8> {
    let length = bits.iter().max().unwrap() / 8 + 1;
    let mut bytes = vec![0u8; length];
    for bit in bits {
        bytes[length - 1 - bit / 8] |= 1 << (bit % 8);
    }
    bytes
}

fn range_allocation(range: &str, bits: &[usize]) -> Vec<u8> {
    Message::new()
        .message(1, Message::new())
        .text(2, range)
        .bytes(3, bitmap(bits))
        .object("v1", "RangeAllocation")
}

/// What a cluster of v1.20 leaves in etcd: built-in kinds as protobuf in their storage versions, custom resources,
/// their definitions and APIServices as JSON.
async fn write_old_cluster(store: &Arc<dyn Store>) {
    let plain = |name: &str| Message::new().message(1, meta("old", name, &[("app", "web")]));
    let namespace = Message::new()
        .message(1, meta("", "old", &[]))
        .message(2, Message::new().text(1, "kubernetes"))
        .message(3, Message::new().text(1, "Active"));
    put(store, "namespaces/old", namespace.object("v1", "Namespace")).await;
    let pod = plain("p")
        .message(2, pod_spec("web:1", "n1"))
        .message(3, Message::new().text(1, "Running").text(6, "10.1.0.7"));
    put(store, "pods/old/p", pod.object("v1", "Pod")).await;
    put(store, "services/specs/old/s", service("old", "s", "10.0.0.77", 30077)).await;
    put(store, "services/specs/default/kubernetes", service("default", "kubernetes", "10.0.0.1", 0)).await;
    let subset = Message::new()
        .message(1, Message::new().text(1, "10.1.0.7").text(3, ""))
        .message(3, Message::new().text(1, "http").int(2, 8080).text(3, "TCP"));
    put(store, "services/endpoints/old/s", plain("s").message(2, subset).object("v1", "Endpoints")).await;
    let node = Message::new()
        .message(1, meta("", "n1", &[("kubernetes.io/hostname", "n1")]))
        .message(2, Message::new().text(1, "10.1.0.0/24").text(3, ""))
        .message(
            3,
            Message::new().message(1, Message::new().text(1, "cpu").message(2, Message::new().text(1, "2"))),
        );
    put(store, "minions/n1", node.object("v1", "Node")).await;
    let secret = plain("t").message(2, Message::new().text(1, "k").bytes(2, [0xff, 0, 1])).text(3, "Opaque");
    put(store, "secrets/old/t", secret.object("v1", "Secret")).await;
    put(store, "configmaps/old/m", plain("m").map(2, &[("k", "v")]).object("v1", "ConfigMap")).await;
    let rolling = Message::new()
        .message(1, Message::new().int(1, 1).int(2, 0).text(3, "25%"))
        .message(2, Message::new().int(1, 1).int(2, 0).text(3, "25%"));
    let deployment = Message::new()
        .int(1, 3)
        .message(2, selector())
        .message(3, template())
        .message(4, Message::new().text(1, "RollingUpdate").message(2, rolling))
        .int(5, 0)
        .int(6, 10)
        .int(7, 0)
        .int(9, 600);
    put(store, "deployments/old/d", plain("d").message(2, deployment).object("apps/v1", "Deployment")).await;
    let controller = Message::new().int(1, 2).map(2, &[("app", "web")]).message(3, template()).int(4, 0);
    put(
        store,
        "controllers/old/rc",
        plain("rc").message(2, controller).object("v1", "ReplicationController"),
    )
    .await;
    let path = Message::new()
        .text(1, "/")
        .message(2, Message::new().text(1, "s").int_or_string(2, 80))
        .text(3, "ImplementationSpecific");
    let rule = Message::new()
        .text(1, "e.com")
        .message(2, Message::new().message(1, Message::new().message(1, path)));
    let spec = Message::new().message(3, rule);
    let ingress = plain("i").message(2, spec.clone());
    put(store, "ingress/old/i", ingress.clone().object("networking.k8s.io/v1beta1", "Ingress")).await;
    // What v1.17 has written and nobody has touched since.
    let older = Message::new().message(1, meta("old", "older", &[])).message(2, spec);
    put(store, "ingress/old/older", older.object("extensions/v1beta1", "Ingress")).await;
    let lease = Message::new().text(1, "n1").int(2, 40).time(4, THEN, 123_456_000);
    let lease = Message::new().message(1, meta("kube-node-lease", "n1", &[])).message(2, lease);
    put(store, "leases/kube-node-lease/n1", lease.object("coordination.k8s.io/v1", "Lease")).await;
    let event = plain("e.1")
        .message(
            2,
            Message::new().text(1, "Pod").text(2, "old").text(3, "p").text(4, &uid("p")).text(5, "v1"),
        )
        .text(3, "Started")
        .text(4, "Started container c")
        .message(5, Message::new().text(1, "kubelet").text(2, "n1"))
        .time(6, THEN, 0)
        .time(7, THEN, 0)
        .int(8, 1)
        .text(9, "Normal")
        .text(14, "")
        .text(15, "");
    // Events live as long as their lease.
    let event = Bytes::from(event.object("v1", "Event"));
    let life = Some(Duration::from_secs(3600));
    store.put("/registry/events/old/e.1".into(), event, Expect::Absent, life).await.unwrap();
    let budget = Message::new().int_or_string(1, 1).message(2, selector());
    put(
        store,
        "poddisruptionbudgets/old/b",
        plain("b").message(2, budget).object("policy/v1beta1", "PodDisruptionBudget"),
    )
    .await;
    let job = Message::new().message(
        6,
        Message::new().message(1, Message::new()).message(2, pod_spec("job:1", "").text(3, "Never")),
    );
    let cron = Message::new()
        .text(1, "*/5 * * * *")
        .text(3, "Allow")
        .int(4, 0)
        .message(5, Message::new().message(1, Message::new()).message(2, job))
        .int(6, 3)
        .int(7, 1);
    put(store, "cronjobs/old/c", plain("c").message(2, cron).object("batch/v1beta1", "CronJob")).await;
    let class = Message::new()
        .message(1, meta("", "slow", &[]))
        .text(2, "e.com/slow")
        .text(4, "Delete")
        .text(7, "Immediate");
    put(store, "storageclasses/slow", class.object("storage.k8s.io/v1", "StorageClass")).await;
    let rule = Message::new().text(1, "get").text(2, "").text(3, "pods");
    let role = Message::new().message(1, meta("", "looker", &[])).message(2, rule);
    put(store, "clusterroles/looker", role.object("rbac.authorization.k8s.io/v1", "ClusterRole")).await;
    let scaler = Message::new()
        .message(1, Message::new().text(1, "Deployment").text(2, "d").text(3, "apps/v1"))
        .int(2, 1)
        .int(3, 5)
        .int(4, 80);
    put(
        store,
        "horizontalpodautoscalers/old/h",
        plain("h").message(2, scaler).object("autoscaling/v1", "HorizontalPodAutoscaler"),
    )
    .await;
    let policy = Message::new()
        .int(1, 0)
        .message(10, Message::new().text(1, "RunAsAny"))
        .message(11, Message::new().text(1, "RunAsAny"))
        .message(12, Message::new().text(1, "RunAsAny"))
        .message(13, Message::new().text(1, "RunAsAny"));
    let policy = Message::new().message(1, meta("", "psp", &[])).message(2, policy);
    put(store, "podsecuritypolicy/psp", policy.object("policy/v1beta1", "PodSecurityPolicy")).await;
    put(store, "ranges/serviceips", range_allocation("10.0.0.0/24", &[0, 76, 200])).await;
    put(store, "ranges/servicenodeports", range_allocation("30000-32767", &[77])).await;
    let master =
        Message::new().message(2, Message::new().message(1, Message::new().text(1, "10.9.8.7").text(3, "")));
    let master = Bytes::from(master.object("v1", "Endpoints"));
    store.put("/registry/masterleases/10.9.8.7".into(), master, Expect::Absent, life).await.unwrap();
    put(store, "apiregistration.k8s.io/apiservices/v1.apps", api_service().to_string()).await;
    put(store, "apiextensions.k8s.io/customresourcedefinitions/widgets.e.com", definition().to_string())
        .await;
    let widget = json!({"apiVersion": "e.com/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": "old",
        "uid": uid("w"), "creationTimestamp": TEN, "generation": 1}, "spec": {"size": 3}});
    put(store, "e.com/widgets/old/w", widget.to_string()).await;
}

fn api_service() -> Value {
    json!({"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {"name": "v1.apps", "uid": uid("v1.apps"), "creationTimestamp": TEN,
            "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"}},
        "spec": {"service": null, "group": "apps", "version": "v1", "groupPriorityMinimum": 17800, "versionPriority": 15},
        "status": {"conditions": [{"type": "Available", "status": "True", "lastTransitionTime": TEN,
            "reason": "Local", "message": "Local APIServices are always available"}]}})
}

fn definition() -> Value {
    let names =
        json!({"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"});
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer"}, "color": {"type": "string", "default": "red"}}}}}});
    json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1beta1",
        "metadata": {"name": "widgets.e.com", "uid": uid("widgets"), "generation": 1, "creationTimestamp": TEN},
        "spec": {"group": "e.com", "version": "v1", "names": names, "scope": "Namespaced", "validation": schema,
            "versions": [{"name": "v1", "served": true, "storage": true}],
            "conversion": {"strategy": "None"}, "preserveUnknownFields": false},
        "status": {"acceptedNames": names, "storedVersions": ["v1"], "conditions": [
            {"type": "NamesAccepted", "status": "True", "lastTransitionTime": TEN, "reason": "NoConflicts", "message": "no conflicts found"},
            {"type": "Established", "status": "True", "lastTransitionTime": TEN, "reason": "InitialNamesAccepted",
             "message": "the initial names have been accepted"}]}})
}

async fn take_over(etcd: &Etcd, more: &[&str]) -> World {
    let store = connect(etcd).await;
    let mut flags = vec!["--storage-backend=etcd3"];
    let servers = format!("--etcd-servers={}", etcd.url);
    flags.extend([
        servers.as_str(),
        "--service-cluster-ip-range=10.0.0.0/24",
        "--advertise-address=10.9.8.6",
    ]);
    flags.extend(more);
    start_on(tempfile::tempdir().unwrap(), store, &flags).await
}

const OBJECTS: &[&str] = &[
    "/api/v1/namespaces/old",
    "/api/v1/namespaces/old/pods/p",
    "/api/v1/namespaces/old/services/s",
    "/api/v1/namespaces/old/endpoints/s",
    "/api/v1/nodes/n1",
    "/api/v1/namespaces/old/secrets/t",
    "/api/v1/namespaces/old/configmaps/m",
    "/apis/apps/v1/namespaces/old/deployments/d",
    "/api/v1/namespaces/old/replicationcontrollers/rc",
    "/apis/networking.k8s.io/v1/namespaces/old/ingresses/i",
    "/apis/extensions/v1beta1/namespaces/old/ingresses/i",
    "/apis/networking.k8s.io/v1/namespaces/old/ingresses/older",
    "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1",
    "/api/v1/namespaces/old/events/e.1",
    "/apis/events.k8s.io/v1/namespaces/old/events/e.1",
    "/apis/policy/v1beta1/namespaces/old/poddisruptionbudgets/b",
    "/apis/batch/v1beta1/namespaces/old/cronjobs/c",
    "/apis/storage.k8s.io/v1/storageclasses/slow",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles/looker",
    "/apis/autoscaling/v1/namespaces/old/horizontalpodautoscalers/h",
    "/apis/autoscaling/v2beta2/namespaces/old/horizontalpodautoscalers/h",
    "/apis/policy/v1beta1/podsecuritypolicies/psp",
    "/apis/apiregistration.k8s.io/v1/apiservices/v1.apps",
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.e.com",
    "/apis/e.com/v1/namespaces/old/widgets/w",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_v1_20_wrote_is_served() {
    let etcd = Etcd::start(&[]);
    let store = connect(&etcd).await;
    write_old_cluster(&store).await;
    let world = take_over(&etcd, &[]).await;
    let api = world.api();
    for path in OBJECTS {
        let (code, object) = api.get(path).await;
        assert_eq!(code, StatusCode::OK, "{path}: {object}");
        let name = path.rsplit('/').next().unwrap();
        assert_eq!(object["metadata"]["name"], name, "{path}");
        assert_eq!(object["metadata"]["creationTimestamp"], TEN, "{path}");
        let (list, _) = path.rsplit_once('/').unwrap();
        let (_, found) = api.get(&format!("{list}?fieldSelector=metadata.name%3D{name}")).await;
        assert_eq!(found["items"].as_array().map(Vec::len), Some(1), "{list}: {found}");
    }
    let get = async |path: &str| api.get(path).await.1;
    let pod = get("/api/v1/namespaces/old/pods/p").await;
    assert_eq!(pod["metadata"]["uid"], uid("p"));
    assert_eq!(pod["spec"]["containers"][0]["image"], "web:1");
    assert_eq!(
        (&pod["spec"]["terminationGracePeriodSeconds"], &pod["status"]["podIP"]),
        (&json!(30), &json!("10.1.0.7"))
    );
    let list = get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1&labelSelector=app%3Dweb").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(get("/api/v1/namespaces/old/secrets/t").await["data"]["k"], "/wAB");
    let ingress = get("/apis/networking.k8s.io/v1/namespaces/old/ingresses/i").await;
    assert_eq!(ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"]["number"], 80);
    let lease = get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1").await;
    assert_eq!(lease["spec"]["renewTime"], "2021-01-01T00:00:00.123456Z");
    let event = get("/apis/events.k8s.io/v1/namespaces/old/events/e.1").await;
    assert_eq!((&event["note"], &event["deprecatedCount"]), (&json!("Started container c"), &json!(1)));
    let budget = get("/apis/policy/v1beta1/namespaces/old/poddisruptionbudgets/b").await;
    assert_eq!(budget["spec"]["minAvailable"], 1);
    let cron = get("/apis/batch/v1beta1/namespaces/old/cronjobs/c").await;
    assert_eq!(cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"], "job:1");
    let scaler = get("/apis/autoscaling/v2beta2/namespaces/old/horizontalpodautoscalers/h").await;
    assert_eq!(scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    // A definition's defaults hold for what was stored before there were any.
    let widget = get("/apis/e.com/v1/namespaces/old/widgets/w").await;
    assert_eq!(widget["spec"], json!({"size": 3, "color": "red"}));
    // Who was behind the service `kubernetes` is there still.
    until(async || {
        let endpoints = api.get("/api/v1/namespaces/default/endpoints/kubernetes").await.1;
        let addresses = endpoints["subsets"][0]["addresses"].as_array().cloned().unwrap_or_default();
        addresses.iter().any(|a| a["ip"] == "10.9.8.7")
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_v1_20_wrote_can_be_changed_watched_and_deleted() {
    let etcd = Etcd::start(&[]);
    let store = connect(&etcd).await;
    write_old_cluster(&store).await;
    let world = take_over(&etcd, &[]).await;
    let api = world.api();
    let mut pods = api.watch("/api/v1/namespaces/old/pods?watch=true").await;
    pods.expect("ADDED", "p").await;
    let label = json!({"metadata": {"labels": {"seen": "yes"}}});
    for path in OBJECTS {
        let (code, before) = api.get(path).await;
        assert_eq!(code, StatusCode::OK, "{path}");
        // What changes nothing is not written, though it would be written in another form.
        let (code, same) = api.put(path, &before).await;
        assert_eq!((code, &same), (StatusCode::OK, &before), "{path}");
        let (code, after) = api.patch(path, label.clone()).await;
        assert_eq!(code, StatusCode::OK, "{path}: {after}");
        assert_eq!(
            (&after["metadata"]["labels"]["seen"], &after["metadata"]["uid"]),
            (&json!("yes"), &before["metadata"]["uid"])
        );
    }
    let changed = pods.expect("MODIFIED", "p").await;
    assert_eq!(changed["spec"]["nodeName"], "n1");
    // The other server goes on writing in its own form while we watch.
    let foreign = Message::new()
        .message(1, meta("old", "q", &[("app", "web")]))
        .message(2, pod_spec("web:2", ""))
        .message(3, Message::new().text(1, "Pending"));
    put(&store, "pods/old/q", foreign.object("v1", "Pod")).await;
    assert_eq!(pods.expect("ADDED", "q").await["spec"]["containers"][0]["image"], "web:2");
    store.delete("/registry/pods/old/q".into(), Expect::Any).await.unwrap();
    assert_eq!(pods.expect("DELETED", "q").await["spec"]["containers"][0]["image"], "web:2");

    for path in OBJECTS.iter().rev().filter(|p| !p.ends_with("/v1.apps") && !p.ends_with("namespaces/old")) {
        let options = json!({"gracePeriodSeconds": 0, "propagationPolicy": "Background"});
        let (code, gone) =
            api.json(Method::DELETE, path, &[("content-type", "application/json")], &options).await;
        assert!(code == StatusCode::OK || code == StatusCode::NOT_FOUND, "{path}: {gone}");
    }
    // Marked first, as in v1.20, then gone.
    while pods.next().await.expect("the watch has ended")["type"] != "DELETED" {}
    for prefix in
        ["pods/old/", "services/specs/old/", "ingress/old/", "minions/", "controllers/old/", "events/old/"]
    {
        let start = Bytes::from(format!("/registry/{prefix}"));
        let range = Range { end: prefix_end(&start), start, ..Range::default() };
        assert_eq!(store.range(range).await.unwrap().kvs.len(), 0, "{prefix}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_and_ports_are_given_once_by_both() {
    let etcd = Etcd::start(&[]);
    let store = connect(&etcd).await;
    write_old_cluster(&store).await;
    let world = take_over(&etcd, &[]).await;
    let api = world.api();
    let services = "/api/v1/namespaces/old/services";
    let wanted = |name: &str, ip: &str, port: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "nodePort": port}]}})
    };
    // Of a service, and of one that the other server is just making: its bit is there, its object not yet.
    for ip in ["10.0.0.77", "10.0.0.201"] {
        let (code, refused) = api.post(services, wanted("a", ip, Value::Null)).await;
        assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{refused}");
        assert!(
            refused["message"].as_str().unwrap().contains("provided IP is already allocated"),
            "{refused}"
        );
    }
    let (code, refused) = api.post(services, wanted("a", "", json!(30077))).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused["message"].as_str().unwrap().contains("provided port is already allocated"), "{refused}");
    let (code, made) = api.post(services, wanted("a", "10.0.0.99", json!(30005))).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");

    // What the other server finds now: its own bits and ours, in a form that its decoder knows.
    let (range, bits) = allocation(&stored(&store, "ranges/serviceips").await);
    assert_eq!(range, "10.0.0.0/24");
    for bit in [0, 76, 98, 200] {
        assert!(bits.contains(&bit), "{bit} of {bits:?}");
    }
    let (range, bits) = allocation(&stored(&store, "ranges/servicenodeports").await);
    assert_eq!((range.as_str(), bits), ("30000-32767", vec![5, 77]));

    // It takes one more; we do not give it again, and free what is ours alone.
    let (kv, _) = store.get(b"/registry/ranges/servicenodeports").await.unwrap();
    let expect = Expect::Revision(kv.unwrap().mod_revision);
    let theirs = Bytes::from(range_allocation("30000-32767", &[5, 9, 77]));
    store.put("/registry/ranges/servicenodeports".into(), theirs, expect, None).await.unwrap();
    let (code, _) = api.post(services, wanted("b", "", json!(30009))).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(api.delete(&format!("{services}/a")).await.0, StatusCode::OK);
    let (_, bits) = allocation(&stored(&store, "ranges/servicenodeports").await);
    assert_eq!(bits, [9, 77]);
    world.stop().await;
}

/// Range and numbers of a RangeAllocation, by Kubernetes' rules: JSON or protobuf, the bitmap a big-endian number.
fn allocation(value: &[u8]) -> (String, Vec<usize>) {
    let object = read_by_kubernetes_rules(value);
    assert_eq!((object.api_version.as_str(), object.kind.as_str()), ("v1", "RangeAllocation"));
    let (range, bytes) = match object.content {
        Content::Json(v) => {
            use base64::Engine;
            let data = base64::engine::general_purpose::STANDARD.decode(v["data"].as_str().unwrap()).unwrap();
            (v["range"].as_str().unwrap().to_string(), data)
        }
        Content::Protobuf(raw) => {
            let f = fields(&raw);
            (String::from_utf8(f[&2][0].clone()).unwrap(), f[&3][0].clone())
        }
    };
    let bits = (0..bytes.len() * 8).filter(|n| bytes[bytes.len() - 1 - n / 8] >> (n % 8) & 1 == 1).collect();
    (range, bits)
}

enum Content {
    Json(Value),
    Protobuf(Vec<u8>),
}

struct Stored {
    api_version: String,
    kind: String,
    content: Content,
}

/// As the recognizing decoder of Kubernetes' storage does it: the prefix `k8s\0` means protobuf, a brace JSON; either
/// names its version and kind, and no object carries a resource version.
fn read_by_kubernetes_rules(value: &[u8]) -> Stored {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    if let Some(message) = value.strip_prefix(b"k8s\0") {
        let unknown = fields(message);
        let meta = fields(&unknown[&1][0]);
        assert_eq!((unknown[&3][0].len(), unknown[&4][0].len()), (0, 0), "encoding and type are protobuf's");
        let raw = unknown[&2][0].clone();
        if let Some(metadata) = fields(&raw).get(&1) {
            assert!(fields(&metadata[0]).get(&6).is_none_or(|rv| rv[0].is_empty()), "a resource version");
        }
        return Stored {
            api_version: text(&meta[&1][0]),
            kind: text(&meta[&2][0]),
            content: Content::Protobuf(raw),
        };
    }
    assert_eq!(value.first(), Some(&b'{'), "neither JSON nor protobuf");
    let object: Value = serde_json::from_slice(value).unwrap();
    assert!(
        object["metadata"].get("resourceVersion").is_none() && object["metadata"].get("selfLink").is_none()
    );
    Stored {
        api_version: object["apiVersion"].as_str().unwrap().to_string(),
        kind: object["kind"].as_str().unwrap().to_string(),
        content: Content::Json(object),
    }
}

/// Path of the collection, object, key, and `apiVersion` in the store, as v1.20 has them.
fn written() -> Vec<(&'static str, Value, &'static str, &'static str)> {
    let template = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    let selector = json!({"matchLabels": {"app": "x"}});
    let mut job = template["spec"].clone();
    job["restartPolicy"] = json!("Never");
    vec![
        ("/api/v1/namespaces", json!({"kind": "Namespace"}), "namespaces/x", "v1"),
        (
            "/api/v1/namespaces/default/pods",
            json!({"kind": "Pod", "spec": template["spec"]}),
            "pods/default/x",
            "v1",
        ),
        (
            "/api/v1/namespaces/default/services",
            json!({"kind": "Service", "spec": {"ports": [{"port": 80}]}}),
            "services/specs/default/x",
            "v1",
        ),
        (
            "/api/v1/namespaces/default/endpoints",
            json!({"kind": "Endpoints"}),
            "services/endpoints/default/x",
            "v1",
        ),
        ("/api/v1/nodes", json!({"kind": "Node"}), "minions/x", "v1"),
        (
            "/api/v1/namespaces/default/secrets",
            json!({"kind": "Secret", "data": {"k": "/wAB"}}),
            "secrets/default/x",
            "v1",
        ),
        (
            "/api/v1/namespaces/default/replicationcontrollers",
            json!({"kind": "ReplicationController", "spec": {"selector": {"app": "x"}, "template": template}}),
            "controllers/default/x",
            "v1",
        ),
        (
            "/apis/apps/v1/namespaces/default/deployments",
            json!({"kind": "Deployment", "apiVersion": "apps/v1", "spec": {"selector": selector, "template": template}}),
            "deployments/default/x",
            "apps/v1",
        ),
        (
            "/apis/apps/v1/namespaces/default/daemonsets",
            json!({"kind": "DaemonSet", "apiVersion": "apps/v1", "spec": {"selector": selector, "template": template}}),
            "daemonsets/default/x",
            "apps/v1",
        ),
        (
            "/apis/batch/v1/namespaces/default/jobs",
            json!({"kind": "Job", "apiVersion": "batch/v1", "spec": {"template": {"spec": job}}}),
            "jobs/default/x",
            "batch/v1",
        ),
        (
            "/apis/batch/v1beta1/namespaces/default/cronjobs",
            json!({"kind": "CronJob", "apiVersion": "batch/v1beta1", "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": {"spec": job}}}}}),
            "cronjobs/default/x",
            "batch/v1beta1",
        ),
        (
            "/apis/policy/v1beta1/namespaces/default/poddisruptionbudgets",
            json!({"kind": "PodDisruptionBudget", "apiVersion": "policy/v1beta1", "spec": {"minAvailable": 1, "selector": selector}}),
            "poddisruptionbudgets/default/x",
            "policy/v1beta1",
        ),
        (
            "/apis/autoscaling/v2beta2/namespaces/default/horizontalpodautoscalers",
            json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2beta2", "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "x"}}}),
            "horizontalpodautoscalers/default/x",
            "autoscaling/v1",
        ),
        (
            "/apis/coordination.k8s.io/v1/namespaces/default/leases",
            json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "spec": {}}),
            "leases/default/x",
            "coordination.k8s.io/v1",
        ),
        (
            "/apis/events.k8s.io/v1/namespaces/default/events",
            json!({"kind": "Event", "apiVersion": "events.k8s.io/v1", "eventTime": "2021-01-01T00:00:00.000000Z", "type": "Normal", "reason": "R", "action": "A", "note": "n", "reportingController": "e.com/c", "reportingInstance": "i", "regarding": {"kind": "Pod", "namespace": "default", "name": "x"}}),
            "events/default/x",
            "v1",
        ),
        (
            "/apis/storage.k8s.io/v1/storageclasses",
            json!({"kind": "StorageClass", "apiVersion": "storage.k8s.io/v1", "provisioner": "e.com/p"}),
            "storageclasses/x",
            "storage.k8s.io/v1",
        ),
        (
            "/apis/scheduling.k8s.io/v1/priorityclasses",
            json!({"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "value": 7}),
            "priorityclasses/x",
            "scheduling.k8s.io/v1",
        ),
        (
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
            json!({"kind": "Role", "apiVersion": "rbac.authorization.k8s.io/v1"}),
            "roles/default/x",
            "rbac.authorization.k8s.io/v1",
        ),
        (
            "/apis/node.k8s.io/v1/runtimeclasses",
            json!({"kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1", "handler": "h"}),
            "runtimeclasses/x",
            "node.k8s.io/v1",
        ),
        (
            "/apis/flowcontrol.apiserver.k8s.io/v1beta1/flowschemas",
            json!({"kind": "FlowSchema", "apiVersion": "flowcontrol.apiserver.k8s.io/v1beta1", "spec": {"priorityLevelConfiguration": {"name": "exempt"}}}),
            "flowschemas/x",
            "flowcontrol.apiserver.k8s.io/v1beta1",
        ),
    ]
}

async fn write_all(api: &Api) {
    for (path, mut object, ..) in written() {
        object["metadata"]["name"] = json!("x");
        if object.get("apiVersion").is_none() {
            object["apiVersion"] = json!("v1");
        }
        let (code, made) = api.post(path, object).await;
        assert_eq!(code, StatusCode::CREATED, "{path}: {made}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_here_is_readable_by_kubernetes_rules() {
    let etcd = Etcd::start(&[]);
    let world = take_over(&etcd, &[]).await;
    let api = world.api();
    write_all(&api).await;
    for (path, object, key, version) in written() {
        let found = read_by_kubernetes_rules(&stored(&world.store, key).await);
        assert_eq!(
            (found.api_version.as_str(), json!(found.kind)),
            (version, object["kind"].clone()),
            "{path}"
        );
        let Content::Json(content) = found.content else { panic!("{path} is not stored as JSON") };
        assert_eq!(content["metadata"]["name"], "x");
    }
    // Everything else that a server leaves behind by itself.
    let start = Bytes::from("/registry/");
    let all = store_all(&world.store, start).await;
    assert!(all.len() > 100);
    for kv in &all {
        read_by_kubernetes_rules(&kv.value);
    }
    let (range, bits) = allocation(&stored(&world.store, "ranges/serviceips").await);
    assert_eq!((range.as_str(), bits.first(), bits.len()), ("10.0.0.0/24", Some(&0), 2));
    let prefix = Bytes::from("/registry/masterleases/");
    until(async || !store_all(&world.store, prefix.clone()).await.is_empty()).await;
    let masters = store_all(&world.store, prefix.clone()).await;
    let master = read_by_kubernetes_rules(&masters[0].value);
    let Content::Json(master_object) = master.content else { panic!("a master's lease is not JSON") };
    let ip = std::str::from_utf8(&masters[0].key).unwrap().rsplit('/').next().unwrap().to_string();
    assert_eq!(
        (master.kind.as_str(), &master_object["subsets"][0]["addresses"][0]["ip"]),
        ("Endpoints", &json!(ip))
    );
    world.stop().await;
}

async fn store_all(store: &Arc<dyn Store>, start: Bytes) -> Vec<pilothouse_store::KeyValue> {
    store.range(Range { end: prefix_end(&start), start, ..Range::default() }).await.unwrap().kvs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_stored_as_protobuf_on_request() {
    let etcd = Etcd::start(&[]);
    let world = take_over(&etcd, &["--storage-media-type=application/vnd.kubernetes.protobuf"]).await;
    let api = world.api();
    write_all(&api).await;
    for (path, object, key, version) in written() {
        let found = read_by_kubernetes_rules(&stored(&world.store, key).await);
        assert_eq!(
            (found.api_version.as_str(), json!(found.kind)),
            (version, object["kind"].clone()),
            "{path}"
        );
        let Content::Protobuf(raw) = found.content else { panic!("{path} is not stored as protobuf") };
        assert_eq!(fields(&fields(&raw)[&1][0])[&1][0], b"x");
    }
    let secret = read_by_kubernetes_rules(&stored(&world.store, "secrets/default/x").await);
    let Content::Protobuf(raw) = secret.content else { panic!() };
    assert_eq!(fields(&fields(&raw)[&2][0])[&2][0], [0xff, 0, 1]);
    // Their owners store definitions, custom resources and APIServices as JSON in any case.
    // A definition of that version has no defaults when it comes from a client.
    let mut definition = definition();
    definition["spec"]["validation"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["color"] =
        json!({"type": "string"});
    let (code, made) =
        api.post("/apis/apiextensions.k8s.io/v1beta1/customresourcedefinitions", definition).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    for key in [
        "apiextensions.k8s.io/customresourcedefinitions/widgets.e.com",
        "apiregistration.k8s.io/apiservices/v1.apps",
    ] {
        assert!(
            matches!(read_by_kubernetes_rules(&stored(&world.store, key).await).content, Content::Json(_)),
            "{key}"
        );
    }
    // What was stored so is read, changed and watched as any other.
    let path = "/api/v1/namespaces/default/pods";
    let mut watch = api.watch(&format!("{path}?watch=true")).await;
    watch.expect("ADDED", "x").await;
    let (code, changed) = api.patch(&format!("{path}/x"), json!({"metadata": {"labels": {"a": "b"}}})).await;
    assert_eq!((code, &changed["metadata"]["labels"]["a"]), (StatusCode::OK, &json!("b")));
    assert_eq!(watch.expect("MODIFIED", "x").await, changed);
    assert_eq!(api.get(&format!("{path}/x")).await.1, changed);
    world.stop().await;
}
