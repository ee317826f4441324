//! Which files config maps, secrets, the downward API and projected volumes hold: plain functions. Texts of errors
//! are v1.20's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};
use pilothouse_apimachinery::go::quote;

use super::atomic::{File, Payload};
use crate::containers::downward;
use crate::pod::PodExt;
use crate::resources::Amounts;

fn mode(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|m| u32::try_from(m).ok()).unwrap_or(default)
}

fn file(data: Vec<u8>, mode: u32) -> File {
    File { data, mode, owner: None }
}

/// Chosen keys, or all of them, as files.
fn select(
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    default_mode: u32,
    optional: bool,
    missing: &str,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data.into_iter().map(|(k, v)| (k, file(v, default_mode))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(v) => {
                payload.insert(item.path.clone(), file(v.clone(), mode(item.mode, default_mode)));
            }
            None if optional => {}
            None => return Err(format!("{missing}: {}", item.key)),
        }
    }
    Ok(payload)
}

/// A config map's files.
pub fn config_map(
    map: Option<&ConfigMap>,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    default_mode: u32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(map) = map else {
        return if optional {
            Ok(Payload::new())
        } else {
            Err(format!("configmap {} not found", quote(name)))
        };
    };
    let mut data: BTreeMap<String, Vec<u8>> =
        map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes())).collect();
    data.extend(map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())));
    select(data, items, default_mode, optional, "configmap references non-existent config key")
}

/// A secret's files.
pub fn secret(
    secret: Option<&Secret>,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    default_mode: u32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(secret) = secret else {
        return if optional { Ok(Payload::new()) } else { Err(format!("secret {} not found", quote(name))) };
    };
    let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
    select(data, items, default_mode, optional, "references non-existent secret key")
}

/// The downward API's files.
pub fn downward_api(
    pod: &Pod,
    items: Option<&Vec<DownwardAPIVolumeFile>>,
    default_mode: u32,
    allocatable: &Amounts,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items.into_iter().flatten() {
        let text = if let Some(f) = &item.field_ref {
            downward::metadata_field(pod, &f.field_path)?
        } else if let Some(r) = &item.resource_field_ref {
            let name = r.container_name.as_deref().unwrap_or_default();
            let container = pod.container(name).ok_or_else(|| format!("container {name} not found"))?;
            downward::resource_field(container, r, allocatable)?
        } else {
            continue;
        };
        payload.insert(item.path.clone(), file(text.into_bytes(), mode(item.mode, default_mode)));
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_become_files() {
        let map: ConfigMap = serde_json::from_value(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {}, "data": {"a": "1", "b": "2"}, "binaryData": {"c": "Aw=="}}))
        .unwrap();
        assert_eq!(config_map(Some(&map), "m", None, 0o644, false).unwrap().len(), 3);
        let items: Vec<KeyToPath> =
            serde_json::from_value(json!([{"key": "a", "path": "x/y", "mode": 0o400}])).unwrap();
        let p = config_map(Some(&map), "m", Some(&items), 0o644, false).unwrap();
        assert_eq!((p["x/y"].data.as_slice(), p["x/y"].mode), (b"1".as_slice(), 0o400));
        let none: Vec<KeyToPath> = serde_json::from_value(json!([{"key": "z", "path": "z"}])).unwrap();
        assert_eq!(
            config_map(Some(&map), "m", Some(&none), 0o644, false).unwrap_err(),
            "configmap references non-existent config key: z"
        );
        assert!(config_map(Some(&map), "m", Some(&none), 0o644, true).unwrap().is_empty());
        assert_eq!(secret(None, "s", None, 0o644, false).unwrap_err(), "secret \"s\" not found");
        assert!(secret(None, "s", None, 0o644, true).unwrap().is_empty());
    }
}
