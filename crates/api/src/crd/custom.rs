//! The resources that CustomResourceDefinitions define, one [`CustomVersion`] for each version, and what is done to
//! their objects.

use std::sync::Arc;

use pilothouse_apimachinery::field::{self, ErrorList, ErrorType, Path};
use pilothouse_apimachinery::json::{self, Value, bool_at, get, json, list_at, str_at};
use pilothouse_apimachinery::status::{Result, Status};
use pilothouse_apimachinery::time;
use pilothouse_apimachinery::version::Release;

use super::jsonpath::JsonPath;
use super::rules::Validator;
use super::schema::Schema;
use super::{lists, objects, prune, validate};
use crate::apply::show;
use crate::table;

/// One version of a custom resource.
#[derive(Debug, Clone)]
pub struct CustomVersion {
    /// API group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Kind of lists.
    pub list_kind: String,
    /// Name in paths.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether requests may name this version.
    pub served: bool,
    /// Whether objects are stored in this version.
    pub storage: bool,
    /// Whether the version is deprecated, and the warning that clients get then.
    pub deprecation_warning: Option<String>,
    /// The schema as written, for OpenAPI; `Null` where there is none.
    pub open_api_schema: Arc<Value>,
    /// The schema.
    pub schema: Option<Arc<Schema>>,
    /// The schema's rules in CEL; none in v1.20.
    pub rules: Option<Arc<Validator>>,
    /// `spec.preserveUnknownFields`: nothing is pruned then.
    pub preserve_unknown_fields: bool,
    /// Whether there is a `status` subresource.
    pub has_status: bool,
    /// The `scale` subresource.
    pub scale: Option<ScalePaths>,
    /// Table columns.
    pub printer: Printer,
    /// Fields that selectors may name, as simple paths (`spec.color`); none in v1.20.
    pub selectable: Vec<String>,
    /// Release served.
    pub release: Release,
}

/// Where the `scale` subresource finds its values: names on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// `.spec.replicas`
    pub spec_replicas: String,
    /// `.status.replicas`
    pub status_replicas: String,
    /// `.status.selector`
    pub label_selector: Option<String>,
}

/// The table of a custom resource.
#[derive(Debug, Clone)]
pub struct Printer {
    columns: Vec<Column>,
}

#[derive(Debug, Clone)]
struct Column {
    definition: Value,
    type_: String,
    path: Option<JsonPath>,
}

fn strings(value: &Value, path: &[&str]) -> Vec<String> {
    list_at(value, path).iter().filter_map(Value::as_str).map(str::to_string).collect()
}

/// The versions that a CustomResourceDefinition (in version v1) serves; nothing where its names are not accepted yet.
pub fn resources(crd: &Value, release: Release) -> Vec<CustomVersion> {
    versions(crd, release).into_iter().filter(|v| v.served).collect()
}

/// All versions of a CustomResourceDefinition (in version v1); nothing where its names are not accepted yet.
///
/// Names are those that were accepted (`status.acceptedNames`).
pub fn versions(crd: &Value, release: Release) -> Vec<CustomVersion> {
    let established = list_at(crd, &["status", "conditions"])
        .iter()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    let names = get(crd, &["status", "acceptedNames"]);
    if !established || str_at(names, &["plural"]).is_empty() {
        return Vec::new();
    }
    list_at(crd, &["spec", "versions"]).iter().map(|v| version(crd, names, v, release)).collect()
}

fn version(crd: &Value, names: &Value, v: &Value, release: Release) -> CustomVersion {
    let text = |name: &str| str_at(names, &[name]).to_string();
    let open_api_schema = get(v, &["schema", "openAPIV3Schema"]).clone();
    let group = str_at(crd, &["spec", "group"]).to_string();
    let version = str_at(v, &["name"]).to_string();
    let kind = text("kind");
    let scale = get(v, &["subresources", "scale"]);
    let deprecation_warning = bool_at(v, &["deprecated"]).then(|| match str_at(v, &["deprecationWarning"]) {
        "" => format!("{group}/{version} {kind} is deprecated"),
        warning => warning.to_string(),
    });
    let schema = open_api_schema.is_object().then(|| Arc::new(Schema::parse(&open_api_schema)));
    let rules = schema.as_deref().filter(|_| release != Release::V1_20).and_then(Validator::new);
    CustomVersion {
        list_kind: text("listKind"),
        plural: text("plural"),
        singular: text("singular"),
        short_names: strings(names, &["shortNames"]),
        categories: strings(names, &["categories"]),
        namespaced: str_at(crd, &["spec", "scope"]) == "Namespaced",
        served: bool_at(v, &["served"]),
        storage: bool_at(v, &["storage"]),
        deprecation_warning,
        rules: rules.map(Arc::new),
        schema,
        open_api_schema: Arc::new(open_api_schema),
        preserve_unknown_fields: bool_at(crd, &["spec", "preserveUnknownFields"]),
        has_status: json::has(v, &["subresources", "status"]),
        scale: scale.is_object().then(|| ScalePaths {
            spec_replicas: str_at(scale, &["specReplicasPath"]).to_string(),
            status_replicas: str_at(scale, &["statusReplicasPath"]).to_string(),
            label_selector: Some(str_at(scale, &["labelSelectorPath"]))
                .filter(|p| !p.is_empty())
                .map(str::to_string),
        }),
        printer: Printer::new(list_at(v, &["additionalPrinterColumns"])),
        selectable: list_at(v, &["selectableFields"])
            .iter()
            .filter(|_| release != Release::V1_20)
            .map(|f| str_at(f, &["jsonPath"]).trim_start_matches('.').to_string())
            .collect(),
        release,
        group,
        version,
        kind,
    }
}

/// Whether a fault is one after which rules cannot count on the types of values.
fn blocks_rules(e: &field::Error) -> bool {
    matches!(e.error_type, ErrorType::Required | ErrorType::NotSupported)
        || e.body.contains("must be of type")
        || e.body.contains("should be at most")
        || e.body.contains("should have at most")
}

/// A simple path as the names on the way: `.spec.replicas`.
fn names_of(path: &str) -> Vec<&str> {
    path.strip_prefix('.').unwrap_or(path).split('.').collect()
}

impl CustomVersion {
    /// `group/version`.
    pub fn api_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// The fields that selectors may name, with an object's values.
    pub fn selectable_fields(&self, object: &Value) -> Vec<(String, String)> {
        let value = |path: &String| match get(object, &names_of(path)) {
            Value::Null => String::new(),
            value => show::plain(value),
        };
        self.selectable.iter().map(|path| (path.clone(), value(path))).collect()
    }

    fn options(&self) -> validate::Options {
        validate::Options { index_items: self.release != Release::V1_20 }
    }

    /// Brings an object (from a request, or from the store) into shape: unknown fields go, nulls that may not be go,
    /// defaults come. `metadata` is not looked at.
    pub fn normalize(&self, object: &mut Value) {
        let Some(schema) = self.schema.as_deref().filter(|_| !self.preserve_unknown_fields) else { return };
        prune::prune(object, schema, true);
        prune::drop_nulls(object, schema);
        prune::set_defaults(object, schema);
    }

    /// What creation sets and clears, whatever the client sent.
    pub fn prepare_create(&self, object: &mut Value) {
        if self.has_status {
            json::remove(object, &["status"]);
        }
        json::set(object, &["metadata", "generation"], 1);
    }

    /// What an update of the object itself carries over: the status, where that is a subresource. The generation rises
    /// with every change outside of `metadata`.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        if self.has_status {
            json::copy(new, old, &["status"]);
        }
        let changed = |a: &Value, b: &Value| {
            let without = |v: &Value| {
                let mut v = v.clone();
                json::remove(&mut v, &["metadata"]);
                v
            };
            !crate::apply::path::equal(&without(a), &without(b))
        };
        let generation = json::get_i64(old, &["metadata", "generation"]);
        let generation = if changed(new, old) { generation + 1 } else { generation };
        if generation != 0 {
            json::set(new, &["metadata", "generation"], generation);
        }
    }

    /// An update of the status: everything else stays as it was, but for `managedFields`.
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        let mut out = old.clone();
        json::copy(&mut out, new, &["metadata", "managedFields"]);
        json::copy(&mut out, new, &["status"]);
        *new = out;
    }

    fn check(&self, object: &Value) -> ErrorList {
        let mut errors = ErrorList::new();
        let (kind, api_version) = (str_at(object, &["kind"]), str_at(object, &["apiVersion"]));
        if kind != self.kind {
            errors.push(field::invalid(&Path::new("kind"), kind, &format!("must be {}", self.kind)));
        }
        if api_version != self.api_version() {
            let text = format!("must be {}", self.api_version());
            errors.push(field::invalid(&Path::new("apiVersion"), api_version, &text));
        }
        if errors.is_empty()
            && let Some(schema) = &self.schema
        {
            errors = validate::validate(&Path::default(), schema, object, self.options());
        }
        errors
    }

    /// Faults of a new object, `metadata` excluded.
    pub fn validate(&self, object: &Value) -> ErrorList {
        let mut errors = self.check(object);
        errors.extend(self.validate_scale_spec(object));
        errors.extend(self.validate_scale_status(object));
        errors.extend(self.validate_embedded(object));
        if let Some(schema) = &self.schema {
            errors.extend(lists::validate(&Path::default(), schema, object));
        }
        self.validate_rules(object, None, &mut errors);
        errors
    }

    /// Adds the faults that the schema's rules find, or that they were not asked.
    fn validate_rules(&self, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let Some(rules) = &self.rules else { return };
        if errors.iter().any(blocks_rules) {
            errors.push(field::Error {
                error_type: ErrorType::Invalid,
                field: "<nil>".into(),
                body: "Invalid value: \"null\": some validation rules were not checked because the object was invalid; correct the existing errors to complete validation".into(),
            });
            return;
        }
        errors.extend(rules.validate(object, old).0);
    }

    /// Faults of an object's new state against the schema, without those that it had before, where values are as they
    /// were. v1.20 knows no such mercy.
    fn check_update(&self, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.check(new);
        if errors.is_empty() || self.release == Release::V1_20 {
            return errors;
        }
        let before = self.check(old);
        errors.retain(|e| e.error_type == ErrorType::Required || !before.contains(e));
        errors
    }

    /// Faults of an update of the object, `metadata` excluded. Lists that broke their rules before may do so on.
    pub fn validate_update(&self, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.check_update(new, old);
        errors.extend(self.validate_scale_spec(new));
        errors.extend(self.validate_scale_status(new));
        errors.extend(self.validate_embedded(new));
        if let Some(schema) = &self.schema
            && lists::validate(&Path::default(), schema, old).is_empty()
        {
            errors.extend(lists::validate(&Path::default(), schema, new));
        }
        self.validate_rules(new, Some(old), &mut errors);
        errors
    }

    /// Faults of an update of the status, `metadata` excluded.
    pub fn validate_status_update(&self, new: &Value, old: &Value) -> ErrorList {
        let mut errors = self.check_update(new, old);
        errors.extend(self.validate_scale_status(new));
        self.validate_rules(new, Some(old), &mut errors);
        errors
    }

    fn validate_embedded(&self, object: &Value) -> ErrorList {
        self.schema.as_deref().map(|s| objects::validate(&Path::default(), s, object)).unwrap_or_default()
    }

    fn validate_scale_spec(&self, object: &Value) -> ErrorList {
        self.scale.as_ref().map(|s| replicas(object, &s.spec_replicas)).unwrap_or_default()
    }

    fn validate_scale_status(&self, object: &Value) -> ErrorList {
        let Some(scale) = &self.scale else { return ErrorList::new() };
        let mut errors = replicas(object, &scale.status_replicas);
        if let Some(path) = &scale.label_selector
            && let Err(text) = nested(object, path, "string", |v| v.is_string())
        {
            errors.push(field::invalid(&Path::new(path), "", &text));
        }
        errors
    }

    /// The object's `Scale`; 500 where the object does not have what the paths name.
    pub fn to_scale(&self, object: &Value) -> Result<Value> {
        let bare = |text: String| Status::failure(500, "", text);
        let Some(scale) = &self.scale else { return Err(Status::no_such_path()) };
        let number = |path: &str| {
            nested(object, path, "int64", |v| v.is_i64()).map(|v| v.and_then(Value::as_i64)).map_err(bare)
        };
        let Some(spec_replicas) = number(&scale.spec_replicas)? else {
            return Err(Status::internal(format!(
                "the spec replicas field {:?} does not exist",
                scale.spec_replicas
            )));
        };
        let status_replicas = number(&scale.status_replicas)?.unwrap_or(0);
        let mut status = json!({"replicas": status_replicas});
        if let Some(path) = &scale.label_selector
            && let Some(selector) = nested(object, path, "string", |v| v.is_string()).map_err(bare)?
            && selector != ""
        {
            json::set(&mut status, &["selector"], selector.clone());
        }
        let mut metadata = json!({});
        for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
            json::copy(&mut metadata, get(object, &["metadata"]), &[name]);
        }
        let mut spec = json!({});
        if spec_replicas != 0 {
            json::set(&mut spec, &["replicas"], spec_replicas);
        }
        Ok(json!({
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": metadata,
            "spec": spec,
            "status": status,
        }))
    }

    /// Writes a `Scale` back into the object. 400 where there is no number of replicas to set.
    pub fn apply_scale(&self, object: &mut Value, scale: &Value) -> Result<()> {
        let Some(paths) = &self.scale else { return Err(Status::no_such_path()) };
        let replicas = json::get_i64(scale, &["spec", "replicas"]);
        json::set(object, &names_of(&paths.spec_replicas), replicas);
        let resource_version = str_at(scale, &["metadata", "resourceVersion"]);
        if !resource_version.is_empty() {
            json::set(object, &["metadata", "resourceVersion"], resource_version);
        }
        Ok(())
    }
}

/// The value at a simple path, if it is of the type; Go's words where something on the way or the value is not.
fn nested<'v>(
    object: &'v Value,
    path: &str,
    type_: &str,
    fits: fn(&Value) -> bool,
) -> std::result::Result<Option<&'v Value>, String> {
    let fault = |names: &[&str], value: &Value, wanted: &str| {
        format!(
            ".{} accessor error: {} is of the type {}, expected {wanted}",
            names.join("."),
            show::plain(value),
            show::go_type(value)
        )
    };
    let names = names_of(path);
    let mut value = object;
    for (i, name) in names.iter().enumerate() {
        match value {
            Value::Object(map) => match map.get(name) {
                Some(next) => value = next,
                None => return Ok(None),
            },
            // Nothing on the way is no value.
            Value::Null => return Ok(None),
            other => return Err(fault(&names[..=i], other, "map[string]interface{}")),
        }
    }
    if fits(value) { Ok(Some(value)) } else { Err(fault(&names, value, type_)) }
}

fn replicas(object: &Value, path: &str) -> ErrorList {
    let at = Path::new(path);
    match nested(object, path, "int64", |v| v.is_i64()) {
        Err(text) => vec![field::invalid(&at, 0, &text)],
        Ok(value) => {
            let n = value.and_then(Value::as_i64).unwrap_or(0);
            let max = i64::from(i32::MAX);
            if n < 0 {
                vec![field::invalid(&at, n, "should be a non-negative integer")]
            } else if n > max {
                vec![field::invalid(&at, n, &format!("should be less than or equal to {max}"))]
            } else {
                Vec::new()
            }
        }
    }
}

impl Printer {
    /// From `additionalPrinterColumns` of version v1; without any, there is an age.
    pub fn new(columns: &[Value]) -> Printer {
        let age = json!({
            "name": "Age",
            "type": "date",
            "description": table::CREATED_DESCRIPTION,
            "jsonPath": ".metadata.creationTimestamp",
        });
        let columns = if columns.is_empty() { std::slice::from_ref(&age) } else { columns };
        Printer {
            columns: columns
                .iter()
                .map(|c| {
                    let path = str_at(c, &["jsonPath"]);
                    let description = match str_at(c, &["description"]) {
                        "" => format!("Custom resource definition column (in JSONPath format): {path}"),
                        text => text.to_string(),
                    };
                    Column {
                        definition: json!({
                            "name": str_at(c, &["name"]),
                            "type": str_at(c, &["type"]),
                            "format": str_at(c, &["format"]),
                            "description": description,
                            "priority": json::get_i64(c, &["priority"]),
                        }),
                        type_: str_at(c, &["type"]).to_string(),
                        path: JsonPath::parse(path),
                    }
                })
                .collect(),
        }
    }

    /// `columnDefinitions` of the table.
    pub fn definitions(&self) -> Vec<Value> {
        let name = json!({
            "name": "Name",
            "type": "string",
            "format": "name",
            "description": table::NAME_DESCRIPTION,
            "priority": 0,
        });
        std::iter::once(name).chain(self.columns.iter().map(|c| c.definition.clone())).collect()
    }

    /// The cells of an object's row. `now` is in seconds since 1970.
    pub fn row(&self, object: &Value, now: i64) -> Vec<Value> {
        let cells = self.columns.iter().map(|column| {
            let found = column.path.as_ref().map(|p| p.find(object)).unwrap_or_default();
            found.first().map_or(Value::Null, |value| cell(&column.type_, value, now))
        });
        std::iter::once(table::name_cell(object)).chain(cells).collect()
    }
}

fn cell(type_: &str, value: &Value, now: i64) -> Value {
    match (type_, value) {
        ("string", Value::Array(_) | Value::Object(_)) => Value::from(value.to_string()),
        ("string", value) => Value::from(show::plain(value)),
        (_, Value::Null) => Value::Null,
        ("integer", value) => {
            let whole = value.as_i64().or_else(|| value.as_f64().map(|f| f as i64));
            whole.map_or(Value::Null, Value::from)
        }
        ("number", value) => value.as_f64().map_or(Value::Null, Value::from),
        ("boolean", Value::Bool(b)) => Value::Bool(*b),
        ("date", Value::String(text)) => match time::Timestamp::parse(text) {
            Ok(_) => Value::from(time::since(text, now)),
            Err(_) => Value::from("<invalid>"),
        },
        _ => Value::Null,
    }
}
