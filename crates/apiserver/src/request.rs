//! What the parts of the API server say to each other about a request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use crate::admission::reinvocation::Reinvocation;

/// The body of a response: bytes or a stream.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A response.
pub type Response = http::Response<Body>;

/// A body of bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The largest body of a request, in bytes, as in Kubernetes.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

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

/// The connection that a request came on.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The client's address.
    pub peer: SocketAddr,
    /// The server's own address on this connection.
    pub local: SocketAddr,
    /// The client's certificate chain, DER, leaf first; empty where it sent none. Not yet verified.
    pub certificates: Arc<Vec<Bytes>>,
}

/// Everything about a request but its body. Built once, passed on.
#[derive(Debug)]
pub struct RequestContext {
    /// What the path says.
    pub info: RequestInfo,
    /// Who asks, impersonation applied.
    pub user: UserInfo,
    /// Who asked really, where somebody is impersonated.
    pub impersonator: Option<UserInfo>,
    /// Method, URI, headers, extensions (`hyper::upgrade::OnUpgrade` is among these).
    pub parts: http::request::Parts,
    /// Decoded query parameters, in the order given.
    pub query: Vec<(String, String)>,
    /// The connection.
    pub connection: Connection,
    /// `Audit-ID`.
    pub audit_id: String,
    /// Texts for `Warning: 299 - "..."` headers.
    pub warnings: Mutex<Vec<String>>,
    /// Annotations for the audit record (`authorization.k8s.io/decision` and the like).
    pub annotations: Mutex<BTreeMap<String, String>>,
    /// What the handlers tell the audit log about bodies.
    pub audited: Mutex<AuditedBodies>,
}

/// Bodies for the audit log, kept only where its level asks for them.
#[derive(Debug, Default)]
pub struct AuditedBodies {
    /// Whether the request's body is to be kept.
    pub keep_request: bool,
    /// Whether the response's body is to be kept.
    pub keep_response: bool,
    /// The request's body (JSON).
    pub request: Option<Bytes>,
    /// The response's body (JSON).
    pub response: Option<Bytes>,
}

impl RequestContext {
    /// A query parameter's first value.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// All values of a query parameter.
    pub fn params<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// A header as text; `""` where it is missing or no text.
    pub fn header(&self, name: impl http::header::AsHeaderName) -> &str {
        self.parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }

    /// A context of a request without a user, for tests.
    #[cfg(test)]
    pub(crate) fn for_test(method: &str, uri: &str) -> RequestContext {
        let request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
        let parts = request.into_parts().0;
        let query = crate::request_info::parse_query(parts.uri.query().unwrap_or(""));
        let info = crate::request_info::request_info(&parts.method, parts.uri.path(), &query).unwrap();
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        RequestContext {
            info,
            user: UserInfo::default(),
            impersonator: None,
            parts,
            query,
            connection: Connection { peer: any, local: any, certificates: Arc::default() },
            audit_id: String::new(),
            warnings: Mutex::default(),
            annotations: Mutex::default(),
            audited: Mutex::default(),
        }
    }

    /// Adds a text for the `Warning` header, once.
    pub fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }
}

/// The body of a request, not read yet.
pub struct RequestBody(Body);

impl RequestBody {
    /// Wraps a body.
    pub fn new<B>(body: B) -> RequestBody
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        RequestBody(body.map_err(Into::into).boxed_unsync())
    }

    /// Reads the body to its end; 413 where it is over [`MAX_BODY`].
    pub async fn collect(mut self) -> Result<Bytes, Status> {
        let mut parts: Vec<Bytes> = Vec::new();
        let mut size = 0;
        while let Some(frame) = self.0.frame().await {
            let frame = frame.map_err(|e| Status::bad_request(e.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            size += data.len();
            match size {
                0..=MAX_BODY => parts.push(data),
                // Who is still sending does not read: a little more is taken, so that the answer gets there.
                _ if size <= 2 * MAX_BODY => parts.clear(),
                _ => break,
            }
        }
        if size > MAX_BODY {
            return Err(Status::too_large(format!("limit is {MAX_BODY}")));
        }
        // Most bodies come in one piece, which is passed on as it is.
        Ok(match parts.len() {
            1 => parts.swap_remove(0),
            _ => parts.concat().into(),
        })
    }

    /// The body as a stream, for proxies.
    pub fn into_body(self) -> Body {
        self.0
    }
}

/// Finds out who asks.
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// The user; `None` where the request carries no credentials that this authenticator knows. The error of bad
    /// credentials is [`Status::unauthorized`].
    async fn authenticate(
        &self,
        parts: &http::request::Parts,
        connection: &Connection,
    ) -> Result<Option<UserInfo>, Status>;

    /// Whose a bearer token is, and for which of the `audiences` it is good (empty: this server's own). For
    /// `TokenReview`. The error is the text that the review shows.
    async fn review_token(
        &self,
        _token: &str,
        _audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), String> {
        Err("invalid bearer token".into())
    }
}

/// How much of a request the audit log keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuditLevel {
    /// Nothing.
    None,
    /// Who, what, when.
    Metadata,
    /// And the request's body.
    Request,
    /// And the response's body.
    RequestResponse,
}

/// Where a request is when it is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditStage {
    /// Before it is handled.
    RequestReceived,
    /// Headers of a long-running response are out.
    ResponseStarted,
    /// All is done.
    ResponseComplete,
}

/// The audit log.
pub trait Audit: Send + Sync {
    /// How much is to be kept of a request.
    fn level(&self, user: &UserInfo, request: &RequestInfo) -> AuditLevel;

    /// Records a stage. `code` is 0 before there is a response.
    fn record(
        &self,
        level: AuditLevel,
        stage: AuditStage,
        context: &RequestContext,
        received: jiff::Timestamp,
        code: u16,
    );
}

/// Undoes or confirms what a [`StorageHook`] has done, once the store has answered: `true` means stored.
pub type Settle = Box<dyn FnOnce(bool) + Send>;

/// A write as a [`StorageHook`] sees it.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// The stored object; `None` on create.
    pub old: Option<&'a Value>,
    /// Subresource, `""` for the object itself.
    pub subresource: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Nothing will be stored.
    pub dry_run: bool,
}

/// What a resource does around the store beyond what its kind says: allocates and releases. Called after validation,
/// before the store is written, and again when a write is tried again.
#[async_trait]
pub trait StorageHook: Send + Sync {
    /// Before a create or update. What it changes in `object` is stored, and is in nobody's managed fields.
    async fn before_write(&self, write: Write<'_>, object: &mut Value) -> Result<Option<Settle>, Status>;

    /// After an object has gone from the store.
    async fn after_delete(&self, object: &Value);
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

    /// Why a request that is allowed is allowed, for access reviews; may be empty.
    async fn explain(&self, _attributes: Attributes<'_>) -> String {
        String::new()
    }

    /// The rules that apply to a user in a namespace: resource rules, non-resource rules, whether that is all.
    /// For `SelfSubjectRulesReview`.
    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Value>, Vec<Value>, bool);
}

/// The operation that admission looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

impl Operation {
    /// As Kubernetes writes it: `CREATE`.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
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
    /// What the client is to be told beside the answer.
    pub warnings: Warnings,
    /// Who is asked again as the object has been changed.
    pub reinvocation: Reinvocation,
}

/// Texts for `Warning` headers and annotations of the audit record, as plug-ins collect them.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>, Arc<Mutex<BTreeMap<String, String>>>);

impl Warnings {
    /// Adds one.
    pub fn add(&self, text: &str) {
        self.0.lock().push(text.to_string());
    }

    /// Takes all texts.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }

    /// Adds an annotation for the audit record.
    pub fn annotate(&self, key: &str, value: &str) {
        self.1.lock().insert(key.to_string(), value.to_string());
    }

    /// Takes all annotations.
    pub fn take_annotations(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut *self.1.lock())
    }
}

/// The changing part of an admission plug-in
/// (<https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>).
#[async_trait]
pub trait Mutation: Send + Sync {
    /// Changes the object, or refuses. Runs twice where a webhook or policy has changed the object.
    async fn admit(&self, request: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status>;
}

/// The checking part of an admission plug-in.
#[async_trait]
pub trait Validation: Send + Sync {
    /// Refuses, or not. Runs when all plug-ins have had their changes and the object has been validated.
    async fn validate(&self, request: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status>;
}

/// A resource by its names in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceName {
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
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

    /// Objects of all namespaces with a value of a selectable field (`pods` by `spec.nodeName`) from the watch cache.
    fn list_by_field(&self, group: &str, resource: &str, field: &str, value: &str) -> Vec<Arc<Value>>;

    /// The store's revision at which an object of the resource last changed, as far as the cache knows: tells whether
    /// something derived from the objects is still good.
    fn revision(&self, group: &str, resource: &str) -> u64;

    /// The resource of a kind, if it is served in that version.
    fn resource_of(&self, _api_version: &str, _kind: &str) -> Option<ResourceName> {
        None
    }

    /// An object of a resource (from [`Objects::get`], or in the version that its `apiVersion` names) in another
    /// version.
    async fn in_version(
        &self,
        _group: &str,
        _resource: &str,
        mut object: Value,
        api_version: &str,
    ) -> Result<Value, Status> {
        object["apiVersion"] = api_version.into();
        Ok(object)
    }

    /// What an apply of `config` makes of an object, by the rules of its type for lists and maps; none where the
    /// resource (group, version, plural) is not there.
    fn merged(&self, _resource: (&str, &str, &str), _object: &Value, _config: &Value) -> Option<Value> {
        None
    }

    /// Waits until the watch cache holds every write that returned before the call.
    async fn catch_up(&self) -> Result<(), Status> {
        Ok(())
    }

    /// Like [`Objects::get`], but at least as new as every write that returned before the call.
    async fn get_latest(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, Status>;

    /// Creates an object: defaults, validation, store.
    async fn create(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        object: Value,
    ) -> Result<Arc<Value>, Status>;

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
    async fn delete(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        options: Value,
    ) -> Result<(), Status>;
}
