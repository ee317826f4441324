//! A pod's way through its strategy.

use pilothouse_apimachinery::version::NEWEST;

use super::*;

fn context(release: Release) -> Context {
    Context { release, subresource: "", api_version: "v1", allow_privileged: true, gates: &[] }
}

fn created(mut pod: Value, release: Release) -> (Value, Vec<String>) {
    let context = context(release);
    (POD.default)(&mut pod, &context);
    (POD.prepare_create)(&mut pod, &context);
    let errs = (POD.validate)(&pod, &context).iter().map(ToString::to_string).collect();
    (pod, errs)
}

fn simple(containers: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": containers}, "status": {"phase": "Running"}})
}

#[test]
fn a_new_pod_is_pending() {
    let (pod, errs) = created(simple(json!([{"name": "c", "image": "busybox"}])), Release::V1_20);
    assert_eq!(errs, Vec::<String>::new());
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
}

#[test]
fn faults_of_containers() {
    let faults = |containers: Value| created(simple(containers), Release::V1_20).1;
    assert_eq!(faults(Value::Null), ["spec.containers: Required value"]);
    assert_eq!(faults(json!([{"image": "a"}])), ["spec.containers[0].name: Required value"]);
    assert_eq!(
        faults(json!([{"name": "c", "image": "a"}, {"name": "c", "image": "a"}])),
        ["spec.containers[1].name: Duplicate value: \"c\""]
    );
    assert_eq!(
        faults(json!([{"name": "c", "image": "a", "volumeMounts": [{"name": "v", "mountPath": "/m"}]}])),
        ["spec.containers[0].volumeMounts[0].name: Not found: \"v\""]
    );
    assert_eq!(
        faults(json!([{"name": "c", "image": "a", "env": [
            {"name": "A", "valueFrom": {}},
            {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "Foo"}}},
            {"value": "x"},
        ]}])),
        [
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            "spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Invalid value: \"Foo\": error converting fieldPath: field label not supported: Foo",
            "spec.containers[0].env[2].name: Required value",
        ]
    );
    assert_eq!(
        faults(json!([
            {"name": "c", "image": "a", "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}, {"protocol": "TCP"}]},
            {"name": "d", "image": "a", "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]},
        ])),
        [
            "spec.containers[0].ports[1].containerPort: Required value",
            "spec.containers[1].ports[0].hostPort: Duplicate value: \"TCP//80\"",
        ]
    );
}

#[test]
fn faults_of_init_containers() {
    let mut pod = simple(json!([{"name": "c", "image": "a"}]));
    pod["spec"]["initContainers"] = json!([
        {"name": "c", "image": "a"},
        {"name": "i", "image": "a", "restartPolicy": "Always", "readinessProbe": {"exec": {"command": ["x"]}}},
    ]);
    let (_, errs) = created(pod.clone(), Release::V1_20);
    assert_eq!(errs[0], "spec.initContainers[0].name: Duplicate value: \"c\"");
    assert!(errs[1].ends_with("must not be set for init containers"));
    // Today a restartable init container may have probes.
    assert_eq!(created(pod, NEWEST).1.len(), 1);
}

#[test]
fn tokens_need_an_account() {
    let mut pod = simple(json!([{"name": "c", "image": "a"}]));
    pod["spec"]["volumes"] =
        json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]);
    assert_eq!(
        created(pod, Release::V1_20).1,
        [
            "spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set"
        ]
    );
}

#[test]
fn dns_and_aliases() {
    let mut pod = simple(json!([{"name": "c", "image": "a"}]));
    pod["spec"]["dnsPolicy"] = json!("None");
    pod["spec"]["hostAliases"] = json!([{"ip": "x", "hostnames": ["a", "B"]}]);
    let errs = created(pod, Release::V1_20).1;
    assert_eq!(errs[0], "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None");
    assert_eq!(errs[1], "spec.hostAliases.ip: Invalid value: \"x\": must be valid IP address");
    assert!(
        errs[2]
            .starts_with("spec.hostAliases.hostnames: Invalid value: \"B\": a lowercase RFC 1123 subdomain")
    );
}

#[test]
fn seccomp_annotation_and_field_agree_in_1_20() {
    let mut pod = simple(
        json!([{"name": "c", "image": "a", "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}]),
    );
    pod["metadata"]["annotations"] = json!({SECCOMP_POD: "localhost/p.json"});
    let (old, _) = created(pod.clone(), Release::V1_20);
    assert_eq!(old["spec"]["securityContext"]["seccompProfile"]["localhostProfile"], "p.json");
    assert_eq!(old["metadata"]["annotations"][format!("{SECCOMP_CONTAINER}c")], "runtime/default");
    let (new, _) = created(pod, NEWEST);
    assert_eq!(new["spec"]["securityContext"], json!({}));
}

#[test]
fn status_updates_touch_nothing_else() {
    let (old, _) = created(simple(json!([{"name": "c", "image": "a"}])), Release::V1_20);
    let mut new = old.clone();
    new["spec"]["hostname"] = json!("x");
    new["status"]["phase"] = json!("Running");
    let status = Context { subresource: "status", ..context(Release::V1_20) };
    (POD.prepare_update)(&mut new, &old, &status);
    assert_eq!(new["spec"], old["spec"]);
    assert_eq!(new["status"]["phase"], "Running");
    (POD.prepare_update)(&mut new, &old, &context(Release::V1_20));
    assert_eq!(new["status"]["phase"], "Pending");
}

#[test]
fn grace_periods() {
    let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}});
    assert_eq!(grace_period(&pod("n", "Running")), 30);
    assert_eq!(grace_period(&pod("", "Pending")), 0);
    assert_eq!(grace_period(&pod("n", "Failed")), 0);
}
