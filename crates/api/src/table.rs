//! `meta.k8s.io` tables: what `kubectl get` shows, computed by the server.

use pilothouse_apimachinery::json::{Map, Value, json, str_at};
use pilothouse_apimachinery::time;

use crate::kinds::RowContext;
use crate::scheme::{Resource, partial_metadata};

/// What rows hold beside their cells (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// The object's metadata.
    #[default]
    Metadata,
    /// The object.
    Object,
}

impl IncludeObject {
    /// From the request's parameter, empty for the default.
    pub fn parse(text: &str) -> Option<IncludeObject> {
        match text {
            "" | "Metadata" => Some(IncludeObject::Metadata),
            "None" => Some(IncludeObject::None),
            "Object" => Some(IncludeObject::Object),
            _ => None,
        }
    }
}

/// A row. `hub` is the object in the hub version (in the request's version for a custom resource), `shown` in the
/// request's version; `meta_version` is that of `meta.k8s.io`.
pub fn row(
    resource: &Resource,
    hub: &Value,
    shown: &Value,
    include: IncludeObject,
    meta_version: &str,
    context: &RowContext,
) -> Value {
    let mut row = Map::new();
    row.insert("cells", Value::Array(resource.cells(hub, context).into()));
    if let Some(conditions) = resource.row_conditions(hub) {
        row.insert("conditions", conditions);
    }
    let object = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial_metadata(shown, meta_version),
        IncludeObject::Object => shown.clone(),
    };
    row.insert("object", object);
    Value::Object(row)
}

/// A table of rows. `metadata` is a `ListMeta`. A watch sends the column definitions with its first event only:
/// `with_columns` is false for the others.
pub fn table(
    resource: &Resource,
    metadata: Value,
    rows: Vec<Value>,
    meta_version: &str,
    with_columns: bool,
) -> Value {
    let columns = if with_columns { Value::Array(resource.column_definitions().into()) } else { Value::Null };
    // Go writes a list that has never had an item as null: that of kinds without columns of their own.
    let plain = resource.as_kind().is_some_and(|k| k.columns.iter().any(|c| c.name == "Created At"));
    let rows = if rows.is_empty() && plain { Value::Null } else { Value::Array(rows.into()) };
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{meta_version}"),
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// Description of the `Name` column.
pub const NAME_DESCRIPTION: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: http://kubernetes.io/docs/user-guide/identifiers#names";

/// Description of the `Age` and `Created At` columns.
pub const CREATED_DESCRIPTION: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// The row of a kind that has no columns of its own: name and time of creation.
pub fn name_and_age(object: &Value, _context: &RowContext) -> Vec<Value> {
    vec![name_cell(object), Value::from(str_at(object, &["metadata", "creationTimestamp"]))]
}

/// A cell with the object's name.
pub fn name_cell(object: &Value) -> Value {
    Value::from(str_at(object, &["metadata", "name"]))
}

/// A cell with the object's age: `5m3s`, `<unknown>`.
pub fn age_cell(object: &Value, context: &RowContext) -> Value {
    since_cell(str_at(object, &["metadata", "creationTimestamp"]), context)
}

/// A cell with the time since a timestamp; `<unknown>` where there is none.
pub fn since_cell(timestamp: &str, context: &RowContext) -> Value {
    Value::from(time::since(timestamp, context.now))
}

/// A cell with a label selector in string form; `<none>` where it selects by nothing.
pub fn selector_cell(selector: &Value) -> Value {
    Value::from(pilothouse_apimachinery::selector::format_label_selector(selector))
}

/// A cell with labels as `a=b,c=d`, sorted by key; `<none>` where there are none.
pub fn labels_cell(labels: &Value) -> Value {
    Value::from(pilothouse_apimachinery::selector::format_labels(labels))
}

/// A cell with strings joined by commas; `<none>` where there are none.
pub fn joined_cell<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
    let text = items.into_iter().collect::<Vec<_>>().join(",");
    Value::from(if text.is_empty() { "<none>".to_string() } else { text })
}

/// A cell with the text or, where it is empty, `<none>`.
pub fn or_none(text: &str) -> Value {
    Value::from(if text.is_empty() { "<none>" } else { text })
}

/// A cell with the text or, where it is empty, `<unset>`.
pub fn or_unset(text: &str) -> Value {
    Value::from(if text.is_empty() { "<unset>" } else { text })
}
