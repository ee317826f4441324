//! What flags switch on and off, on a running server.

use crate::common::{Api, start};
use http::{Method, StatusCode};
use pilothouse_apimachinery::json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn pod(name: &str, context: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i", "securityContext": context}]}})
}

async fn as_jane(api: &Api, body: &Value) -> (StatusCode, Value) {
    let headers = [("authorization", "Bearer J"), ("content-type", "application/json")];
    api.json(Method::POST, PODS, &headers, body).await
}

async fn role(api: &Api, name: &str, rule: Value) {
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": [rule]});
    assert_eq!(api.post(&format!("{RBAC}/clusterroles"), role).await.0, StatusCode::CREATED);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}]});
    assert_eq!(
        api.post(&format!("{RBAC}/namespaces/default/rolebindings"), binding).await.0,
        StatusCode::CREATED
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_need_a_policy_that_their_user_may_use() {
    let world = start(&["--enable-admission-plugins=PodSecurityPolicy"]).await;
    let api = world.api();
    role(&api, "pods", json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]})).await;
    let plain = pod("a", json!({}));
    let (code, status) = as_jane(&api, &plain).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert_eq!(
        status["message"],
        "pods \"a\" is forbidden: PodSecurityPolicy: no providers available to validate pod request"
    );
    let any = json!({"rule": "RunAsAny"});
    let policy = json!({"apiVersion": "policy/v1beta1", "kind": "PodSecurityPolicy", "metadata": {"name": "careful"},
        "spec": {"readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false, "volumes": ["*"], "requiredDropCapabilities": ["NET_RAW"],
            "runAsUser": {"rule": "MustRunAsNonRoot"}, "seLinux": any, "supplementalGroups": any, "fsGroup": any}});
    assert_eq!(api.post("/apis/policy/v1beta1/podsecuritypolicies", policy).await.0, StatusCode::CREATED);
    let (_, status) = as_jane(&api, &plain).await;
    assert_eq!(status["message"], "pods \"a\" is forbidden: PodSecurityPolicy: unable to admit pod: []");
    role(&api, "careful", json!({"apiGroups": ["policy"], "resources": ["podsecuritypolicies"], "resourceNames": ["careful"], "verbs": ["use"]})).await;
    let (code, made) = as_jane(&api, &plain).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    assert_eq!(made["metadata"]["annotations"]["kubernetes.io/psp"], "careful");
    assert_eq!(
        made["spec"]["containers"][0]["securityContext"],
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["NET_RAW"]}, "readOnlyRootFilesystem": true, "runAsNonRoot": true})
    );
    let (code, status) = as_jane(&api, &pod("b", json!({"privileged": true}))).await;
    assert_eq!(code, StatusCode::FORBIDDEN);
    assert!(
        status["message"].as_str().unwrap().contains("spec.containers[0].securityContext.privileged: Invalid value: true: Privileged containers are not allowed"),
        "{status}"
    );
    // What has been admitted may be labelled.
    let (code, _) = api.patch(&format!("{PODS}/a"), json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(code, StatusCode::OK);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_switched_off_is_not_there() {
    let world = start(&["--runtime-config=api/beta=false,policy/v1beta1=true,node.k8s.io/v1alpha1,networking.k8s.io/v1/ingresses=false"]).await;
    let api = world.api();
    for (path, there) in [
        ("/apis/batch/v1beta1", false),
        ("/apis/policy/v1beta1", true),
        ("/apis/node.k8s.io/v1alpha1", true),
        ("/apis/apps/v1", true),
        ("/apis/flowcontrol.apiserver.k8s.io/v1beta1/flowschemas", false),
        ("/apis/networking.k8s.io/v1/ingresses", false),
        ("/apis/networking.k8s.io/v1/networkpolicies", true),
        ("/apis/batch/v1beta1/cronjobs", false),
    ] {
        let wanted = if there { StatusCode::OK } else { StatusCode::NOT_FOUND };
        assert_eq!(api.get(path).await.0, wanted, "{path}");
    }
    let (_, groups) = api.get("/apis").await;
    let versions: Vec<&str> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|g| g["versions"].as_array().unwrap())
        .map(|v| v["groupVersion"].as_str().unwrap())
        .collect();
    assert!(
        versions.contains(&"node.k8s.io/v1alpha1") && !versions.contains(&"batch/v1beta1"),
        "{versions:?}"
    );
    let class = json!({"apiVersion": "node.k8s.io/v1alpha1", "kind": "RuntimeClass", "metadata": {"name": "r"}, "spec": {"runtimeHandler": "h"}});
    let (code, made) = api.post("/apis/node.k8s.io/v1alpha1/runtimeclasses", class).await;
    assert_eq!((code, &made["spec"]["runtimeHandler"]), (StatusCode::CREATED, &json!("h")), "{made}");
    assert_eq!(api.get("/apis/node.k8s.io/v1/runtimeclasses/r").await.1["handler"], "h");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_plugin_of_v1_20_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(
        path("kubeconfig"),
        "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1/review', insecure-skip-tls-verify: true}}]\nusers: [{name: u, user: {token: x}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n",
    )
    .unwrap();
    let configuration = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n- name: EventRateLimit\n  configuration: {{limits: [{{type: User, qps: 1, burst: 1}}]}}\n- name: ImagePolicyWebhook\n  configuration: {{imagePolicy: {{kubeConfigFile: {}, defaultAllow: true}}}}\n",
        path("kubeconfig")
    );
    std::fs::write(path("admission.yaml"), configuration).unwrap();
    let names = "AlwaysAdmit,AlwaysPullImages,CertificateApproval,CertificateSigning,CertificateSubjectRestriction,DefaultIngressClass,DefaultStorageClass,DefaultTolerationSeconds,DenyEscalatingExec,DenyExecOnPrivileged,EventRateLimit,ExtendedResourceToleration,ImagePolicyWebhook,LimitPodHardAntiAffinityTopology,LimitRanger,MutatingAdmissionWebhook,NamespaceAutoProvision,NamespaceExists,NamespaceLifecycle,NodeRestriction,OwnerReferencesPermissionEnforcement,PersistentVolumeClaimResize,PersistentVolumeLabel,PodNodeSelector,PodTolerationRestriction,Priority,ResourceQuota,RuntimeClass,SecurityContextDeny,StorageObjectInUseProtection,TaintNodesByCondition,ValidatingAdmissionWebhook";
    let enable = format!("--enable-admission-plugins={names}");
    let file = format!("--admission-control-config-file={}", path("admission.yaml"));
    let world = start(&[&enable, &file]).await;
    let api = world.api();
    // Some of them at work: pulled always, and not as somebody; a namespace comes with its first object.
    let (code, made) = api.post(PODS, pod("a", json!({}))).await;
    assert_eq!(
        (code, &made["spec"]["containers"][0]["imagePullPolicy"]),
        (StatusCode::CREATED, &json!("Always")),
        "{made}"
    );
    assert_eq!(api.post(PODS, pod("b", json!({"runAsUser": 0}))).await.0, StatusCode::FORBIDDEN);
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    assert_eq!(api.post("/api/v1/namespaces/fresh/configmaps", map).await.0, StatusCode::CREATED);
    assert_eq!(api.get("/api/v1/namespaces/fresh").await.0, StatusCode::OK);
    let event = |name: &str| json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "a"}});
    let events = "/api/v1/namespaces/default/events";
    assert_eq!(api.post(events, event("one")).await.0, StatusCode::CREATED);
    let (code, status) = api.post(events, event("two")).await;
    assert_eq!((code, &status["reason"]), (StatusCode::TOO_MANY_REQUESTS, &json!("TooManyRequests")));
    assert!(
        status["message"].as_str().unwrap().contains("limit reached on type User for key admin"),
        "{status}"
    );
    world.stop().await;
}
