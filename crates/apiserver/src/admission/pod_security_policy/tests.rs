//! Policies and pods as data.

use pilothouse_apimachinery::json::json;

use super::*;
use crate::admission::test_create;
use crate::testing::FakeObjects;

/// Lets users use the policies whose names begin with their own.
struct ByName;

#[async_trait]
impl Authorizer for ByName {
    async fn authorize(&self, a: Attributes<'_>) -> Decision {
        assert_eq!((a.request.verb.as_str(), a.request.resource.as_str()), ("use", "podsecuritypolicies"));
        let user = a.user.name.rsplit(':').next().unwrap();
        if a.request.name.starts_with(user) && a.request.group == "policy" {
            Decision::Allow
        } else {
            Decision::NoOpinion(String::new())
        }
    }

    async fn rules_for(&self, _: &UserInfo, _: &str) -> (Vec<Value>, Vec<Value>, bool) {
        (Vec::new(), Vec::new(), true)
    }
}

/// A policy that allows much, changed by `more`.
fn policy(name: &str, more: Value) -> Value {
    let any = json!({"rule": "RunAsAny"});
    let mut policy = json!({"metadata": {"name": name}, "spec": {"privileged": true, "allowPrivilegeEscalation": true,
        "volumes": ["*"], "hostNetwork": true, "hostPorts": [{"min": 0, "max": 65535}],
        "allowedCapabilities": ["*"],
        "runAsUser": any, "seLinux": any, "supplementalGroups": any, "fsGroup": any}});
    for (k, v) in more.as_object().into_iter().flatten() {
        match k.as_str() {
            "annotations" => policy["metadata"]["annotations"] = v.clone(),
            _ => policy["spec"][k] = v.clone(),
        }
    }
    policy
}

fn pod(more: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p", "namespace": "n"},
        "spec": {"securityContext": {}, "containers": [{"name": "c", "image": "i"}]}});
    for (k, v) in more.as_object().into_iter().flatten() {
        pod["spec"][k] = v.clone();
    }
    pod
}

async fn admit(policies: &[Value], pod: Value, user: &str) -> Result<Value, String> {
    let objects = FakeObjects::default();
    for p in policies {
        objects.put("policy", "podsecuritypolicies", p.clone());
    }
    let plugin = PodSecurityPolicy(Arc::new(ByName));
    let mut request = test_create("", "pods", "Pod", pod);
    request.namespace = "n".into();
    request.user.name = user.into();
    plugin.admit(&mut request, &objects).await.map_err(|e| e.message)?;
    plugin.validate(&request, &objects).await.map_err(|e| e.message)?;
    Ok(request.object)
}

async fn faults(more: Value, pod: Value) -> String {
    let e = admit(&[policy("u", more)], pod, "u").await.unwrap_err();
    let text = e.strip_prefix("pods \"p\" is forbidden: PodSecurityPolicy: unable to admit pod: [").unwrap();
    text.strip_suffix(']').unwrap().to_string()
}

#[tokio::test]
async fn policies_are_chosen_by_name_right_and_least_change() {
    let read_only = json!({"readOnlyRootFilesystem": true});
    // The first by name that changes nothing wins over one that does.
    let all = [policy("u-a", read_only.clone()), policy("u-b", json!({})), policy("u-c", json!({}))];
    let done = admit(&all, pod(json!({})), "u").await.unwrap();
    assert_eq!(done["metadata"]["annotations"][ANNOTATION], "u-b");
    assert!(done["spec"]["containers"][0].get("securityContext").is_none());
    // Of those that do, the first by name.
    let all = [policy("u-b", read_only.clone()), policy("u-a", read_only.clone())];
    let done = admit(&all, pod(json!({})), "u").await.unwrap();
    assert_eq!(done["metadata"]["annotations"][ANNOTATION], "u-a");
    assert_eq!(done["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
    // Others' policies count for nothing, and their faults are not told.
    let all = [policy("other", json!({})), policy("other-b", json!({"volumes": []}))];
    let refused =
        admit(&all, pod(json!({"volumes": [{"name": "v", "emptyDir": {}}]})), "u").await.unwrap_err();
    assert_eq!(refused, "pods \"p\" is forbidden: PodSecurityPolicy: unable to admit pod: []");
    // The pod's account may do for its user.
    let of_account = pod(json!({"serviceAccountName": "other"}));
    assert!(admit(&all, of_account, "u").await.is_ok());
    let none = admit(&[], pod(json!({})), "u").await.unwrap_err();
    assert_eq!(
        none,
        "pods \"p\" is forbidden: PodSecurityPolicy: no providers available to validate pod request"
    );
}

#[tokio::test]
async fn what_is_left_open_is_set() {
    let p = policy(
        "u",
        json!({
            "runAsUser": {"rule": "MustRunAs", "ranges": [{"min": 1000, "max": 2000}]},
            "runAsGroup": {"rule": "MustRunAs", "ranges": [{"min": 3000, "max": 3000}]},
            "fsGroup": {"rule": "MustRunAs", "ranges": [{"min": 5, "max": 9}]},
            "supplementalGroups": {"rule": "MustRunAs", "ranges": [{"min": 7, "max": 9}]},
            "seLinux": {"rule": "MustRunAs", "seLinuxOptions": {"level": "s0:c1,c2"}},
            "allowedCapabilities": ["CHOWN"],
            "defaultAddCapabilities": ["KILL", "NET_RAW"],
            "requiredDropCapabilities": ["SYS_ADMIN"],
            "allowPrivilegeEscalation": false,
            "annotations": {
                "seccomp.security.alpha.kubernetes.io/defaultProfileName": "runtime/default",
                "seccomp.security.alpha.kubernetes.io/allowedProfileNames": "docker/default",
                "apparmor.security.beta.kubernetes.io/defaultProfileName": "runtime/default",
            },
        }),
    );
    let containers = json!([{"name": "c", "image": "i", "securityContext": {"capabilities": {"add": ["CHOWN"], "drop": ["NET_RAW"]}}}]);
    let done = admit(&[p], pod(json!({"containers": containers})), "u").await.unwrap();
    assert_eq!(
        done["spec"]["securityContext"],
        json!({"fsGroup": 5, "supplementalGroups": [7], "seLinuxOptions": {"level": "s0:c1,c2"}})
    );
    assert_eq!(
        done["spec"]["containers"][0]["securityContext"],
        json!({"runAsUser": 1000, "runAsGroup": 3000, "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["CHOWN", "KILL"], "drop": ["NET_RAW", "SYS_ADMIN"]}})
    );
    assert_eq!(
        done["metadata"]["annotations"],
        json!({"kubernetes.io/psp": "u", "seccomp.security.alpha.kubernetes.io/pod": "runtime/default",
            "container.apparmor.security.beta.kubernetes.io/c": "runtime/default"})
    );
    let non_root = policy("u", json!({"runAsUser": {"rule": "MustRunAsNonRoot"}}));
    let done = admit(std::slice::from_ref(&non_root), pod(json!({})), "u").await.unwrap();
    assert_eq!(done["spec"]["containers"][0]["securityContext"], json!({"runAsNonRoot": true}));
    let done = admit(&[non_root], pod(json!({"securityContext": {"runAsUser": 7}})), "u").await.unwrap();
    assert!(done["spec"]["containers"][0].get("securityContext").is_none());
}

#[tokio::test]
async fn what_is_not_allowed_is_told_in_kubernetes_words() {
    let of = |context: Value| {
        pod(json!({"containers": [{"name": "c", "image": "i", "securityContext": context}]}))
    };
    let cases = [
        (
            json!({"privileged": false}),
            of(json!({"privileged": true})),
            "spec.containers[0].securityContext.privileged: Invalid value: true: Privileged containers are not allowed",
        ),
        (
            json!({"allowPrivilegeEscalation": false}),
            of(json!({"allowPrivilegeEscalation": true})),
            "spec.containers[0].securityContext.allowPrivilegeEscalation: Invalid value: true: Allowing privilege escalation for containers is not allowed",
        ),
        (
            json!({"hostNetwork": false}),
            pod(json!({"hostNetwork": true})),
            "spec.securityContext.hostNetwork: Invalid value: true: Host network is not allowed to be used",
        ),
        (
            json!({}),
            pod(json!({"hostPID": true})),
            "spec.securityContext.hostPID: Invalid value: true: Host PID is not allowed to be used",
        ),
        (
            json!({"volumes": ["secret"]}),
            pod(json!({"volumes": [{"name": "v", "configMap": {"name": "m"}}]})),
            "spec.volumes[0]: Invalid value: \"configMap\": configMap volumes are not allowed to be used",
        ),
        (
            json!({"allowedHostPaths": [{"pathPrefix": "/var/log"}]}),
            pod(json!({"volumes": [{"name": "v", "hostPath": {"path": "/tmp"}}]})),
            "spec.volumes[0].hostPath.pathPrefix: Invalid value: \"/tmp\": is not allowed to be used",
        ),
        (
            json!({"allowedCapabilities": []}),
            of(json!({"capabilities": {"add": ["NET_ADMIN"]}})),
            "spec.containers[0].securityContext.capabilities.add: Invalid value: \"NET_ADMIN\": capability may not be added",
        ),
        (
            json!({"runAsUser": {"rule": "MustRunAs", "ranges": [{"min": 1, "max": 10}]}}),
            of(json!({"runAsUser": 0})),
            "spec.containers[0].securityContext.runAsUser: Invalid value: 0: must be in the ranges: [{1 10}]",
        ),
        (
            json!({"runAsUser": {"rule": "MustRunAsNonRoot"}}),
            of(json!({"runAsUser": 0})),
            "spec.containers[0].securityContext.runAsUser: Invalid value: 0: running with the root UID is forbidden",
        ),
        (
            json!({"fsGroup": {"rule": "MayRunAs", "ranges": [{"min": 1, "max": 10}]}}),
            pod(json!({"securityContext": {"fsGroup": 11}})),
            "spec.securityContext.fsGroup: Invalid value: []int64{11}: group 11 must be in the ranges: [{1 10}]",
        ),
        (
            json!({}),
            pod(
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}, {"name": "kernel.shm_rmid_forced", "value": "1"}]}}),
            ),
            "pod.spec.securityContext.sysctls[0]: Forbidden: unsafe sysctl \"kernel.msgmax\" is not allowed",
        ),
        (
            json!({"forbiddenSysctls": ["kernel.*"]}),
            pod(json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}})),
            "pod.spec.securityContext.sysctls[0]: Forbidden: sysctl \"kernel.shm_rmid_forced\" is not allowed",
        ),
        (
            json!({"hostPorts": [{"min": 80, "max": 90}, {"min": 443, "max": 443}]}),
            pod(
                json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1, "hostPort": 22}]}]}),
            ),
            "spec.containers[0].hostPort: Invalid value: 22: Host port 22 is not allowed to be used. Allowed ports: [80-90,443]",
        ),
        (
            json!({"readOnlyRootFilesystem": true}),
            of(json!({"readOnlyRootFilesystem": false})),
            "spec.containers[0].securityContext.readOnlyRootFilesystem: Invalid value: false: ReadOnlyRootFilesystem must be set to true",
        ),
        (
            json!({"runtimeClass": {"allowedRuntimeClassNames": ["a"]}}),
            pod(json!({"runtimeClassName": "b"})),
            "spec.runtimeClassName: Invalid value: \"b\"",
        ),
        (
            json!({"seLinux": {"rule": "MustRunAs", "seLinuxOptions": {"level": "s0:c2,c1", "user": "u"}}}),
            pod(json!({"securityContext": {"seLinuxOptions": {"level": "s0:c1,c2", "user": "x"}}})),
            "spec.securityContext.seLinuxOptions.user: Invalid value: \"x\": must be u spec.containers[0].securityContext.seLinuxOptions.user: Invalid value: \"x\": must be u",
        ),
        (
            json!({}),
            pod(json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}})),
            "pod.metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: Forbidden: seccomp may not be set pod.metadata.annotations[container.seccomp.security.alpha.kubernetes.io/c]: Forbidden: seccomp may not be set",
        ),
    ];
    for (policy, pod, text) in cases {
        assert_eq!(faults(policy, pod).await, text);
    }
}

#[tokio::test]
async fn updates_are_checked_not_changed() {
    let objects = FakeObjects::default();
    objects.put("policy", "podsecuritypolicies", policy("u", json!({"readOnlyRootFilesystem": true})));
    let plugin = PodSecurityPolicy(Arc::new(ByName));
    let mut request = test_create("", "pods", "Pod", pod(json!({})));
    request.namespace = "n".into();
    request.operation = Operation::Update;
    request.old_object = request.object.clone();
    request.object["metadata"]["labels"] = json!({"a": "b"});
    let before = request.object.clone();
    plugin.admit(&mut request, &objects).await.unwrap();
    assert_eq!(request.object, before);
    let refused = plugin.validate(&request, &objects).await.unwrap_err();
    assert_eq!(refused.message, "pods \"p\" is forbidden: PodSecurityPolicy: unable to validate pod: []");
    // What the garbage collector does is none of its business.
    request.object = request.old_object.clone();
    request.object["metadata"]["ownerReferences"] = json!([{"uid": "1"}]);
    plugin.validate(&request, &objects).await.unwrap();
}
