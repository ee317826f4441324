//! Nobody may hand out more than they hold: checks of role and binding writes.

use async_trait::async_trait;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::rules::{Rule, compact, missing, quoted, show};
use super::{GROUP, Rbac};
use crate::json::{list_at, str_at};
use crate::request::{
    AdmissionRequest, Attributes, Authorizer, Decision, Mutation, Objects, Operation, RequestInfo, UserInfo,
};

/// Checks writes of roles and bindings. Not one of Kubernetes' admission plug-ins (there the registry does it), but it
/// acts in the same place: after all changes, before validation.
pub struct Escalation {
    /// Rules and who holds them.
    pub rbac: Arc<Rbac>,
    /// For the verbs `escalate` and `bind`.
    pub authorizer: Arc<dyn Authorizer>,
}

/// The complaint about `wanted` rules that `user` does not hold; `None` where all are held.
pub fn complaint(user: &UserInfo, held: &[Rule], wanted: &[Rule]) -> Option<String> {
    let missing = missing(held, wanted);
    if missing.is_empty() {
        return None;
    }
    let lines: BTreeSet<String> = compact(missing).iter().map(show).collect();
    Some(format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.into_iter().collect::<Vec<_>>().join("\n")
    ))
}

impl Escalation {
    async fn may(&self, request: &AdmissionRequest, verb: &str, resource: &str, name: &str) -> bool {
        let info = RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: GROUP.into(),
            version: request.version.clone(),
            namespace: request.namespace.clone(),
            resource: resource.into(),
            name: name.into(),
            ..Default::default()
        };
        self.authorizer.authorize(Attributes { user: &request.user, request: &info }).await == Decision::Allow
    }

    fn refuse(request: &AdmissionRequest, why: &str) -> Status {
        Status::forbidden(GROUP, &request.resource, str_at(&request.object, &["metadata", "name"]), why)
    }

    async fn role(&self, request: &AdmissionRequest) -> Result<(), Status> {
        if self.may(request, "escalate", &request.resource, &request.name).await {
            return Ok(());
        }
        let held = || self.rbac.rules_of(&request.user, &request.namespace);
        if request.object.get("aggregationRule").is_some_and(|a| !a.is_null()) {
            let everything = [
                Rule { verbs: star(), groups: star(), resources: star(), ..Rule::default() },
                Rule { verbs: star(), urls: star(), ..Rule::default() },
            ];
            if !missing(&held(), &everything).is_empty() {
                return Err(Self::refuse(
                    request,
                    "must have cluster-admin privileges to use the aggregationRule",
                ));
            }
        }
        if request.operation == Operation::Update
            && list_at(&request.object, &["rules"]) == list_at(&request.old_object, &["rules"])
        {
            return Ok(());
        }
        match complaint(&request.user, &held(), &Rule::of_role(&request.object)) {
            Some(why) => Err(Self::refuse(request, &why)),
            None => Ok(()),
        }
    }

    async fn binding(&self, request: &AdmissionRequest) -> Result<(), Status> {
        let (kind, name) =
            (str_at(&request.object, &["roleRef", "kind"]), str_at(&request.object, &["roleRef", "name"]));
        let (resource, namespace, singular) = match kind {
            "Role" => ("roles", request.namespace.as_str(), "role"),
            "ClusterRole" => ("clusterroles", "", "clusterrole"),
            other => return Err(Status::internal(format!("unsupported role reference kind: {other:?}"))),
        };
        if self.may(request, "bind", resource, name).await {
            return Ok(());
        }
        let index = self.rbac.index();
        let wanted =
            index.role_rules(namespace, name).ok_or_else(|| Status::not_found(GROUP, singular, name))?;
        match complaint(&request.user, &self.rbac.rules_of(&request.user, &request.namespace), wanted) {
            Some(why) => Err(Self::refuse(request, &why)),
            None => Ok(()),
        }
    }
}

fn star() -> Vec<String> {
    vec!["*".into()]
}

/// Whether only what the garbage collector writes has changed: owners and finalizers.
fn only_garbage_collection(new: &Value, old: &Value) -> bool {
    let strip = |v: &Value| {
        let mut v = v.clone();
        if let Some(m) = v.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
                m.insert(field, Value::Null);
            }
        }
        v
    };
    strip(new) == strip(old)
}

#[async_trait]
impl Mutation for Escalation {
    async fn admit(&self, request: &mut AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        let write = matches!(request.operation, Operation::Create | Operation::Update);
        if request.group != GROUP || !write || !request.subresource.is_empty() {
            return Ok(());
        }
        if request.user.groups.iter().any(|g| g == "system:masters") {
            return Ok(());
        }
        if request.operation == Operation::Update
            && only_garbage_collection(&request.object, &request.old_object)
        {
            return Ok(());
        }
        match request.resource.as_str() {
            "roles" | "clusterroles" => self.role(request).await,
            "rolebindings" | "clusterrolebindings" => self.binding(request).await,
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn lists_missing_rules() {
        let user = UserInfo {
            name: "jane".into(),
            groups: vec!["devs".into(), "system:authenticated".into()],
            ..Default::default()
        };
        let want = Rule::from_value(
            &json!({"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods"]}),
        );
        assert_eq!(
            complaint(&user, &[], std::slice::from_ref(&want)).unwrap(),
            "user \"jane\" (groups=[\"devs\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}\n\
             {APIGroups:[\"apps\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}"
        );
        assert_eq!(complaint(&user, std::slice::from_ref(&want), std::slice::from_ref(&want)), None);
    }
}
