//! A world of objects in memory, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use pilothouse_api::apply::typed;
use pilothouse_api::scheme::Scheme;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::NEWEST;

use crate::json::{get, str_at};
use crate::request::{Objects, ResourceName};

type Key = (String, String, String, String);

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    revisions: BTreeMap<(String, String), u64>,
    revision: u64,
}

/// Objects in memory: no defaults, no validation, immediate deletion.
#[derive(Default)]
pub struct FakeObjects(Mutex<State>);

fn key(group: &str, resource: &str, namespace: &str, name: &str) -> Key {
    (group.into(), resource.into(), namespace.into(), name.into())
}

impl State {
    fn write(&mut self, group: &str, resource: &str, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        let n = self.revision;
        object["metadata"]["resourceVersion"] = json!(n.to_string());
        if str_at(&object, &["metadata", "uid"]).is_empty() {
            object["metadata"]["uid"] = json!(format!("uid-{n}"));
        }
        self.revisions.insert((group.into(), resource.into()), n);
        let k = key(
            group,
            resource,
            str_at(&object, &["metadata", "namespace"]),
            str_at(&object, &["metadata", "name"]),
        );
        let object = Arc::new(object);
        self.objects.insert(k, object.clone());
        object
    }
}

impl FakeObjects {
    /// Puts an object, whether or not there is one.
    pub fn put(&self, group: &str, resource: &str, object: Value) {
        self.0.lock().write(group, resource, object);
    }

    /// Removes an object.
    pub fn remove(&self, group: &str, resource: &str, namespace: &str, name: &str) {
        let mut s = self.0.lock();
        s.objects.remove(&key(group, resource, namespace, name));
        s.revision += 1;
        let n = s.revision;
        s.revisions.insert((group.into(), resource.into()), n);
    }
}

#[async_trait]
impl Objects for FakeObjects {
    fn merged(&self, resource: (&str, &str, &str), object: &Value, config: &Value) -> Option<Value> {
        let scheme = Scheme::new(NEWEST);
        let found = scheme.resource(resource.0, resource.1, resource.2)?;
        Some(typed::merge(crate::fields::type_of(&found), object, config))
    }

    fn resource_of(&self, api_version: &str, kind: &str) -> Option<ResourceName> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let resource = format!("{}s", kind.to_lowercase());
        Some(ResourceName { group: group.into(), resource, namespaced: true })
    }

    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.0.lock().objects.get(&key(group, resource, namespace, name)).cloned()
    }

    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<Value>> {
        let s = self.0.lock();
        let mine = s.objects.iter().filter(|((g, r, n, _), _)| {
            g == group && r == resource && (namespace.is_empty() || n == namespace)
        });
        mine.map(|(_, v)| v.clone()).collect()
    }

    fn list_by_field(&self, group: &str, resource: &str, field: &str, value: &str) -> Vec<Arc<Value>> {
        let path: Vec<&str> = field.split('.').collect();
        self.list(group, resource, "").into_iter().filter(|v| get(v, &path).as_str() == Some(value)).collect()
    }

    fn revision(&self, group: &str, resource: &str) -> u64 {
        self.0.lock().revisions.get(&(group.to_string(), resource.to_string())).copied().unwrap_or(0)
    }

    async fn get_latest(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, Status> {
        self.get(group, resource, namespace, name).ok_or_else(|| Status::not_found(group, resource, name))
    }

    async fn create(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        mut object: Value,
    ) -> Result<Arc<Value>, Status> {
        if !namespace.is_empty() {
            object["metadata"]["namespace"] = json!(namespace);
        }
        let mut s = self.0.lock();
        let name = str_at(&object, &["metadata", "name"]).to_string();
        if s.objects.contains_key(&key(group, resource, namespace, &name)) {
            return Err(Status::already_exists(group, resource, &name));
        }
        Ok(s.write(group, resource, object))
    }

    async fn update(
        &self,
        group: &str,
        resource: &str,
        _subresource: &'static str,
        namespace: &str,
        name: &str,
        change: &(dyn for<'a> Fn(&'a mut Value) -> Result<(), Status> + Send + Sync),
    ) -> Result<Arc<Value>, Status> {
        let mut s = self.0.lock();
        let old = s.objects.get(&key(group, resource, namespace, name)).cloned();
        let old = old.ok_or_else(|| Status::not_found(group, resource, name))?;
        let mut new = (*old).clone();
        change(&mut new)?;
        Ok(if new == *old { old } else { s.write(group, resource, new) })
    }

    async fn delete(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        _options: Value,
    ) -> Result<(), Status> {
        if self.get(group, resource, namespace, name).is_none() {
            return Err(Status::not_found(group, resource, name));
        }
        self.remove(group, resource, namespace, name);
        Ok(())
    }
}
