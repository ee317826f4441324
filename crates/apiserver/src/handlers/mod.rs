//! What the verbs do, for every resource alike.

pub mod create;
pub mod delete;
pub mod delete_collection;
pub mod lifecycle;
pub mod list;
pub mod patch;
pub mod read;
pub mod scale;
pub mod update;
pub mod version;
pub mod watch;
pub mod watcher;
pub mod websocket;

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use parking_lot::Mutex;
use pilothouse_api::decode::request::Media;
use pilothouse_api::kinds::Context;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use serde_json::value::RawValue;

use crate::deprecation;
use crate::encode::{Encoder, media_of};
use crate::fields;
use crate::negotiate;
pub use crate::options::FieldValidation;
use crate::raw;
use crate::registry::Endpoint;
use crate::request::{AdmissionRequest, Operation, RequestBody, RequestContext, Response};
use crate::respond;
use crate::state::ServerState;

/// One request for a resource.
pub struct Call {
    /// The server.
    pub state: Arc<ServerState>,
    /// The request.
    pub context: Arc<RequestContext>,
    /// The resource.
    pub endpoint: Endpoint,
    /// Namespace, empty for cluster-wide resources and all namespaces.
    pub namespace: String,
    /// Subresource, `""` for the object itself.
    pub subresource: &'static str,
    /// The text of the resource's raw field, if it has one and the body is JSON that holds it.
    pub raw: Mutex<Option<Box<RawValue>>>,
}

/// The names of subresources that generic handlers serve.
const SUBRESOURCES: &[&str] =
    &["", "status", "scale", "finalize", "approval", "ephemeralcontainers", "resize"];

impl Call {
    /// The object's name.
    pub fn name(&self) -> &str {
        &self.context.info.name
    }

    /// The object's key below the resource's own.
    pub fn key(&self) -> String {
        self.key_of(self.name())
    }

    /// The key of an object of the request's namespace.
    pub fn key_of(&self, name: &str) -> String {
        if self.namespace.is_empty() { name.to_string() } else { format!("{}/{name}", self.namespace) }
    }

    /// What kinds' functions need to know.
    pub fn kind_context(&self) -> Context {
        self.state.registry.context(&self.endpoint.resource, self.subresource)
    }

    /// What is written, for the functions that prepare and store it.
    pub fn target<'a>(&'a self, context: &'a Context, raw: Option<&'a RawValue>) -> lifecycle::Target<'a> {
        lifecycle::Target {
            endpoint: &self.endpoint,
            namespace: &self.namespace,
            context,
            special: &self.state.special,
            raw,
        }
    }

    /// Records in an object's `managedFields` what changes from `live` (both hub version, with their types) and by whom.
    pub async fn track(&self, live: Option<&Value>, object: Value, manager: &str) -> Result<Value, Status> {
        let scheme = self.state.registry.scheme();
        fields::track(&scheme, &self.endpoint, self.subresource, live, object, manager).await
    }

    /// 404 for the object.
    pub fn not_found(&self) -> Status {
        self.not_found_named(self.name())
    }

    /// 404 for an object of the resource.
    pub fn not_found_named(&self, name: &str) -> Status {
        Status::not_found(&self.endpoint.resource.group, &self.endpoint.resource.plural, name)
    }

    /// The form of the answer.
    pub fn encoder(&self) -> Result<Encoder, Status> {
        Encoder::new(&self.context, &self.endpoint)
    }

    /// An empty admission request.
    pub fn admission(
        &self,
        operation: Operation,
        name: &str,
        options: Value,
        dry_run: bool,
    ) -> AdmissionRequest {
        let r = &self.endpoint.resource;
        AdmissionRequest {
            user: self.context.user.clone(),
            group: r.group.to_string(),
            version: r.version.to_string(),
            resource: r.plural.to_string(),
            kind: r.kind.to_string(),
            subresource: self.subresource.to_string(),
            namespace: if &*r.plural == "namespaces" && r.group.is_empty() {
                self.context.info.namespace.clone()
            } else {
                self.namespace.clone()
            },
            name: name.to_string(),
            operation,
            object: Value::Null,
            old_object: Value::Null,
            options,
            dry_run,
            warnings: Default::default(),
            reinvocation: Default::default(),
        }
    }

    /// Lets the plug-ins change the object, or refuse it.
    pub async fn admit(&self, request: &mut AdmissionRequest) -> Result<(), Status> {
        let outcome = self.state.admission.admit(request, &*self.state.objects).await;
        self.note(request);
        outcome
    }

    /// Lets the plug-ins refuse the object.
    pub async fn validate(&self, request: &AdmissionRequest) -> Result<(), Status> {
        let outcome = self.state.admission.validate(request, &*self.state.objects).await;
        self.note(request);
        outcome
    }

    /// Passes on what the plug-ins have to say beside their decision.
    fn note(&self, request: &AdmissionRequest) {
        request.warnings.take().into_iter().for_each(|text| self.context.warn(text));
        self.context.annotations.lock().extend(request.warnings.take_annotations());
    }

    /// 415 where the body is in a form that the endpoint does not read.
    pub fn check_media(&self) -> Result<(), Status> {
        negotiate::body_media(self.context.header(header::CONTENT_TYPE), media_of(&self.endpoint)).map(|_| ())
    }

    /// Reads a body as an object of the endpoint in the version of the request; keeps it for the audit log.
    pub fn decode(&self, body: &Bytes, validation: FieldValidation) -> Result<Value, Status> {
        let media =
            negotiate::body_media(self.context.header(header::CONTENT_TYPE), media_of(&self.endpoint))?;
        let decoded = self.endpoint.resource.decode(body, media.decoder())?;
        self.field_faults(validation, decoded.faults, &decoded.object)?;
        let object = decoded.object;
        if let (Some(field), Media::Json) = (raw::field(&self.endpoint), media.decoder()) {
            *self.raw.lock() = raw::member(body, field);
        }
        self.note_request(|| serde_json::to_vec(&object).unwrap_or_default());
        Ok(object)
    }

    /// Warns of, or refuses, unknown and duplicate fields.
    pub fn field_faults(
        &self,
        validation: FieldValidation,
        mut faults: Vec<String>,
        object: &Value,
    ) -> Result<(), Status> {
        if validation == FieldValidation::Ignore {
            return Ok(());
        }
        let resource = &self.endpoint.resource;
        faults.extend(resource.unknown_fields(object));
        if faults.is_empty() {
            return Ok(());
        }
        if validation == FieldValidation::Strict {
            return Err(resource.strict_error(&faults));
        }
        faults.into_iter().for_each(|f| self.context.warn(f));
        Ok(())
    }

    /// Keeps the request's object for the audit log, where that asks for it.
    pub fn note_request(&self, json: impl FnOnce() -> Vec<u8>) {
        let mut audited = self.context.audited.lock();
        if audited.keep_request && audited.request.is_none() {
            audited.request = Some(json().into());
        }
    }
}

/// Which methods a path of a resource allows, as go-restful finds them: none where there is no such path.
fn allowed(endpoint: &Endpoint, context: &RequestContext) -> Option<Vec<Method>> {
    let (r, info) = (&endpoint.resource, &context.info);
    let is_namespace = r.group.is_empty() && &*r.plural == "namespaces";
    let in_namespace = !info.namespace.is_empty() && !is_namespace;
    if is_namespace && !info.namespace.is_empty() && info.name != info.namespace {
        return None;
    }
    let collection =
        matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") || info.name.is_empty();
    if in_namespace && !r.namespaced || (r.namespaced && !in_namespace && !collection) {
        return None;
    }
    let verbs: Vec<&str> = if info.subresource.is_empty() {
        r.verbs.to_vec()
    } else {
        r.subresource(&info.subresource)?.verbs.to_vec()
    };
    let everywhere = r.namespaced && !in_namespace;
    let method = |verb: &&str| match (*verb, collection) {
        ("list" | "watch", true) => Some(Method::GET),
        ("create", true) if !everywhere => Some(Method::POST),
        ("deletecollection", true) if !everywhere => Some(Method::DELETE),
        ("get", false) => Some(Method::GET),
        ("update", false) => Some(Method::PUT),
        ("patch", false) => Some(Method::PATCH),
        ("delete", false) => Some(Method::DELETE),
        ("create", false) if !info.subresource.is_empty() => Some(Method::POST),
        _ => None,
    };
    Some(verbs.iter().filter_map(method).collect())
}

/// Whether there are built-in kinds in a group.
pub fn knows_group(state: &ServerState, group: &str) -> bool {
    group.is_empty() || state.registry.scheme().resources().any(|r| &*r.group == group && !r.is_custom())
}

/// 404 for what is below `/apis` in a group that nobody serves: Go's own, without a Status.
pub fn nothing_here() -> Response {
    respond::text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Handles a request for a resource.
pub async fn handle(
    state: Arc<ServerState>,
    context: Arc<RequestContext>,
    body: RequestBody,
) -> Result<Response, Status> {
    let info = &context.info;
    if state.registry.scheme().resource(&info.group, &info.version, &info.resource).is_none() {
        return if knows_group(&state, &info.group) {
            Err(Status::no_such_path())
        } else {
            Ok(nothing_here())
        };
    }
    if let Some(special) = state.special.find(&info.group, &info.resource, &info.subresource, &info.verb) {
        return special(state.clone(), context.clone(), body).await;
    }
    let Some(endpoint) = state.registry.endpoint(&info.group, &info.version, &info.resource) else {
        // Known, but only answered by handlers of its own, which do not know this verb.
        return Err(negotiate::method_not_allowed());
    };
    let methods = allowed(&endpoint, &context).ok_or_else(Status::no_such_path)?;
    let method = &context.parts.method;
    if !methods.contains(method) || (info.verb == "watch" && *method != Method::GET) {
        return Err(if endpoint.resource.is_custom() {
            Status::method_not_supported(&endpoint.resource.group, &endpoint.resource.plural, &info.verb)
        } else {
            negotiate::method_not_allowed()
        });
    }
    if !endpoint.resource.is_custom() {
        if *method == Method::PATCH && !patch::route_accepts(context.header(header::CONTENT_TYPE)) {
            return Err(negotiate::unsupported_route());
        }
        if !negotiate::route_accepts(context.header(header::ACCEPT), media_of(&endpoint)) {
            return Err(negotiate::not_acceptable_route());
        }
    }
    let Some(subresource) = SUBRESOURCES.iter().find(|s| **s == info.subresource) else {
        return Err(negotiate::method_not_allowed());
    };
    let namespace = if endpoint.resource.namespaced { info.namespace.clone() } else { String::new() };
    if let Some(deprecated) = deprecation::deprecated(state.release, &endpoint.resource) {
        state.metrics.deprecated(info, deprecated.removed);
        context.warn(deprecated.warning);
    }
    let verb = info.verb.clone();
    let call = Call { state, context, endpoint, namespace, subresource, raw: Mutex::new(None) };
    match (verb.as_str(), call.subresource) {
        ("get", "scale") => scale::get(&call).await,
        ("update", "scale") => scale::update(&call, body).await,
        ("patch", "scale") => scale::patch(&call, body).await,
        ("get", _) => read::get(&call).await,
        ("list", _) => list::list(&call).await,
        ("watch", _) => watch::watch(&call).await,
        ("create", "") => create::create(&call, body).await,
        ("update", _) => update::update(&call, body).await,
        ("patch", _) => patch::patch(&call, body).await,
        ("delete", "") => delete::delete(&call, body).await,
        ("deletecollection", "") => delete_collection::delete_collection(&call, body).await,
        _ => Err(negotiate::method_not_allowed()),
    }
}
