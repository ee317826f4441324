//! `PodSecurityPolicy`: a pod must be allowed by a policy that its user or its service account may use, which may also
//! set what the pod leaves open (<https://v1-20.docs.kubernetes.io/docs/concepts/policy/pod-security-policy/>).

mod annotations;
mod ids;
mod mutate;
mod validate;
mod volumes;

use std::sync::Arc;

use async_trait::async_trait;
use pilothouse_apimachinery::field::ErrorList;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use crate::json::{get, set, str_at};
use crate::request::{
    AdmissionRequest, Attributes, Authorizer, Decision, Mutation, Objects, Operation, RequestInfo, UserInfo,
    Validation,
};

use super::is_about;

/// Where the name of the policy that has allowed a pod is noted.
const ANNOTATION: &str = "kubernetes.io/psp";

/// The plug-in.
pub struct PodSecurityPolicy(pub Arc<dyn Authorizer>);

/// What the policies say of a pod.
enum Verdict {
    /// Allowed by this policy, and as which pod.
    Allowed(String, Value),
    /// By none; the faults that those found which may be used.
    Refused(ErrorList),
}

/// The user that a service account is.
fn account(namespace: &str, name: &str) -> UserInfo {
    UserInfo {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".into(),
        ],
        ..UserInfo::default()
    }
}

/// Whether an update changes nothing but what the garbage collector does.
fn only_collects(request: &AdmissionRequest) -> bool {
    let without = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                metadata.remove(field);
            }
        }
        object
    };
    without(&request.object) == without(&request.old_object)
}

impl PodSecurityPolicy {
    async fn may_use(&self, request: &AdmissionRequest, pod: &Value, policy: &str) -> bool {
        let name = str_at(pod, &["spec", "serviceAccountName"]);
        let account = (!name.is_empty()).then(|| account(&request.namespace, name));
        for user in account.iter().chain([&request.user]) {
            // Policies were in `extensions` once, and so are roles of that time.
            for group in ["policy", "extensions"] {
                let wanted = RequestInfo {
                    is_resource: true,
                    verb: "use".into(),
                    group: group.into(),
                    version: "*".into(),
                    namespace: request.namespace.clone(),
                    resource: "podsecuritypolicies".into(),
                    name: policy.into(),
                    ..RequestInfo::default()
                };
                if self.0.authorize(Attributes { user, request: &wanted }).await == Decision::Allow {
                    return true;
                }
            }
        }
        false
    }

    /// Tries the policies by name. One that allows the pod as it is goes before one that has to change it; `first` goes
    /// before all.
    async fn judge(
        &self,
        request: &AdmissionRequest,
        objects: &dyn Objects,
        change: bool,
        first: &str,
    ) -> Result<Verdict, String> {
        let mut policies = objects.list("policy", "podsecuritypolicies", "");
        let name = |policy: &Value| str_at(policy, &["metadata", "name"]).to_string();
        policies.sort_by_key(|p| (change || name(p) != first, name(p)));
        if policies.is_empty() {
            return Err("no providers available to validate pod request".into());
        }
        let pod = &request.object;
        let mut changed: Option<(String, Value)> = None;
        let mut faults = Vec::new();
        for policy in &policies {
            let mut candidate = pod.clone();
            mutate::pod(policy, &mut candidate);
            let errors = validate::pod(policy, &candidate);
            if !errors.is_empty() {
                faults.push((name(policy), errors));
                continue;
            }
            let same = candidate == *pod;
            if !same && (!change || changed.is_some()) {
                continue;
            }
            if !self.may_use(request, pod, &name(policy)).await {
                continue;
            }
            if same {
                return Ok(Verdict::Allowed(name(policy), candidate));
            }
            changed = Some((name(policy), candidate));
        }
        if let Some((policy, pod)) = changed {
            return Ok(Verdict::Allowed(policy, pod));
        }
        let mut told = ErrorList::new();
        for (policy, errors) in faults {
            if self.may_use(request, pod, &policy).await {
                told.extend(errors);
            }
        }
        Ok(Verdict::Refused(told))
    }

    async fn check(&self, request: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let hint = get(&request.object, &["metadata", "annotations"]).get(ANNOTATION).and_then(Value::as_str);
        match self.judge(request, objects, false, hint.unwrap_or("")).await {
            Err(why) => Err(super::forbidden(request, format!("PodSecurityPolicy: {why}"))),
            Ok(Verdict::Allowed(..)) => Ok(()),
            Ok(Verdict::Refused(errors)) => Err(refused(request, "validate", &errors)),
        }
    }
}

fn refused(request: &AdmissionRequest, verb: &str, errors: &ErrorList) -> Status {
    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
    super::forbidden(request, format!("PodSecurityPolicy: unable to {verb} pod: [{}]", errors.join(" ")))
}

#[async_trait]
impl Mutation for PodSecurityPolicy {
    async fn admit(&self, request: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if !super::creates_pod(request) {
            return Ok(());
        }
        match self.judge(request, objects, true, "").await {
            Err(why) => Err(super::forbidden(request, format!("PodSecurityPolicy: {why}"))),
            Ok(Verdict::Allowed(policy, mut pod)) => {
                set(&mut pod, &["metadata", "annotations", ANNOTATION], policy);
                request.object = pod;
                Ok(())
            }
            Ok(Verdict::Refused(errors)) => Err(refused(request, "admit", &errors)),
        }
    }
}

#[async_trait]
impl Validation for PodSecurityPolicy {
    async fn validate(&self, request: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !is_about(request, "", "pods") || !writes {
            return Ok(());
        }
        if request.operation == Operation::Update && only_collects(request) {
            return Ok(());
        }
        self.check(request, objects).await
    }
}

#[cfg(test)]
mod tests;
