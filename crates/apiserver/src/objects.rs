//! [`Objects`] over cache and store: how the server's own parts read and write.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use pilothouse_api::apply::typed;
use pilothouse_api::convert::parse_api_version;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use crate::encode::{Object, versioned};
use crate::fields;
use crate::handlers::delete::{self, Deleted};
use crate::handlers::lifecycle::{self, Target};
use crate::handlers::{create, update};
use crate::json::str_at;
use crate::options::DeleteOptions;
use crate::registry::{Endpoint, Registry};
use crate::request::{Objects, ResourceName};
use crate::special::SpecialRest;

/// The field manager of what the server writes by itself.
const MANAGER: &str = "kube-apiserver";

/// Objects of the registry.
pub struct ServerObjects {
    registry: Arc<Registry>,
    special: OnceLock<SpecialRest>,
    none: SpecialRest,
}

impl ServerObjects {
    /// Objects of a registry; storage hooks come later, with [`ServerObjects::set_hooks`].
    pub fn new(registry: Arc<Registry>) -> ServerObjects {
        ServerObjects { registry, special: OnceLock::new(), none: SpecialRest::default() }
    }

    /// Sets the storage hooks. They are made of parts that need the objects themselves.
    pub fn set_hooks(&self, special: SpecialRest) {
        let _ = self.special.set(special);
    }

    fn special(&self) -> &SpecialRest {
        self.special.get().unwrap_or(&self.none)
    }

    fn endpoint(&self, group: &str, resource: &str) -> Result<Endpoint, Status> {
        self.registry.hub(group, resource).ok_or_else(Status::no_such_path)
    }
}

fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_string() } else { format!("{namespace}/{name}") }
}

#[async_trait]
impl Objects for ServerObjects {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let endpoint = self.registry.hub(group, resource)?;
        endpoint.storage.objects.get(&key(namespace, name)).map(|e| e.object())
    }

    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<Value>> {
        let Some(endpoint) = self.registry.hub(group, resource) else { return Vec::new() };
        let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        endpoint.storage.objects.list(&prefix).entries.iter().map(|e| e.object()).collect()
    }

    fn list_by_field(&self, group: &str, resource: &str, field: &str, value: &str) -> Vec<Arc<Value>> {
        let Some(endpoint) = self.registry.hub(group, resource) else { return Vec::new() };
        let objects = &endpoint.storage.objects;
        let found = objects.list_by_field(field, value).unwrap_or_else(|| {
            let mut all = objects.list("");
            all.entries.retain(|e| e.field(field) == Some(value));
            all
        });
        found.entries.iter().map(|e| e.object()).collect()
    }

    fn revision(&self, group: &str, resource: &str) -> u64 {
        self.registry.hub(group, resource).map_or(0, |e| e.storage.objects.revision())
    }

    fn resource_of(&self, api_version: &str, kind: &str) -> Option<ResourceName> {
        let (group, version) = parse_api_version(api_version)?;
        let found = self.registry.scheme().by_kind(group, version, kind)?;
        Some(ResourceName {
            group: found.group.to_string(),
            resource: found.plural.to_string(),
            namespaced: found.namespaced,
        })
    }

    fn merged(&self, resource: (&str, &str, &str), object: &Value, config: &Value) -> Option<Value> {
        let found = self.registry.scheme().resource(resource.0, resource.1, resource.2)?;
        Some(typed::merge(fields::type_of(&found), object, config))
    }

    async fn in_version(
        &self,
        group: &str,
        resource: &str,
        mut object: Value,
        api_version: &str,
    ) -> Result<Value, Status> {
        let (_, version) = parse_api_version(api_version).unwrap_or(("", api_version));
        let own = str_at(&object, &["apiVersion"]).rsplit('/').next().unwrap_or("").to_string();
        let from = match own.as_str() {
            "" => self.registry.hub(group, resource),
            own => self.registry.endpoint(group, own, resource),
        };
        let Some(from) = from.filter(|e| e.resource.is_custom()) else {
            if let Some(target) = self.registry.endpoint(group, version, resource) {
                return Ok(versioned(&target, &object));
            }
            object["apiVersion"] = api_version.into();
            return Ok(object);
        };
        object = versioned(&from, &object);
        match from.storage.view() {
            Some(view) => view.convert(object, version).await,
            None => {
                object["apiVersion"] = api_version.into();
                Ok(object)
            }
        }
    }

    async fn catch_up(&self) -> Result<(), Status> {
        self.endpoint("", "namespaces")?.storage.catch_up().await.map(drop)
    }

    async fn get_latest(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, Status> {
        let endpoint = self.endpoint(group, resource)?;
        let entry = endpoint.storage.get(&key(namespace, name)).await?;
        entry.map(|e| e.object()).ok_or_else(|| Status::not_found(group, resource, name))
    }

    async fn create(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Arc<Value>, Status> {
        let endpoint = self.endpoint(group, resource)?;
        let context = self.registry.context(&endpoint.hub, "");
        let target =
            Target { endpoint: &endpoint, namespace, context: &context, special: self.special(), raw: None };
        let mut object = endpoint
            .hub
            .decode_value(fields::typed(&endpoint, Arc::new(object)), None)
            .map_err(|e| Status::internal(format!("{resource}: {e}")))?
            .object;
        endpoint.hub.to_hub(&mut object, &context);
        let mut object = fields::track(&self.registry.scheme(), &endpoint, "", None, object, MANAGER).await?;
        lifecycle::before_create(target, None, &mut object)?;
        let name = str_at(&object, &["metadata", "name"]).to_string();
        match create::store(target, object, false).await? {
            Some(done) => Ok(done.value()),
            None => Err(Status::already_exists(group, resource, &name)),
        }
    }

    async fn update(
        &self,
        group: &str,
        resource: &str,
        subresource: &'static str,
        namespace: &str,
        name: &str,
        change: &(dyn for<'a> Fn(&'a mut Value) -> Result<(), Status> + Send + Sync),
    ) -> Result<Arc<Value>, Status> {
        let endpoint = self.endpoint(group, resource)?;
        let context = self.registry.context(&endpoint.hub, subresource);
        let target =
            Target { endpoint: &endpoint, namespace, context: &context, special: self.special(), raw: None };
        let mut attempt = endpoint.storage.attempt(&key(namespace, name)).await?;
        loop {
            let Some(current) = attempt.current().cloned() else {
                if attempt.refresh().await? {
                    continue;
                }
                return Err(Status::not_found(group, resource, name));
            };
            let old = fields::typed(&endpoint, current.object());
            let step = async {
                let mut object = old.clone();
                change(&mut object)?;
                let scheme = self.registry.scheme();
                let mut object =
                    fields::track(&scheme, &endpoint, subresource, Some(&old), object, MANAGER).await?;
                lifecycle::before_update(target, &mut object, &old)?;
                update::commit(target, &mut attempt, &old, object, false).await
            };
            match step.await {
                Ok(update::Step::Done(Object::Entry(entry))) => return Ok(entry.object()),
                Ok(update::Step::Done(Object::Value(value))) => return Ok(value),
                Ok(update::Step::Again) => {}
                Err(failure) => {
                    if !attempt.refresh().await? {
                        return Err(failure);
                    }
                }
            }
        }
    }

    async fn delete(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        options: Value,
    ) -> Result<(), Status> {
        let endpoint = self.endpoint(group, resource)?;
        let options = DeleteOptions::from_value(&options)?;
        let mut attempt = endpoint.storage.attempt(&key(namespace, name)).await?;
        loop {
            let Some(current) = attempt.current().cloned() else {
                if attempt.refresh().await? {
                    continue;
                }
                return Err(Status::not_found(group, resource, name));
            };
            let old = current.object();
            let step = async {
                delete::preconditions(&endpoint, name, &old, &options)?;
                let plan = delete::plan(&endpoint, &old, &options);
                delete::carry_out(&mut attempt, &current, plan, options.dry_run).await
            };
            match step.await {
                Ok(Some(Deleted::Gone(object))) => {
                    if let Some(hook) = self.special().hook_of(group, resource) {
                        hook.after_delete(&object.value()).await;
                    }
                    return Ok(());
                }
                Ok(Some(Deleted::Marked(_))) => return Ok(()),
                Ok(None) => {}
                Err(failure) => {
                    if !attempt.refresh().await? {
                        return Err(failure);
                    }
                }
            }
        }
    }
}
