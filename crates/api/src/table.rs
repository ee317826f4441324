//! `meta.k8s.io` tables: what `kubectl get` shows, computed by the server.

use pilothouse_apimachinery::json::str_at;
use pilothouse_apimachinery::time;
use serde_json::Value;

use crate::kinds::RowContext;

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
