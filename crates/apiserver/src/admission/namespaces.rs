//! Plug-ins about the namespace that an object is created in.

use async_trait::async_trait;
use pilothouse_apimachinery::json::json;
use pilothouse_apimachinery::status::Status;

use crate::json::str_at;
use crate::request::{AdmissionRequest, Mutation, Objects, Operation, Validation};

use super::is_about;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// `NamespaceLifecycle`: nothing is created where the namespace is missing or on its way out.
pub struct Lifecycle;

#[async_trait]
impl Mutation for Lifecycle {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if is_about(r, "", "namespaces") {
            if r.operation == Operation::Delete && IMMORTAL.contains(&r.name.as_str()) {
                return Err(super::forbidden(r, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        let review = r.group == "authorization.k8s.io" && r.resource == "localsubjectaccessreviews";
        if r.namespace.is_empty()
            || r.group.is_empty() && r.resource == "namespaces"
            || r.operation == Operation::Delete
            || review
        {
            return Ok(());
        }
        // The cache may not have a namespace yet that was made a moment ago.
        let namespace = match objects.get("", "namespaces", "", &r.namespace) {
            Some(found) => found,
            None => objects.get_latest("", "namespaces", "", &r.namespace).await?,
        };
        if r.operation == Operation::Create && str_at(&namespace, &["status", "phase"]) == "Terminating" {
            let n = &r.namespace;
            let why = format!("unable to create new content in namespace {n} because it is being terminated");
            return Err(Status::forbidden(&r.group, &r.resource, &r.name, &why).cause(
                "NamespaceTerminating",
                &format!("namespace {n} is being terminated"),
                "metadata.namespace",
            ));
        }
        Ok(())
    }
}

/// `NamespaceExists`: nothing is done in a namespace that is not there.
pub struct Exists;

#[async_trait]
impl Validation for Exists {
    async fn validate(&self, r: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if r.namespace.is_empty()
            || r.resource == "namespaces"
            || objects.get("", "namespaces", "", &r.namespace).is_some()
        {
            return Ok(());
        }
        objects.get_latest("", "namespaces", "", &r.namespace).await.map(drop)
    }
}

/// `NamespaceAutoProvision`: a missing namespace is created.
pub struct AutoProvision;

#[async_trait]
impl Mutation for AutoProvision {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let skip = r.dry_run
            || r.namespace.is_empty()
            || r.operation != Operation::Create
            || r.resource == "namespaces";
        if skip || objects.get("", "namespaces", "", &r.namespace).is_some() {
            return Ok(());
        }
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": r.namespace}});
        match objects.create("", "namespaces", "", namespace).await {
            Err(e) if e.reason != "AlreadyExists" => Err(super::forbidden(r, e)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;

    #[tokio::test]
    async fn guards_namespaces() {
        let o = FakeObjects::default();
        o.put("", "namespaces", json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}}));
        o.put("", "namespaces", json!({"metadata": {"name": "t"}, "status": {"phase": "Terminating"}}));
        let cm = |ns: &str| {
            test_create("", "configmaps", "ConfigMap", json!({"metadata": {"name": "b", "namespace": ns}}))
        };
        Lifecycle.admit(&mut cm("a"), &o).await.unwrap();
        let e = Lifecycle.admit(&mut cm("gone"), &o).await.unwrap_err();
        assert_eq!((e.code, e.message.as_str()), (404, "namespaces \"gone\" not found"));
        let e = Lifecycle.admit(&mut cm("t"), &o).await.unwrap_err();
        assert_eq!(
            e.message,
            "configmaps \"b\" is forbidden: unable to create new content in namespace t because it is being terminated"
        );
        assert_eq!(e.details.unwrap().causes[0].reason, "NamespaceTerminating");
        let mut delete = test_create("", "namespaces", "Namespace", json!({"metadata": {"name": "default"}}));
        delete.operation = Operation::Delete;
        let e = Lifecycle.admit(&mut delete, &o).await.unwrap_err();
        assert_eq!(e.message, "namespaces \"default\" is forbidden: this namespace may not be deleted");
    }
}
