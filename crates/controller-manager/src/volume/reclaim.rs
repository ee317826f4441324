//! Deleting the data of a released volume, where that is the controller manager's to do: volumes of `hostPath` below
//! `/tmp`. All others are their provisioner's.

use k8s_openapi::api::core::v1::PersistentVolume;

use super::PROVISIONED_BY;

/// Who deletes a volume's data.
#[derive(Debug, PartialEq, Eq)]
enum Deleter<'a> {
    /// We, this folder.
    Folder(&'a str),
    /// A program outside.
    Other,
}

fn deleter(volume: &PersistentVolume) -> Result<Deleter<'_>, String> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let provisioner = volume
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(PROVISIONED_BY))
        .map(String::as_str)
        .unwrap_or_default();
    match provisioner {
        "" | "kubernetes.io/host-path" => {}
        p if p.starts_with("kubernetes.io/") => return Err("no deletable volume plugin matched".into()),
        _ => return Ok(Deleter::Other),
    }
    match volume.spec.as_ref().and_then(|s| s.host_path.as_ref()) {
        Some(h) if deletable(&h.path) => Ok(Deleter::Folder(&h.path)),
        Some(h) => Err(format!("host_path deleter only supports /tmp/.+ but received provided {}", h.path)),
        None => Err(format!(
            "Error getting deleter volume plugin for volume {name:?}: no deletable volume plugin matched"
        )),
    }
}

/// Whether a folder may be deleted: only what lies below `/tmp`, whatever way its path is written.
fn deletable(path: &str) -> bool {
    let Some(below) = path.strip_prefix("/tmp/") else { return false };
    below.split('/').all(|part| part != "..") && below.split('/').any(|part| !part.is_empty() && part != ".")
}

/// Deletes a volume's data. `false` where that is somebody else's to do; errors are Kubernetes' texts.
pub async fn delete(volume: &PersistentVolume) -> Result<bool, String> {
    match deleter(volume)? {
        Deleter::Other => Ok(false),
        Deleter::Folder(path) => match tokio::fs::remove_dir_all(path).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
                tokio::fs::remove_file(path).await.map(|()| true).map_err(|e| format!("remove {path}: {e}"))
            }
            Err(e) => Err(format!("remove {path}: {e}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn volume(source: serde_json::Value, provisioner: &str) -> PersistentVolume {
        let mut v = json!({"metadata": {"name": "v"}, "spec": source});
        if !provisioner.is_empty() {
            v["metadata"]["annotations"] = json!({ PROVISIONED_BY: provisioner });
        }
        serde_json::from_value(v).unwrap()
    }

    #[test]
    fn only_folders_below_tmp_are_deleted() {
        let host = |path: &str| volume(json!({"hostPath": {"path": path}}), "");
        assert_eq!(deleter(&host("/tmp/1")), Ok(Deleter::Folder("/tmp/1")));
        for path in ["/tmp", "/tmp/", "/tmp/.", "/tmp/../etc", "/tmp/a/../../etc", "/data", "/var/tmp/a"] {
            let text = format!("host_path deleter only supports /tmp/.+ but received provided {path}");
            assert_eq!(deleter(&host(path)), Err(text));
        }
    }

    #[test]
    fn others_volumes_are_left_to_them() {
        let nfs = json!({"nfs": {"server": "s", "path": "/p"}});
        assert_eq!(
            deleter(&volume(nfs.clone(), "")).unwrap_err(),
            "Error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched"
        );
        assert_eq!(deleter(&volume(nfs.clone(), "example.com/nfs")), Ok(Deleter::Other));
        assert_eq!(
            deleter(&volume(nfs, "kubernetes.io/gce-pd")).unwrap_err(),
            "no deletable volume plugin matched"
        );
    }
}
