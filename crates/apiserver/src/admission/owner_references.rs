//! `OwnerReferencesPermissionEnforcement`: who makes an object go with another must be allowed to delete it, and who
//! makes an owner wait for it must be allowed to keep the owner.

use std::sync::Arc;

use async_trait::async_trait;
use pilothouse_api::scheme::Scheme;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use super::forbidden;
use crate::json::{bool_at, list_at, str_at};
use crate::request::{
    AdmissionRequest, Attributes, Authorizer, Decision, Objects, Operation, RequestInfo, Validation,
};

/// The plug-in.
pub struct OwnerReferences {
    /// Who says what is allowed.
    pub authorizer: Arc<dyn Authorizer>,
    /// Release served.
    pub release: Release,
}

fn owners(object: &Value) -> &[Value] {
    list_at(object, &["metadata", "ownerReferences"])
}

/// Owners that are to wait for the object, and were not before.
fn newly_blocking(request: &AdmissionRequest) -> Vec<&Value> {
    let blocks = |o: &&Value| bool_at(o, &["blockOwnerDeletion"]);
    let before: Vec<&str> =
        owners(&request.old_object).iter().filter(blocks).map(|o| str_at(o, &["uid"])).collect();
    owners(&request.object).iter().filter(blocks).filter(|o| !before.contains(&str_at(o, &["uid"]))).collect()
}

/// Group, version, resource and scope of a kind.
fn resource(scheme: &Scheme, objects: &dyn Objects, owner: &Value) -> Option<(String, String, String, bool)> {
    let api_version = str_at(owner, &["apiVersion"]);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = str_at(owner, &["kind"]);
    if let Some(r) = scheme.by_kind(group, version, kind) {
        return Some((group.into(), version.into(), r.plural.to_string(), r.namespaced));
    }
    let definitions = objects.list("apiextensions.k8s.io", "customresourcedefinitions", "");
    let found = definitions.iter().find(|d| {
        str_at(d, &["spec", "group"]) == group
            && str_at(d, &["spec", "names", "kind"]) == kind
            && list_at(d, &["spec", "versions"]).iter().any(|v| str_at(v, &["name"]) == version)
    })?;
    let plural = str_at(found, &["spec", "names", "plural"]).to_string();
    Some((group.into(), version.into(), plural, str_at(found, &["spec", "scope"]) == "Namespaced"))
}

impl OwnerReferences {
    /// The reason where something is not allowed.
    async fn refusal(&self, request: &AdmissionRequest, wanted: RequestInfo) -> Option<String> {
        match self.authorizer.authorize(Attributes { user: &request.user, request: &wanted }).await {
            Decision::Allow => None,
            Decision::Deny(why) | Decision::NoOpinion(why) => Some(why),
        }
    }
}

#[async_trait]
impl Validation for OwnerReferences {
    async fn validate(&self, request: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let status_of_pod = request.resource == "pods" && request.subresource == "status";
        if !writes || status_of_pod || owners(&request.object) == owners(&request.old_object) {
            return Ok(());
        }
        let delete = RequestInfo {
            is_resource: true,
            verb: "delete".into(),
            group: request.group.clone(),
            version: request.version.clone(),
            namespace: request.namespace.clone(),
            resource: request.resource.clone(),
            subresource: request.subresource.clone(),
            name: request.name.clone(),
            ..RequestInfo::default()
        };
        if let Some(why) = self.refusal(request, delete).await {
            let text = format!("cannot set an ownerRef on a resource you can't delete: {why}, <nil>");
            return Err(forbidden(request, text));
        }
        let scheme = Scheme::new(self.release);
        for owner in newly_blocking(request) {
            let (version, kind) = (str_at(owner, &["apiVersion"]), str_at(owner, &["kind"]));
            let Some((group, group_version, plural, namespaced)) = resource(&scheme, objects, owner) else {
                let text = format!(
                    "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {version} Kind {kind}: no matches for kind {kind:?} in version {version:?}"
                );
                return Err(forbidden(request, text));
            };
            let finalizers = RequestInfo {
                is_resource: true,
                verb: "update".into(),
                group,
                version: group_version,
                namespace: if namespaced { request.namespace.clone() } else { String::new() },
                resource: plural,
                subresource: "finalizers".into(),
                name: str_at(owner, &["name"]).into(),
                ..RequestInfo::default()
            };
            if let Some(why) = self.refusal(request, finalizers).await {
                let text = format!(
                    "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: {why}, <nil>"
                );
                return Err(forbidden(request, text));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;
    use crate::admission::test_create;
    use crate::request::UserInfo;
    use crate::testing::FakeObjects;

    /// Allows what the user's name says.
    struct ByVerb;

    #[async_trait]
    impl Authorizer for ByVerb {
        async fn authorize(&self, a: Attributes<'_>) -> Decision {
            if a.user.name.contains(&a.request.verb)
                && (a.request.verb != "update" || a.request.subresource == "finalizers")
            {
                Decision::Allow
            } else {
                Decision::NoOpinion(String::new())
            }
        }

        async fn rules_for(&self, _: &UserInfo, _: &str) -> (Vec<Value>, Vec<Value>, bool) {
            (Vec::new(), Vec::new(), true)
        }
    }

    async fn ask(user: &str, owner: Value) -> Result<(), String> {
        let plugin = OwnerReferences { authorizer: Arc::new(ByVerb), release: Release::V1_20 };
        let mut request =
            test_create("", "pods", "Pod", json!({"metadata": {"name": "p", "ownerReferences": [owner]}}));
        request.user.name = user.into();
        plugin.validate(&request, &FakeObjects::default()).await.map_err(|e| e.message)
    }

    #[tokio::test]
    async fn owners_are_a_privilege() {
        let owner = |block: bool, kind: &str| json!({"apiVersion": "apps/v1", "kind": kind, "name": "r", "uid": "1", "blockOwnerDeletion": block});
        assert!(
            ask("nobody", owner(false, "ReplicaSet"))
                .await
                .unwrap_err()
                .contains("cannot set an ownerRef on a resource you can't delete")
        );
        ask("delete", owner(false, "ReplicaSet")).await.unwrap();
        assert!(
            ask("delete", owner(true, "ReplicaSet"))
                .await
                .unwrap_err()
                .contains("you can't set finalizers on")
        );
        ask("delete, update", owner(true, "ReplicaSet")).await.unwrap();
        assert!(
            ask("delete, update", owner(true, "Nope"))
                .await
                .unwrap_err()
                .contains("cannot find RESTMapping for APIVersion apps/v1 Kind Nope")
        );
    }
}
