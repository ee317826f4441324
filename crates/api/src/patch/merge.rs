//! JSON merge patch (RFC 7386).

use pilothouse_apimachinery::status::{Result, Status};
use pilothouse_apimachinery::version::Release;
use serde_json::Value;

/// Applies a merge patch. What is no JSON is answered 500 by v1.20 and 400 since.
pub fn apply(object: &Value, patch: &[u8], release: Release) -> Result<Value> {
    let invalid = || {
        if release == Release::V1_20 {
            Status::failure(500, "", "Invalid JSON Patch")
        } else {
            Status::bad_request("Invalid JSON Patch")
        }
    };
    let patch: Value = serde_json::from_slice(patch).map_err(|_| invalid())?;
    if patch.is_null() {
        return Err(invalid());
    }
    let mut out = object.clone();
    json_patch::merge(&mut out, &patch);
    Ok(out)
}
