//! Admission webhooks: who is asked, how often, and what becomes of answers that do not come. Over real sockets.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use pilothouse_apimachinery::json::{Value, json};

use crate::common::webhook::webhook;
use crate::common::{Api, start, start_newest};

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn allow(review: &Value, patch: Option<Value>) -> Value {
    let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
    if let Some(patch) = patch {
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(patch.to_string()));
    }
    json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

/// A webhook's configuration: about creates of pods, unless `with` says otherwise.
fn hook(name: &str, (url, bundle): &(String, String), with: Value) -> Value {
    let mut hook = json!({
        "name": format!("{name}.e.com"), "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": url, "caBundle": bundle},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
    for (key, value) in with.as_object().unwrap() {
        hook[key] = value.clone();
    }
    hook
}

async fn configure(api: &Api, mutating: bool, hooks: &[Value]) {
    let (kind, plural) = match mutating {
        true => ("MutatingWebhookConfiguration", "mutatingwebhookconfigurations"),
        false => ("ValidatingWebhookConfiguration", "validatingwebhookconfigurations"),
    };
    api.create(
        &format!("{CONFIGURATIONS}{plural}"),
        json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "h"}, "webhooks": hooks}),
    )
    .await;
}

/// The containers that a webhook saw, call by call.
type Seen = Arc<Mutex<Vec<String>>>;

fn containers(review: &Value) -> String {
    let all = review["request"]["object"]["spec"]["containers"].as_array();
    all.map(|l| l.iter().filter_map(|c| c["name"].as_str()).collect::<Vec<_>>().join(" ")).unwrap_or_default()
}

/// A webhook that changes nothing and notes the containers that it sees.
async fn looks(seen: &Seen) -> (String, String) {
    let seen = seen.clone();
    webhook(Arc::new(move |review: Value| {
        seen.lock().push(containers(&review));
        allow(&review, None)
    }))
    .await
}

/// A webhook that adds a container once.
async fn injects() -> (String, String) {
    webhook(Arc::new(|review: Value| {
        let there = containers(&review).contains("side");
        let add =
            json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": "side", "image": "s"}}]);
        allow(&review, (!there).then_some(add))
    }))
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_and_webhooks_see_what_later_webhooks_change() {
    let world = start(&[]).await;
    let api = world.api();
    api.create(
        "/api/v1/namespaces/default/limitranges",
        json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "default": {"cpu": "100m"}, "defaultRequest": {"cpu": "50m"}}]}}),
    )
    .await;
    let (again, never, after) = (Seen::default(), Seen::default(), Seen::default());
    let if_needed = json!({"reinvocationPolicy": "IfNeeded"});
    configure(
        &api,
        true,
        &[
            hook("again", &looks(&again).await, if_needed.clone()),
            hook("never", &looks(&never).await, json!({})),
            hook("inject", &injects().await, json!({})),
            hook("after", &looks(&after).await, if_needed),
        ],
    )
    .await;
    let made = api.create(PODS, pod("p")).await;
    // LimitRanger had its say on the container that came later, too.
    for container in made["spec"]["containers"].as_array().unwrap() {
        assert_eq!(container["resources"]["requests"]["cpu"], "50m", "{made}");
    }
    assert_eq!(*again.lock(), ["c", "c side"]);
    assert_eq!(*never.lock(), ["c"]);
    // It had seen the container, but not what LimitRanger made of it.
    assert_eq!(*after.lock(), ["c side", "c side"]);

    let text = api.send(Method::GET, "/metrics", &[], Default::default()).await;
    let text = String::from_utf8(text.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    for line in [
        "apiserver_admission_webhook_admission_duration_seconds_count{name=\"again.e.com\",type=\"admit\",operation=\"CREATE\",rejected=\"false\"} 2",
        "apiserver_admission_webhook_admission_duration_seconds_count{name=\"inject.e.com\",type=\"admit\",operation=\"CREATE\",rejected=\"false\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let plugin = "apiserver_admission_controller_admission_duration_seconds_count{name=\"LimitRanger\",type=\"admit\",operation=\"CREATE\",rejected=\"false\"}";
    assert!(text.lines().any(|l| l.starts_with(plugin)), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_asked_again_after_a_webhook() {
    let world = start_newest(&[]).await;
    let api = world.api();
    let group = "/apis/admissionregistration.k8s.io/v1";
    let rules =
        json!([{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
    api.create(
        &format!("{group}/mutatingadmissionpolicies"),
        json!({"metadata": {"name": "count"}, "spec": {"reinvocationPolicy": "IfNeeded", "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": rules},
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
                "Object{metadata: Object.metadata{labels: {'containers': string(size(object.spec.containers))}}}"}}]}}),
    )
    .await;
    api.create(
        &format!("{group}/mutatingadmissionpolicybindings"),
        json!({"metadata": {"name": "count"}, "spec": {"policyName": "count"}}),
    )
    .await;
    configure(&api, true, &[hook("inject", &injects().await, json!({}))]).await;
    let made = api.create(PODS, pod("p")).await;
    assert_eq!(made["metadata"]["labels"]["containers"], "2", "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_runs_have_no_side_effects() {
    let world = start(&[]).await;
    let api = world.api();
    let seen = Seen::default();
    let note = seen.clone();
    let hook_of = webhook(Arc::new(move |review: Value| {
        note.lock().push(review["request"]["dryRun"].to_string());
        allow(&review, None)
    }))
    .await;
    configure(&api, false, &[hook("looks", &hook_of, json!({"sideEffects": "NoneOnDryRun"}))]).await;
    let dry = format!("{PODS}?dryRun=All");
    api.create(&dry, pod("p")).await;
    api.create(PODS, pod("p")).await;
    assert_eq!(*seen.lock(), ["true", "false"]);
    // One that may have side effects, which only the older version of configurations can still say.
    let (code, made) = api
        .post(
            "/apis/admissionregistration.k8s.io/v1beta1/validatingwebhookconfigurations",
            json!({"metadata": {"name": "some"}, "webhooks": [hook("some", &hook_of, json!({"sideEffects": "Some"}))]}),
        )
        .await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    let (code, status) = api.post(&dry, pod("q")).await;
    assert_eq!(code, StatusCode::BAD_REQUEST, "{status}");
    assert_eq!(status["message"], "admission webhook \"some.e.com\" does not support dry run");
    assert_eq!(api.get(&format!("{PODS}/q")).await.0, StatusCode::NOT_FOUND);
    api.create(PODS, pod("q")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_does_not_come_is_as_the_failure_policy_says() {
    let world = start(&[]).await;
    let api = world.api();
    // Connections are made, and nobody speaks.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_, bundle) = webhook(Arc::new(|review: Value| allow(&review, None))).await;
    let of = (format!("https://localhost:{}/x", silent.local_addr().unwrap().port()), bundle);
    let named = |label: &str, policy: &str| json!({"failurePolicy": policy, "timeoutSeconds": 1, "objectSelector": {"matchLabels": {"for": label}}});
    configure(
        &api,
        false,
        &[hook("fail", &of, named("fail", "Fail")), hook("ignore", &of, named("ignore", "Ignore"))],
    )
    .await;
    let labelled = |name: &str| {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!({"for": name});
        pod
    };
    let (code, status) = api.post(PODS, labelled("fail")).await;
    assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR, "{status}");
    let message = status["message"].as_str().unwrap();
    let begin = "Internal error occurred: failed calling webhook \"fail.e.com\": Post \"https://localhost:";
    assert!(
        message.starts_with(begin) && message.ends_with("/x?timeout=1s\": context deadline exceeded"),
        "{message}"
    );
    api.create(PODS, labelled("ignore")).await;
    api.create(PODS, pod("neither")).await;
    let text = api.send(Method::GET, "/metrics", &[], Default::default()).await;
    let text = String::from_utf8(text.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let line = "apiserver_admission_webhook_rejection_count{name=\"fail.e.com\",type=\"validating\",operation=\"CREATE\",error_type=\"calling_webhook_error\",rejection_code=\"0\"} 1";
    assert!(text.lines().any(|l| l == line), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_have_a_scope_and_selectors() {
    let world = start(&[]).await;
    let api = world.api();
    let seen = Seen::default();
    let note = seen.clone();
    let refuses = webhook(Arc::new(move |review: Value| {
        let request = &review["request"];
        note.lock().push(format!("{} {}", request["resource"]["resource"].as_str().unwrap(), request["name"].as_str().unwrap()));
        json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": {"uid": request["uid"], "allowed": false,
            "status": {"message": "no", "code": 409, "reason": "Conflict"}}})
    }))
    .await;
    let rules = |scope: &str| json!([{"operations": ["*"], "apiGroups": [""], "apiVersions": ["*"], "resources": ["*"], "scope": scope}]);
    // A configuration decides on everything but on itself, so it can be taken away again.
    configure(
        &api,
        false,
        &[
            hook(
                "cluster",
                &refuses,
                json!({"rules": rules("Cluster"), "objectSelector": {"matchLabels": {"x": "y"}}}),
            ),
            hook(
                "namespaced",
                &refuses,
                json!({"rules": rules("Namespaced"), "namespaceSelector": {"matchLabels": {"x": "y"}}}),
            ),
        ],
    )
    .await;
    let config_map = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
    // Of the namespace default nobody asks, nor of what is not labelled.
    api.create("/api/v1/namespaces/default/configmaps", config_map("a", json!({"x": "y"}))).await;
    api.create("/api/v1/namespaces", config_map("free", json!({"x": "z"}))).await;
    let (code, status) = api.post("/api/v1/namespaces", config_map("b", json!({"x": "y"}))).await;
    assert_eq!(
        (code, &status["message"], &status["reason"]),
        (
            StatusCode::CONFLICT,
            &json!("admission webhook \"cluster.e.com\" denied the request: no"),
            &json!("Conflict")
        )
    );
    assert_eq!(*seen.lock(), ["namespaces b"]);
    // A namespace is selected by its own labels; what is in it by those.
    let (code, _) = api.patch("/api/v1/namespaces/free", json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(code, StatusCode::CONFLICT);
    let gone = api.delete(&format!("{CONFIGURATIONS}validatingwebhookconfigurations/h")).await;
    assert_eq!(gone.0, StatusCode::OK);
    let (code, _) = api.patch("/api/v1/namespaces/free", json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(code, StatusCode::OK);
    configure(
        &api,
        false,
        &[hook(
            "namespaced",
            &refuses,
            json!({"rules": rules("Namespaced"), "namespaceSelector": {"matchLabels": {"x": "y"}}}),
        )],
    )
    .await;
    let (code, _) = api.post("/api/v1/namespaces/free/configmaps", config_map("c", json!({}))).await;
    assert_eq!(code, StatusCode::CONFLICT);
    // Nodes are of the cluster.
    api.create("/api/v1/nodes", config_map("n", json!({"x": "y"}))).await;
}
