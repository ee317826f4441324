//! The patches of the API: JSON patch, merge patch, strategic merge patch. (Apply patches are in [`crate::apply`].)

pub mod json;
pub mod merge;
pub mod strategic;

use pilothouse_apimachinery::status::{Result, Status};
use serde_json::Value;

use crate::apply::resource::type_of;
use crate::scheme::Resource;

/// Applies a strategic merge patch to an object in the resource's version. 415 for custom resources.
pub fn strategic(resource: &Resource, object: &Value, patch: &[u8]) -> Result<Value> {
    if resource.is_custom() {
        return Err(Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        ));
    }
    strategic::apply(type_of(resource), object, patch)
}

#[cfg(test)]
mod tests;
