//! Plug-ins about volumes and claims.

use async_trait::async_trait;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::quantity::Quantity;
use pilothouse_apimachinery::status::Status;

use crate::json::{self, bool_at, entry, has, str_at};
use crate::request::{AdmissionRequest, Mutation, Objects, Operation, Validation};

use super::{has_finalizer, is_about};

/// `DefaultStorageClass`: a claim that names no class gets the default one.
pub struct DefaultClass {
    /// Today, of several default classes the youngest is taken; v1.20 refuses.
    pub newest: bool,
}

fn is_default(class: &Value) -> bool {
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|a| entry(class, &["metadata", "annotations"], a) == Some("true"))
}

#[async_trait]
impl Mutation for DefaultClass {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let names_one = has(&r.object, &["spec", "storageClassName"])
            || entry(&r.object, &["metadata", "annotations"], "volume.beta.kubernetes.io/storage-class")
                .is_some();
        if !is_about(r, "", "persistentvolumeclaims") || r.operation != Operation::Create || names_one {
            return Ok(());
        }
        let mut defaults = objects.list("storage.k8s.io", "storageclasses", "");
        defaults.retain(|c| is_default(c));
        let created = |c: &Value| str_at(c, &["metadata", "creationTimestamp"]).to_string();
        let name = |c: &Value| str_at(c, &["metadata", "name"]).to_string();
        // The youngest first; of those of the same second, the first by name.
        defaults.sort_by(|a, b| created(b).cmp(&created(a)).then(name(a).cmp(&name(b))));
        if defaults.len() > 1 && !self.newest {
            return Err(super::forbidden(
                r,
                Status::internal(format!("{} default StorageClasses were found", defaults.len())),
            ));
        }
        if let Some(class) = defaults.first() {
            json::set(&mut r.object, &["spec", "storageClassName"], name(class));
        }
        Ok(())
    }
}

/// `StorageObjectInUseProtection`: volumes and claims do not vanish while they are used.
pub struct InUseProtection;

#[async_trait]
impl Mutation for InUseProtection {
    async fn admit(&self, r: &mut AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        let finalizer = match r.resource.as_str() {
            "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
            "persistentvolumes" => "kubernetes.io/pv-protection",
            _ => return Ok(()),
        };
        let create = r.group.is_empty() && r.subresource.is_empty() && r.operation == Operation::Create;
        if create && !has_finalizer(&r.object, finalizer) {
            json::ensure_list(&mut r.object, &["metadata", "finalizers"]).push(finalizer.into());
        }
        Ok(())
    }
}

/// `PersistentVolumeClaimResize`: only what can grow may be asked to.
pub struct Resize;

fn size(claim: &Value) -> Option<Quantity> {
    Quantity::parse(str_at(claim, &["spec", "resources", "requests", "storage"])).ok()
}

#[async_trait]
impl Validation for Resize {
    async fn validate(&self, r: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if !is_about(r, "", "persistentvolumeclaims") || r.operation != Operation::Update {
            return Ok(());
        }
        match (size(&r.old_object), size(&r.object)) {
            (Some(old), Some(new)) if new > old => {}
            _ => return Ok(()),
        }
        if str_at(&r.old_object, &["status", "phase"]) != "Bound" {
            return Err(super::forbidden(r, "Only bound persistent volume claims can be expanded"));
        }
        let annotation =
            entry(&r.old_object, &["metadata", "annotations"], "volume.beta.kubernetes.io/storage-class");
        let class = annotation.unwrap_or_else(|| str_at(&r.old_object, &["spec", "storageClassName"]));
        let class = objects.get("storage.k8s.io", "storageclasses", "", class);
        if class.is_some_and(|c| bool_at(&c, &["allowVolumeExpansion"])) {
            return Ok(());
        }
        Err(super::forbidden(
            r,
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    fn class(name: &str, created: &str) -> Value {
        json!({"metadata": {"name": name, "creationTimestamp": created,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "allowVolumeExpansion": name == "b"})
    }

    fn claim(spec: Value) -> AdmissionRequest {
        test_create(
            "",
            "persistentvolumeclaims",
            "PersistentVolumeClaim",
            json!({"metadata": {"name": "c"}, "spec": spec}),
        )
    }

    #[tokio::test]
    async fn gives_the_default_class() {
        let o = FakeObjects::default();
        o.put("storage.k8s.io", "storageclasses", class("a", "2020-01-01T00:00:00Z"));
        let mut r = claim(json!({}));
        DefaultClass { newest: false }.admit(&mut r, &o).await.unwrap();
        assert_eq!(r.object["spec"]["storageClassName"], "a");
        let mut r = claim(json!({"storageClassName": ""}));
        DefaultClass { newest: false }.admit(&mut r, &o).await.unwrap();
        assert_eq!(r.object["spec"]["storageClassName"], "");
        o.put("storage.k8s.io", "storageclasses", class("b", "2021-01-01T00:00:00Z"));
        assert!(DefaultClass { newest: false }.admit(&mut claim(json!({})), &o).await.is_err());
        let mut r = claim(json!({}));
        DefaultClass { newest: true }.admit(&mut r, &o).await.unwrap();
        assert_eq!(r.object["spec"]["storageClassName"], "b");
    }

    #[tokio::test]
    async fn only_what_can_grow_grows() {
        let o = FakeObjects::default();
        o.put("storage.k8s.io", "storageclasses", class("b", ""));
        let sized = |size: &str, class: &str| json!({"spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}, "status": {"phase": "Bound"}});
        let ask = |class: &str| AdmissionRequest {
            operation: Operation::Update,
            object: sized("2Gi", class),
            old_object: sized("1Gi", class),
            ..claim(json!({}))
        };
        Resize.validate(&ask("b"), &o).await.unwrap();
        assert!(Resize.validate(&ask("x"), &o).await.is_err());
        let mut shrink = ask("x");
        std::mem::swap(&mut shrink.object, &mut shrink.old_object);
        Resize.validate(&shrink, &o).await.unwrap();
    }
}
