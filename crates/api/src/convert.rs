//! Between the version of a request, the hub version that code works on, and the version of the store.

use pilothouse_apimachinery::json::Value;

use crate::kinds::{Kind, Version};

/// Writes an object's `apiVersion`.
pub fn set_api_version(object: &mut Value, api_version: &str) {
    // A shared object is copied where it is asked for change.
    if object.get("apiVersion").and_then(Value::as_str) != Some(api_version)
        && let Some(map) = object.as_object_mut()
    {
        map.insert("apiVersion", api_version);
    }
}

/// `group/version`, or the version alone for the core group.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_string() } else { format!("{group}/{version}") }
}

/// Group and version of an `apiVersion`; nothing where it has more than one slash.
pub fn parse_api_version(api_version: &str) -> Option<(&str, &str)> {
    match api_version.split_once('/') {
        None => Some(("", api_version)),
        Some((group, version)) if !version.contains('/') => Some((group, version)),
        Some(_) => None,
    }
}

/// From a version of a kind to its hub version.
pub fn to_hub(kind: &Kind, version: &Version, object: &mut Value) {
    if let Some(convert) = version.to_hub {
        convert(object);
    }
    let hub = &kind.versions[0];
    set_api_version(object, &api_version(hub.group, hub.version));
}

/// From the hub version of a kind to one of its versions.
pub fn from_hub(version: &Version, object: &mut Value) {
    if let Some(convert) = version.from_hub {
        convert(object);
    }
    set_api_version(object, &api_version(version.group, version.version));
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn api_versions() {
        assert_eq!(parse_api_version("v1"), Some(("", "v1")));
        assert_eq!(parse_api_version("apps/v1"), Some(("apps", "v1")));
        assert_eq!(parse_api_version("a/b/c"), None);
        let mut v = json!({});
        set_api_version(&mut v, &api_version("apps", "v1"));
        assert_eq!(v, json!({"apiVersion": "apps/v1"}));
    }
}
