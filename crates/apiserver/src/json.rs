//! Looking into objects: [`pilothouse_apimachinery::json`] and what the API server needs beside it.

pub use pilothouse_apimachinery::json::*;

/// The texts in the list at a path.
pub fn texts(value: &Value, path: &[&str]) -> Vec<String> {
    list_at(value, path).iter().filter_map(|v| v.as_str().map(String::from)).collect()
}

/// One entry of a map of texts, such as an annotation.
pub fn entry<'a>(value: &'a Value, path: &[&str], key: &str) -> Option<&'a str> {
    get(value, path).get(key)?.as_str()
}

/// The containers of a pod spec with the names of the lists they are in, in v1.20's order of visits.
pub fn containers(spec: &Value) -> impl Iterator<Item = (&'static str, &Value)> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(move |l| list_at(spec, &[l]).iter().map(move |c| (l, c)))
}

/// The same for change.
pub fn containers_mut(spec: &mut Value) -> impl Iterator<Item = &mut Value> {
    let lists = spec.as_object_mut().into_iter().flatten();
    lists
        .filter(|(k, _)| matches!(k.as_str(), "initContainers" | "containers" | "ephemeralContainers"))
        .filter_map(|(_, v)| v.as_array_mut())
        .flatten()
}
