//! JSON patch (RFC 6902), with Kubernetes' limits and errors.

use pilothouse_apimachinery::json::{Map, Value, index};
use pilothouse_apimachinery::status::{Result, Status};

use crate::decode::json_fault;

/// The most operations a patch may have.
pub const MAX_OPERATIONS: usize = 10_000;

/// The most bytes that a patch's `copy` operations may copy together.
pub const MAX_COPY_BYTES: usize = 3 * 1024 * 1024;

/// 422 as every patch that does not apply gets it: the server says no more than that.
pub(super) fn rejected() -> Status {
    let mut status =
        Status::failure(422, "Invalid", "the server rejected our request due to an error in our request");
    status.details = Some(Default::default());
    status
}

/// Applies a JSON patch. 400 for what is no patch, 413 for too many operations, 422 for one that does not apply.
pub fn apply(object: &Value, patch: &[u8]) -> Result<Value> {
    let patch: Value = serde_json::from_slice(patch)
        .map_err(|e| Status::bad_request(json_fault(patch).unwrap_or_else(|| e.to_string())))?;
    let operations = match patch {
        Value::Array(operations) => operations,
        other => {
            return Err(Status::bad_request(format!(
                "json: cannot unmarshal {} into Go value of type jsonpatch.Patch",
                go_kind(&other)
            )));
        }
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(Status::too_large(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut out = object.clone();
    let mut copied = 0;
    for operation in operations {
        let Value::Object(operation) = operation else {
            return Err(Status::bad_request(format!(
                "json: cannot unmarshal {} into Go value of type jsonpatch.Operation",
                go_kind(&operation)
            )));
        };
        step(&mut out, &operation, &mut copied).ok_or_else(rejected)?;
    }
    Ok(out)
}

/// Does one operation; nothing where it does not apply.
fn step(object: &mut Value, operation: &Map, copied: &mut usize) -> Option<()> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let path = text("path")?;
    // An operation without a value means null.
    let value = || operation.get("value").cloned().unwrap_or_default();
    match text("op")? {
        "add" => add(object, path, value()),
        "remove" => remove(object, path).map(drop),
        "replace" => {
            if let Some(old) = object.pointer_mut(path) {
                *old = value();
                return Some(());
            }
            // To replace what an object has not is to add it.
            if parent(object, path)?.0.is_object() { add(object, path, value()) } else { None }
        }
        "move" => {
            let from = text("from")?;
            // Nothing can be moved into itself.
            let inside = path.strip_prefix(from).is_some_and(|below| below.starts_with('/'));
            let moved = if inside { None } else { remove(object, from) }?;
            add(object, path, moved)
        }
        "copy" => {
            let found = object.pointer(text("from")?)?.clone();
            *copied += found.to_string().len();
            if *copied > MAX_COPY_BYTES {
                return None;
            }
            add(object, path, found)
        }
        // What is not there equals null.
        "test" => (object.pointer(path).unwrap_or(&Value::Null) == &value()).then_some(()),
        _ => None,
    }
}

/// The object or list that a path ends in, and the last step.
fn parent<'v>(object: &'v mut Value, path: &str) -> Option<(&'v mut Value, String)> {
    let (above, last) = path.rsplit_once('/')?;
    Some((object.pointer_mut(above)?, last.replace("~1", "/").replace("~0", "~")))
}

fn add(object: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *object = value;
        return Some(());
    }
    match parent(object, path)? {
        (Value::Object(map), name) => {
            map.insert(name, value);
        }
        (Value::Array(items), last) => {
            let at = if last == "-" { items.len() } else { index(&last)? };
            if at > items.len() {
                return None;
            }
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(object: &mut Value, path: &str) -> Option<Value> {
    match parent(object, path)? {
        (Value::Object(map), name) => map.remove(&name),
        (Value::Array(items), last) => {
            let at = index(&last)?;
            (at < items.len()).then(|| items.remove(at))
        }
        _ => None,
    }
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
