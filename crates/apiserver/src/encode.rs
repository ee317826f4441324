//! Objects and lists in the form that a client has asked for.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::StatusCode;
use pilothouse_api::kinds::RowContext;
use pilothouse_api::protobuf;
use pilothouse_api::schema::Schema;
use pilothouse_api::scheme::{Resource, partial_metadata};
use pilothouse_api::table::{self, IncludeObject};
use pilothouse_apimachinery::json::{self, Value, json};
use pilothouse_apimachinery::status::Status;

use crate::cache::entry::{Entry, FormKey, Part};
use crate::handlers::watcher::{EventEncoder, EventType};
use crate::negotiate::{self, Media, Negotiated, Shape};
use crate::registry::Endpoint;
use crate::request::{RequestContext, Response};
use crate::respond;
use crate::storage::with_type;

/// Metadata of a list.
#[derive(Debug, Clone, Default)]
pub struct ListMeta {
    /// Resource version, `""` for none.
    pub resource_version: String,
    /// Token for the next page, `""` on the last one.
    pub continue_token: String,
    /// How many objects come after this page, where that is known.
    pub remaining: Option<usize>,
}

impl ListMeta {
    /// As lists of an endpoint have it: those of custom resources show an empty token, too.
    fn of_list(&self, custom: bool) -> Value {
        let mut v = self.to_value();
        if custom && self.continue_token.is_empty() {
            v["continue"] = json!("");
        }
        v
    }

    fn to_value(&self) -> Value {
        let mut v = json!({});
        if !self.resource_version.is_empty() {
            v["resourceVersion"] = json!(self.resource_version);
        }
        if !self.continue_token.is_empty() {
            v["continue"] = json!(self.continue_token);
        }
        if let Some(n) = self.remaining {
            v["remainingItemCount"] = json!(n);
        }
        v
    }
}

/// What an answer consists of: an object from the cache or store, or one that is only computed.
#[derive(Debug, Clone)]
pub enum Object {
    /// With its bytes.
    Entry(Arc<Entry>),
    /// In the hub version.
    Value(Arc<Value>),
}

impl Object {
    /// The object in the hub version.
    pub fn value(&self) -> Arc<Value> {
        match self {
            Object::Entry(e) => e.object(),
            Object::Value(v) => v.clone(),
        }
    }
}

/// What rows of a table are to hold; only asked where a table is.
fn include(context: &RequestContext, shape: Shape) -> Result<IncludeObject, Status> {
    let given = context.param("includeObject").unwrap_or("");
    match IncludeObject::parse(given) {
        Some(include) => Ok(include),
        None if !matches!(shape, Shape::Table(_)) => Ok(IncludeObject::default()),
        None => Err(Status::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Invalid value: {given:?}: must be 'Metadata', 'Object', 'None', or empty"
        ))),
    }
}

/// The name of a kind's type in Kubernetes, where it works on it: `core.Pod`.
fn go_type(resource: &Resource, kind: &str) -> String {
    if resource.is_custom() {
        let list = if kind.ends_with("List") { "UnstructuredList" } else { "Unstructured" };
        return format!("unstructured.{list}");
    }
    let package = match resource.group.split('.').next().unwrap_or("") {
        "" | "events" => "core",
        "extensions" => "networking",
        package => package,
    };
    format!("{package}.{kind}")
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Makes answers of an endpoint's objects for one request.
pub struct Encoder {
    endpoint: Endpoint,
    form: Negotiated,
    include: IncludeObject,
}

impl Encoder {
    /// Negotiates the form of a request's answer.
    pub fn new(context: &RequestContext, endpoint: &Endpoint) -> Result<Encoder, Status> {
        let accept = context.header(http::header::ACCEPT);
        let accepted = media_of(endpoint);
        let mut form = negotiate::negotiate(accept, accepted, true)?;
        form.pretty = form.pretty || respond::pretty(context);
        Ok(Encoder { endpoint: endpoint.clone(), form, include: include(context, form.shape)? })
    }

    /// Negotiates for a watch.
    pub fn for_watch(context: &RequestContext, endpoint: &Endpoint) -> Result<Encoder, Status> {
        let encoder = Self::new(context, endpoint)?;
        if encoder.form.media == Media::Yaml {
            return Err(negotiate::not_acceptable(&[Media::Json, Media::Protobuf]));
        }
        Ok(encoder)
    }

    /// Content type of a watch.
    pub fn watch_content_type(&self) -> &'static str {
        match self.form.media {
            Media::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
            _ => "application/json",
        }
    }

    /// Content type of objects.
    pub fn content_type(&self) -> &'static str {
        self.form.media.name()
    }

    /// This form's name among those kept beside an object.
    fn key(&self, part: Part) -> FormKey {
        let Negotiated { media, shape, .. } = self.form;
        FormKey { media, shape, part, api_version: self.endpoint.resource.api_version.clone() }
    }

    fn api_version(&self) -> &str {
        &self.endpoint.resource.api_version
    }

    fn kind(&self) -> &str {
        &self.endpoint.resource.kind
    }

    /// The object in the version of the request, with `apiVersion` and `kind`.
    pub fn versioned(&self, object: &Value) -> Value {
        versioned(&self.endpoint, object)
    }

    /// JSON of an object of the cache, with `apiVersion` and `kind`, as a form shared by all who ask.
    fn json_of(&self, entry: &Entry, revision: u64) -> Result<Bytes, Status> {
        if self.endpoint.resource.same_as_hub() {
            return Ok(with_type(self.kind(), self.api_version(), &entry.body_at(revision)));
        }
        let make = || -> Result<Bytes, Status> {
            let mut v = self.versioned(&entry.object());
            v["metadata"]["resourceVersion"] = json!(revision.to_string());
            Ok(json::to_vec(&v).into())
        };
        if revision == entry.revision { entry.form(&self.key(Part::Object), make) } else { make() }
    }

    /// JSON of an item of a list: built-in kinds leave out what the list's own kind says.
    fn item_of(&self, entry: &Entry) -> Result<Bytes, Status> {
        if self.endpoint.resource.is_custom() {
            return self.json_of(entry, entry.revision);
        }
        if self.endpoint.resource.same_as_hub() {
            return Ok(entry.body().clone());
        }
        entry.form(&self.key(Part::Item), || {
            let mut v = self.versioned(&entry.object());
            strip_type(&mut v);
            Ok(json::to_vec(&v).into())
        })
    }

    /// An answer of one object.
    pub fn object(&self, code: StatusCode, object: &Object) -> Result<Response, Status> {
        if let Shape::MetadataList(_) = self.form.shape {
            let type_ = go_type(&self.endpoint.resource, self.kind());
            return Err(Status::failure(
                406,
                "NotAcceptable",
                format!(
                    "you requested PartialObjectMetadataList, but the requested object is not a list (*{type_})"
                ),
            ));
        }
        let body: Bytes = match (self.form.media, self.form.shape, object) {
            (Media::Json, Shape::Object, Object::Entry(e)) if !self.form.pretty => {
                let mut body = self.json_of(e, e.revision)?.to_vec();
                body.push(b'\n');
                body.into()
            }
            (Media::Protobuf, Shape::Object, Object::Entry(e)) => self.protobuf_of(e)?,
            (Media::Protobuf, Shape::Object, Object::Value(v)) => self.to_protobuf(&self.versioned(v))?,
            (Media::Protobuf, ..) => self.meta_protobuf(&self.metadata(&object.value()), true)?,
            (media, shape, _) => {
                let value = object.value();
                let shown = match shape {
                    Shape::Object => self.versioned(&value),
                    Shape::Metadata(_) | Shape::MetadataList(_) => self.metadata(&value),
                    Shape::Table(_) => {
                        let meta = ListMeta {
                            resource_version: text(&value, "/metadata/resourceVersion"),
                            ..ListMeta::default()
                        };
                        self.table(&meta, std::slice::from_ref(&value), true)
                    }
                };
                self.document(media, &shown)
            }
        };
        Ok(respond::bytes(code, self.content_type(), body))
    }

    fn document(&self, media: Media, value: &Value) -> Bytes {
        match media {
            Media::Yaml => serde_yaml_ng::to_string(value).unwrap_or_default().into_bytes().into(),
            _ => respond::json_text(value, self.form.pretty).into(),
        }
    }

    fn protobuf_of(&self, entry: &Entry) -> Result<Bytes, Status> {
        entry.form(&self.key(Part::Object), || self.to_protobuf(&self.versioned(&entry.object())))
    }

    fn to_protobuf(&self, versioned: &Value) -> Result<Bytes, Status> {
        self.endpoint.resource.to_protobuf(versioned).map(Bytes::from).map_err(Status::internal)
    }

    /// `PartialObjectMetadata` as protobuf, with or without the envelope.
    fn meta_protobuf(&self, value: &Value, sealed: bool) -> Result<Bytes, Status> {
        let schema = self.meta_schema("PartialObjectMetadata")?;
        Ok(if sealed { protobuf::encode(schema, value) } else { protobuf::encode_message(schema, value) }
            .into())
    }

    fn meta_schema(&self, name: &str) -> Result<Schema, Status> {
        Schema::meta(self.endpoint.resource.release, name)
            .ok_or_else(|| Status::internal(format!("no type {name}")))
    }

    /// `v1` or `v1beta1` of `meta.k8s.io`.
    fn meta_version(&self) -> &'static str {
        self.form.shape.meta_version().trim_start_matches("meta.k8s.io/")
    }

    /// `PartialObjectMetadata` of an object.
    fn metadata(&self, object: &Value) -> Value {
        let mut metadata = partial_metadata(object, self.meta_version());
        internal_metadata(&self.endpoint.resource, Some(&mut metadata));
        metadata
    }

    /// A table of objects; the columns are only described where `headers` is set.
    fn table(&self, meta: &ListMeta, objects: &[Arc<Value>], headers: bool) -> Value {
        let context = RowContext { now: now() };
        let resource = &self.endpoint.resource;
        let row = |o: &Arc<Value>| match self.include {
            IncludeObject::None | IncludeObject::Metadata => {
                let mut row = table::row(resource, o, o, self.include, self.meta_version(), &context);
                internal_metadata(resource, row.get_mut("object"));
                row
            }
            IncludeObject::Object => {
                table::row(resource, o, &self.versioned(o), self.include, self.meta_version(), &context)
            }
        };
        let rows = objects.iter().map(row).collect();
        table::table(resource, meta.to_value(), rows, self.meta_version(), headers)
    }

    /// An answer of a list.
    pub fn list(
        &self,
        context: &RequestContext,
        meta: &ListMeta,
        entries: &[Arc<Entry>],
    ) -> Result<Response, Status> {
        let resource = &self.endpoint.resource;
        if let Shape::Metadata(_) = self.form.shape {
            let type_ = go_type(resource, &resource.list_kind);
            return Err(Status::failure(
                406,
                "NotAcceptable",
                format!("you requested PartialObjectMetadata, but the requested object is a list (*{type_})"),
            ));
        }
        let partial = ListMeta { remaining: None, ..meta.clone() };
        let meta = if let Shape::MetadataList(_) = self.form.shape { &partial } else { meta };
        match (self.form.media, self.form.shape) {
            (Media::Json, Shape::Object) if !self.form.pretty => {
                let head = format!(
                    "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
                    resource.list_kind,
                    self.api_version(),
                    meta.of_list(resource.is_custom())
                );
                self.joined(context, head, entries, |e| self.item_of(e))
            }
            (Media::Json, Shape::MetadataList(_)) if !self.form.pretty && entries.is_empty() => {
                let list = json!({"kind": "PartialObjectMetadataList", "apiVersion": self.form.shape.meta_version(),
                    "metadata": meta.to_value(), "items": null});
                Ok(respond::parts(context, self.content_type(), vec![self.document(Media::Json, &list)]))
            }
            (Media::Json, Shape::MetadataList(_)) if !self.form.pretty => {
                let head = format!(
                    "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
                    self.form.shape.meta_version(),
                    meta.to_value()
                );
                self.joined(context, head, entries, |e| self.metadata_of(e))
            }
            (Media::Protobuf, shape) => {
                let mut items = Vec::with_capacity(entries.len());
                for e in entries {
                    items.push(match shape {
                        Shape::Object => e.form(&self.key(Part::Item), || {
                            let message = resource.to_protobuf_message(&self.versioned(&e.object()));
                            message.map(Bytes::from).map_err(Status::internal)
                        })?,
                        _ => entry_form(e, &self.key(Part::Item), || {
                            self.meta_protobuf(&self.metadata(&e.object()), false)
                        })?,
                    });
                }
                let items = items.iter().map(|i| &**i);
                let body = match shape {
                    Shape::Object => resource.list_to_protobuf(&meta.to_value(), items),
                    shape => protobuf::encode_list(
                        resource.release,
                        shape.meta_version(),
                        "PartialObjectMetadataList",
                        &meta.to_value(),
                        items,
                    ),
                };
                Ok(respond::parts(context, self.content_type(), vec![body.into()]))
            }
            (media, shape) => {
                let objects: Vec<Arc<Value>> = entries.iter().map(|e| e.object()).collect();
                let shown = match shape {
                    Shape::Table(_) => self.table(meta, &objects, true),
                    _ => {
                        let (kind, version) = match shape {
                            Shape::Object => (&*resource.list_kind, self.api_version()),
                            shape => ("PartialObjectMetadataList", shape.meta_version()),
                        };
                        let items: Vec<Value> = objects
                            .iter()
                            .map(|o| match shape {
                                Shape::Object => {
                                    let mut v = self.versioned(o);
                                    if !resource.is_custom() {
                                        strip_type(&mut v);
                                    }
                                    v
                                }
                                _ => self.metadata(o),
                            })
                            .collect();
                        let custom = shape == Shape::Object && resource.is_custom();
                        json!({"kind": kind, "apiVersion": version, "metadata": meta.of_list(custom), "items": items})
                    }
                };
                Ok(respond::parts(context, self.content_type(), vec![self.document(media, &shown)]))
            }
        }
    }

    fn joined(
        &self,
        context: &RequestContext,
        head: String,
        entries: &[Arc<Entry>],
        item: impl Fn(&Arc<Entry>) -> Result<Bytes, Status>,
    ) -> Result<Response, Status> {
        let mut parts = Vec::with_capacity(entries.len() * 2 + 2);
        parts.push(Bytes::from(head));
        for (i, e) in entries.iter().enumerate() {
            if i > 0 {
                parts.push(Bytes::from_static(b","));
            }
            parts.push(item(e)?);
        }
        parts.push(Bytes::from_static(b"]}\n"));
        Ok(respond::parts(context, self.content_type(), parts))
    }

    /// The metadata of an item of a `PartialObjectMetadataList`, JSON.
    fn metadata_of(&self, entry: &Entry) -> Result<Bytes, Status> {
        entry_form(entry, &self.key(Part::Item), || Ok(json::to_vec(&self.metadata(&entry.object())).into()))
    }

    fn event(&self, type_: EventType, object: Bytes) -> Result<Bytes, Status> {
        Ok(match self.form.media {
            Media::Protobuf => protobuf::watch_frame(type_.name(), &object).into(),
            _ => {
                let mut out = Vec::with_capacity(object.len() + 32);
                out.extend_from_slice(b"{\"type\":\"");
                out.extend_from_slice(type_.name().as_bytes());
                out.extend_from_slice(b"\",\"object\":");
                out.extend_from_slice(object.strip_suffix(b"\n").unwrap_or(&object));
                out.extend_from_slice(b"}\n");
                out.into()
            }
        })
    }
}

fn entry_form(
    entry: &Entry,
    key: &FormKey,
    make: impl FnOnce() -> Result<Bytes, Status>,
) -> Result<Bytes, Status> {
    entry.form(key, make)
}

/// The media types that an endpoint's objects can have.
pub fn media_of(endpoint: &Endpoint) -> &'static [Media] {
    if endpoint.resource.is_custom() { negotiate::WITHOUT_PROTOBUF } else { negotiate::ALL }
}

/// An object of the hub (in canonical form) in the version of an endpoint, with `apiVersion` and `kind`.
pub fn versioned(endpoint: &Endpoint, object: &Value) -> Value {
    let mut v = object.clone();
    if !endpoint.resource.same_as_hub() {
        v["apiVersion"] = json!(&*endpoint.hub.api_version);
        v["kind"] = json!(&*endpoint.hub.kind);
        endpoint.resource.from_hub(&mut v);
    }
    v["apiVersion"] = json!(&*endpoint.resource.api_version);
    v["kind"] = json!(&*endpoint.resource.kind);
    v
}

/// Metadata that is shown without its object is that of Kubernetes' internal version, which lacks the annotation that
/// stands for a field of old versions of DaemonSet.
fn internal_metadata(resource: &Resource, partial: Option<&mut Value>) {
    const GENERATION: &str = "deprecated.daemonset.template.generation";
    if &*resource.kind != "DaemonSet" || &*resource.group != "apps" {
        return;
    }
    if let Some(metadata) = partial.and_then(|p| p.get_mut("metadata")).and_then(Value::as_object_mut)
        && let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut)
    {
        annotations.remove(GENERATION);
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
}

fn strip_type(v: &mut Value) {
    if let Some(map) = v.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
}

fn text(v: &Value, pointer: &str) -> String {
    v.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_string()
}

/// Events of a watch. A table describes its columns in the first event only.
pub struct WatchEncoder {
    encoder: Encoder,
    described: std::sync::atomic::AtomicBool,
}

impl WatchEncoder {
    /// Events in the form of `encoder`.
    pub fn new(encoder: Encoder) -> WatchEncoder {
        WatchEncoder { encoder, described: std::sync::atomic::AtomicBool::new(false) }
    }
}

impl EventEncoder for WatchEncoder {
    fn object(&self, type_: EventType, entry: &Entry, revision: u64) -> Result<Bytes, Status> {
        let e = &self.encoder;
        let at_revision = || {
            let mut v = (*entry.object()).clone();
            v["metadata"]["resourceVersion"] = json!(revision.to_string());
            v
        };
        let object = match (e.form.media, e.form.shape) {
            (Media::Protobuf, Shape::Object) if revision == entry.revision => e.protobuf_of(entry)?,
            (Media::Protobuf, Shape::Object) => e.to_protobuf(&e.versioned(&at_revision()))?,
            (Media::Protobuf, _) => e.meta_protobuf(&e.metadata(&at_revision()), true)?,
            (_, Shape::Object) => e.json_of(entry, revision)?,
            (_, Shape::Metadata(_) | Shape::MetadataList(_)) => {
                json::to_vec(&e.metadata(&at_revision())).into()
            }
            (_, Shape::Table(_)) => {
                let first = !self.described.swap(true, std::sync::atomic::Ordering::Relaxed);
                let meta = ListMeta { resource_version: revision.to_string(), ..ListMeta::default() };
                let table = e.table(&meta, &[Arc::new(at_revision())], first);
                json::to_vec(&table).into()
            }
        };
        e.event(type_, object)
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Result<Bytes, Status> {
        let e = &self.encoder;
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match e.form.shape {
            Shape::Object => {
                json!({"kind": e.kind(), "apiVersion": e.api_version(), "metadata": metadata})
            }
            Shape::Metadata(_) | Shape::MetadataList(_) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": e.form.shape.meta_version(), "metadata": metadata})
            }
            Shape::Table(_) => {
                let meta = ListMeta { resource_version: revision.to_string(), ..ListMeta::default() };
                e.table(&meta, &[], false)
            }
        };
        let bytes = match (e.form.media, e.form.shape) {
            (Media::Protobuf, Shape::Object) => e.to_protobuf(&object)?,
            (Media::Protobuf, _) => e.meta_protobuf(&object, true)?,
            _ => json::to_vec(&object).into(),
        };
        e.event(EventType::Bookmark, bytes)
    }

    fn error(&self, status: &Status) -> Bytes {
        let bytes = match self.encoder.form.media {
            Media::Protobuf => respond::status_protobuf(status).unwrap_or_default().into(),
            _ => Bytes::from(serde_json::to_vec(status).unwrap_or_default()),
        };
        self.encoder.event(EventType::Error, bytes).unwrap_or_default()
    }

    fn shared(&self, type_: EventType) -> Option<FormKey> {
        match self.encoder.form.shape {
            Shape::Table(_) => None,
            _ => Some(self.encoder.key(type_.part()?)),
        }
    }
}
