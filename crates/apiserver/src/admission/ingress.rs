//! `DefaultIngressClass`: an ingress that names no class gets the default one.

use async_trait::async_trait;
use pilothouse_apimachinery::status::Status;

use crate::json::{self, entry, has, str_at};
use crate::request::{AdmissionRequest, Mutation, Objects, Operation};

use super::is_about;

/// The plug-in.
pub struct DefaultClass;

#[async_trait]
impl Mutation for DefaultClass {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let create = is_about(r, "networking.k8s.io", "ingresses") && r.operation == Operation::Create;
        let names_one = has(&r.object, &["spec", "ingressClassName"])
            || entry(&r.object, &["metadata", "annotations"], "kubernetes.io/ingress.class").is_some();
        if !create || names_one {
            return Ok(());
        }
        let mut defaults = objects.list("networking.k8s.io", "ingressclasses", "");
        let annotation = "ingressclass.kubernetes.io/is-default-class";
        defaults.retain(|c| entry(c, &["metadata", "annotations"], annotation) == Some("true"));
        match defaults.as_slice() {
            [] => {}
            [one] => {
                json::set(&mut r.object, &["spec", "ingressClassName"], str_at(one, &["metadata", "name"]))
            }
            many => {
                let why = format!("{} default IngressClasses were found, only 1 allowed", many.len());
                return Err(super::forbidden(r, Status::internal(why)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    #[tokio::test]
    async fn gives_the_default_class() {
        let o = FakeObjects::default();
        o.put(
            "networking.k8s.io",
            "ingressclasses",
            json!({"metadata": {"name": "nginx",
            "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}}}),
        );
        let mut r = test_create(
            "networking.k8s.io",
            "ingresses",
            "Ingress",
            json!({"metadata": {"name": "i"}, "spec": {}}),
        );
        DefaultClass.admit(&mut r, &o).await.unwrap();
        assert_eq!(r.object["spec"]["ingressClassName"], "nginx");
    }
}
