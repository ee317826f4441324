//! JSON patch (RFC 6902), with Kubernetes' limits and errors.

use json_patch::PatchOperation;
use pilothouse_apimachinery::status::{Result, Status};
use serde_json::Value;

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
        let operation = parse(operation)?;
        if let PatchOperation::Copy(copy) = &operation {
            copied += copy.from.resolve(&out).map_or(0, |v| v.to_string().len());
            if copied > MAX_COPY_BYTES {
                return Err(rejected());
            }
        }
        if let PatchOperation::Test(test) = &operation
            && test.value.is_null()
            && test.path.resolve(&out).is_err()
        {
            // What is not there equals null.
            continue;
        }
        json_patch::patch(&mut out, &[operation]).map_err(|_| rejected())?;
    }
    Ok(out)
}

fn parse(mut operation: Value) -> Result<PatchOperation> {
    let Value::Object(map) = &mut operation else {
        return Err(Status::bad_request(format!(
            "json: cannot unmarshal {} into Go value of type jsonpatch.Operation",
            go_kind(&operation)
        )));
    };
    // An operation without a value means null.
    map.entry("value").or_insert(Value::Null);
    serde_json::from_value(operation).map_err(|_| rejected())
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
