//! What the parts of the API server say to each other about a request.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use pilothouse_apimachinery::status::Status;
use serde_json::Value;

/// Who asks. Field meanings: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/>.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    /// User name, such as `system:node:node01`.
    pub name: String,
    /// Stable identifier, may be empty.
    pub uid: String,
    /// Groups, such as `system:masters`.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a request's path and method say. Built once per request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// Whether it is about an API resource (below `/api/v1` or `/apis/<group>/<version>`).
    pub is_resource: bool,
    /// The whole path.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; the lower-case
    /// method for a path that is no resource.
    pub verb: String,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, empty for cluster-wide.
    pub namespace: String,
    /// Plural resource.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Object's name.
    pub name: String,
    /// What stands behind the subresource (proxy paths).
    pub rest: String,
}

/// What an authorizer is asked.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    /// Who.
    pub user: &'a UserInfo,
    /// What.
    pub request: &'a RequestInfo,
}

/// What an authorizer answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes, and no other authorizer is asked.
    Allow,
    /// No, and no other authorizer is asked. With the reason.
    Deny(String),
    /// Ask the next one. With the reason.
    NoOpinion(String),
}

/// Decides who may do what.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// Decides.
    async fn authorize(&self, attributes: Attributes<'_>) -> Decision;

    /// The rules that apply to a user in a namespace: resource rules, non-resource rules, whether that is all.
    /// For `SelfSubjectRulesReview`.
    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Value>, Vec<Value>, bool);
}

/// The operation that admission looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A change of an object or subresource.
    Update,
    /// A deletion.
    Delete,
    /// exec, attach, port-forward, proxy.
    Connect,
}

/// A request as admission plug-ins see it. Objects are in the resource's hub version.
#[derive(Debug, Clone)]
pub struct AdmissionRequest {
    /// Who.
    pub user: UserInfo,
    /// Group, version, plural of the request.
    pub group: String,
    /// Version of the request.
    pub version: String,
    /// Plural resource.
    pub resource: String,
    /// Kind.
    pub kind: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace, empty for cluster-wide.
    pub namespace: String,
    /// Name; empty on a create with `generateName`.
    pub name: String,
    /// Operation.
    pub operation: Operation,
    /// The object as it would be stored; `Null` on delete.
    pub object: Value,
    /// The object as it is stored; `Null` on create.
    pub old_object: Value,
    /// CreateOptions, UpdateOptions, DeleteOptions; for connect, the connection's options.
    pub options: Value,
    /// Whether nothing will be stored.
    pub dry_run: bool,
}

/// An admission plug-in (<https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>).
#[async_trait]
pub trait Plugin: Send + Sync {
    /// Its name, as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    /// Changes the object, or refuses.
    async fn admit(&self, _request: &mut AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        Ok(())
    }

    /// Refuses, or not. Runs when all plug-ins have had their changes and the object has been validated.
    async fn validate(&self, _request: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        Ok(())
    }
}

/// How the API server's own parts (plug-ins, authorizers, allocators, reconcilers) read and write objects: the same
/// path as requests take, without HTTP, authorization and admission. Objects are in the hub version; resources are
/// named as in the store (`pods`, `roles` with group `rbac.authorization.k8s.io`).
#[async_trait]
pub trait Objects: Send + Sync {
    /// An object from the watch cache.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// All objects of a namespace (`""` for all namespaces) from the watch cache.
    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<Value>>;

    /// Like [`Objects::get`], but at least as new as every write that returned before the call.
    async fn get_latest(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Result<Arc<Value>, Status>;

    /// Creates an object: defaults, validation, store.
    async fn create(&self, group: &str, resource: &str, namespace: &str, object: Value) -> Result<Arc<Value>, Status>;

    /// Reads, changes and writes an object, again when somebody else was faster. `change` may run several times.
    async fn update(
        &self,
        group: &str,
        resource: &str,
        subresource: &'static str,
        namespace: &str,
        name: &str,
        change: &(dyn for<'a> Fn(&'a mut Value) -> Result<(), Status> + Send + Sync),
    ) -> Result<Arc<Value>, Status>;

    /// Deletes an object, with `DeleteOptions` (`Null` for none).
    async fn delete(&self, group: &str, resource: &str, namespace: &str, name: &str, options: Value) -> Result<(), Status>;
}
