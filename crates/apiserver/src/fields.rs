//! From what a client sent to the hub version, with its defaults; and who manages which fields.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

use pilothouse_api::apply::set::Set;
use pilothouse_api::apply::{FieldManager, Type};
use pilothouse_api::convert::{parse_api_version, set_api_version};
use pilothouse_api::scheme::{Resource, Scheme};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use crate::encode::versioned;
use crate::handlers::{Call, lifecycle};
use crate::json::{remove, set, str_at};
use crate::registry::Endpoint;

/// A decoded object in the hub version, with its defaults.
pub fn complete(call: &Call, mut object: Value) -> Value {
    call.endpoint.resource.to_hub(&mut object, &call.kind_context());
    object
}

/// An object of the cache with `apiVersion` and `kind` of the hub.
pub fn typed(endpoint: &Endpoint, object: Arc<Value>) -> Value {
    let mut object = Arc::unwrap_or_clone(object);
    set(&mut object, &["apiVersion"], &*endpoint.hub.api_version);
    set(&mut object, &["kind"], &*endpoint.hub.kind);
    object
}

/// The type of a resource's objects, as an apply sees it.
pub fn type_of(resource: &Resource) -> Type<'_> {
    match (resource.schema(), resource.as_custom()) {
        (Some(schema), _) => Type::built_in(schema.catalogue, schema.type_),
        (None, custom) => Type::custom(resource.catalogue(), custom.and_then(|c| c.schema.as_deref())),
    }
}

/// How often an operation is done again because a webhook was to convert something first.
const CONVERSIONS: usize = 16;

/// Objects in other versions, as far as a webhook has converted them, and those that it still is to convert.
#[derive(Default)]
struct Conversions {
    known: Vec<(Value, String, Value)>,
    missing: RefCell<Vec<(Value, String)>>,
}

impl Conversions {
    fn get(&self, object: &Value, api_version: &str) -> Option<Value> {
        let known = self.known.iter().find(|(o, v, _)| v == api_version && o == object);
        if known.is_none() {
            self.missing.borrow_mut().push((object.clone(), api_version.to_string()));
        }
        known.map(|(_, _, converted)| converted.clone())
    }
}

/// Does `work` with the field manager of an endpoint: again and again where it needs objects in versions that only a
/// webhook can give, which is asked in between.
async fn managed<T>(
    scheme: &Scheme,
    endpoint: &Endpoint,
    subresource: &str,
    work: impl Fn(&FieldManager<'_>) -> T,
) -> Result<T, Status> {
    let mut conversions = Conversions::default();
    for _ in 0..CONVERSIONS {
        let done = with_manager(scheme, &endpoint.resource, subresource, &conversions, &work);
        let missing = conversions.missing.take();
        let Some(view) = endpoint.storage.view().filter(|_| !missing.is_empty()) else { return Ok(done) };
        for (object, api_version) in missing {
            let version = parse_api_version(&api_version).map_or("", |(_, version)| version);
            let converted = view.convert(object.clone(), version).await?;
            conversions.known.push((object, api_version, converted));
        }
    }
    Err(Status::internal("conversions between versions do not come to an end"))
}

/// Runs `work` with the field manager of a resource.
fn with_manager<T>(
    scheme: &Scheme,
    resource: &Resource,
    subresource: &str,
    conversions: &Conversions,
    work: impl Fn(&FieldManager<'_>) -> T,
) -> T {
    // The resource in all its versions, looked for where somebody manages fields in another one.
    let others: OnceCell<Vec<Arc<Resource>>> = OnceCell::new();
    let find = || {
        let same = |r: &&Arc<Resource>| {
            r.plural == resource.plural
                && r.kind == resource.kind
                && r.hub_version() == resource.hub_version()
        };
        scheme.resources().filter(same).cloned().collect()
    };
    let convert = |object: &Value, api_version: &str| {
        let others = others.get_or_init(find);
        let target = others.iter().find(|r| &*r.api_version == api_version)?;
        let source = others.iter().find(|r| &*r.api_version == str_at(object, &["apiVersion"]))?;
        parse_api_version(api_version)?;
        if resource.family().is_some_and(|f| f.has_webhook() && !f.same(&source.version, &target.version)) {
            return Some((type_of(target), conversions.get(object, api_version)?));
        }
        let mut object = object.clone();
        if !source.same_as_hub() {
            source.to_hub(&mut object, &source.context("", true));
        }
        if target.same_as_hub() {
            set_api_version(&mut object, api_version);
        } else {
            target.from_hub(&mut object);
        }
        Some((type_of(target), object))
    };
    // Kubernetes records subresources since v1.22, and resets their fields since then, too.
    let modern = resource.release > Release::V1_20;
    let reset = match subresource {
        "" if modern && resource.subresource("status").is_some() => Set::of(&[&["status"]]),
        _ => Set::default(),
    };
    let manager = FieldManager {
        release: resource.release,
        api_version: &resource.api_version,
        subresource: if modern { subresource } else { "" },
        ignore_request_fields: !subresource.is_empty(),
        type_: type_of(resource),
        empty: resource.empty(),
        reset,
        now: lifecycle::now(),
        convert: &convert,
    };
    work(&manager)
}

/// An object of the hub version as the request's version shows it; not copied where that is the same.
pub fn shown<'v>(endpoint: &Endpoint, object: &'v Value) -> Cow<'v, Value> {
    if is_hub(&endpoint.resource, endpoint) {
        Cow::Borrowed(object)
    } else {
        Cow::Owned(versioned(endpoint, object))
    }
}

fn is_hub(resource: &Resource, endpoint: &Endpoint) -> bool {
    resource.same_as_hub() && resource.api_version == endpoint.hub.api_version
}

/// Records in an object's `managedFields` what changes from `live` and by whom. Both are in the hub version, with
/// `apiVersion` and `kind`.
pub async fn track(
    scheme: &Scheme,
    endpoint: &Endpoint,
    subresource: &str,
    live: Option<&Value>,
    mut object: Value,
    manager: &str,
) -> Result<Value, Status> {
    let resource = &endpoint.resource;
    // All that follows is faster where the object shares what has not changed with the live one.
    if let Some(live) = live {
        object.share(live);
    }
    // Validation tells empty maps and lists from absent ones, so that the object itself stays as it was sent.
    let mut shown = object.clone();
    if is_hub(resource, endpoint) && resource.schema().is_some() {
        resource.canonicalize(&mut shown, live);
    } else {
        resource.from_hub(&mut shown);
    }
    let entries = managed(scheme, endpoint, subresource, |m| {
        let live = live.map_or(Cow::Borrowed(m.empty), |live| self::shown(endpoint, live));
        m.update(&live, &shown, manager)
    })
    .await?;
    drop(shown);
    if entries.is_empty() {
        remove(&mut object, &["metadata", "managedFields"]);
    } else {
        set(&mut object, &["metadata", "managedFields"], entries);
    }
    Ok(object)
}

/// Applies a configuration to an object (both in the version of the request): the merged object.
pub async fn apply(
    call: &Call,
    live: Option<&Value>,
    config: &Value,
    manager: &str,
    force: bool,
) -> Result<Value, Status> {
    let scheme = call.state.registry.scheme();
    managed(&scheme, &call.endpoint, call.subresource, |m| {
        m.apply(live.unwrap_or(m.empty), config, manager, force)
    })
    .await?
}
