//! A container's mounts: its volumes, `/etc/hosts`, the file for its last words.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::expansion::expand_all;
use crate::pod::PodExt;
use crate::runtime::cri;
use crate::volumes::{PodMounts, VolumeManager};

const ETC_HOSTS: &str = "/etc/hosts";

fn propagation(mode: Option<&str>) -> Result<i32, String> {
    use cri::MountPropagation::{PropagationBidirectional, PropagationHostToContainer, PropagationPrivate};
    Ok(match mode.unwrap_or("") {
        "" | "None" => PropagationPrivate,
        "HostToContainer" => PropagationHostToContainer,
        "Bidirectional" => PropagationBidirectional,
        other => return Err(format!("invalid MountPropagation mode: \"{other}\"")),
    } as i32)
}

/// The sub path that a mount asks for; empty for the whole volume.
pub fn sub_path(mount: &VolumeMount, environment: &BTreeMap<String, String>) -> Result<String, String> {
    let path = match mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
        Some(e) => expand_all(e, |name| environment.get(name).cloned())?,
        None => mount.sub_path.clone().unwrap_or_default(),
    };
    if Path::new(&path).is_absolute() {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(path)
}

/// The mounts of a container's volumes.
pub async fn volumes(
    pod: &Arc<Pod>,
    container: &Container,
    mounted: &PodMounts,
    environment: &BTreeMap<String, String>,
    manager: &dyn VolumeManager,
) -> Result<Vec<cri::Mount>, String> {
    let mut out = Vec::new();
    for (i, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = mounted.volumes.get(&mount.name).ok_or_else(|| {
            format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name)
        })?;
        let sub = sub_path(mount, environment)?;
        let host_path = if sub.is_empty() {
            volume.host_path.clone()
        } else {
            manager.sub_path(pod, &container.name, i, &mount.name, volume, &sub).await?
        };
        let container_path = match mount.mount_path.starts_with('/') {
            true => mount.mount_path.clone(),
            false => format!("/{}", mount.mount_path),
        };
        out.push(cri::Mount {
            container_path,
            host_path: host_path.display().to_string(),
            readonly: mount.read_only.unwrap_or(false) || volume.read_only,
            propagation: propagation(mount.mount_propagation.as_deref())?,
            ..Default::default()
        });
    }
    Ok(out)
}

/// The devices of a container's raw block volumes.
pub fn devices(pod: &Pod, container: &Container, mounted: &PodMounts) -> Result<Vec<cri::Device>, String> {
    let read_only = |name: &str| {
        pod.pod_spec().volumes.iter().flatten().any(|v| {
            v.name == name && v.persistent_volume_claim.as_ref().is_some_and(|c| c.read_only == Some(true))
        })
    };
    let devices = container.volume_devices.iter().flatten();
    devices
        .map(|d| {
            let volume = mounted.volumes.get(&d.name).filter(|v| v.block).ok_or_else(|| {
                format!("cannot find volume \"{}\" to pass into container \"{}\"", d.name, container.name)
            })?;
            Ok(cri::Device {
                container_path: d.device_path.clone(),
                host_path: volume.host_path.display().to_string(),
                permissions: if read_only(&d.name) { "r" } else { "mrw" }.into(),
            })
        })
        .collect()
}

/// Whether the kubelet writes a container's `/etc/hosts`: unless the container mounts one itself.
pub fn manages_hosts(pod: &Pod, container: &Container, ips: &[String]) -> bool {
    (pod.host_network() || !ips.is_empty())
        && !container.volume_mounts.iter().flatten().any(|m| m.mount_path == ETC_HOSTS)
}

/// Writes the hosts file into the pod's folder, and the mount for it. All containers of a pod share the file.
pub fn hosts(pod_dir: &Path, content: &str) -> std::io::Result<cri::Mount> {
    let path = pod_dir.join("etc-hosts");
    std::fs::write(&path, content)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
    Ok(cri::Mount {
        container_path: ETC_HOSTS.into(),
        host_path: path.display().to_string(),
        ..Default::default()
    })
}

/// Makes the file for a container's termination message, and the mount for it. `name` is new for each start.
pub fn termination_message(dir: &Path, name: &str, path: &str) -> std::io::Result<cri::Mount> {
    std::fs::create_dir_all(dir)?;
    let file = dir.join(name);
    std::fs::File::create(&file)?;
    // Any user in the container may write its last words.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))?;
    Ok(cri::Mount {
        container_path: path.into(),
        host_path: file.display().to_string(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn mount(more: Value) -> VolumeMount {
        let mut m = json!({"name": "v", "mountPath": "/m"});
        m.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(m).unwrap()
    }

    #[test]
    fn sub_paths() {
        let env = [("A".to_string(), "/abs".to_string()), ("B".to_string(), "b".to_string())].into();
        let get = |more| sub_path(&mount(more), &env);
        assert_eq!(get(json!({})), Ok("".into()));
        assert_eq!(get(json!({"subPathExpr": "$(B)/x"})), Ok("b/x".into()));
        assert_eq!(
            get(json!({"subPathExpr": "$(A)"})).unwrap_err(),
            "error SubPath `/abs` must not be an absolute path"
        );
        assert_eq!(get(json!({"subPathExpr": "$(NOPE)/x"})).unwrap_err(), "missing value for NOPE");
        assert!(get(json!({"subPath": "a/../../b"})).unwrap_err().contains("must not contain '..'"));
    }

    #[tokio::test]
    async fn mounts_are_read_only_where_the_volume_is() {
        let pod: Arc<Pod> = Arc::new(
            serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "c",
                "volumeMounts": [{"name": "v", "mountPath": "rel"}]}, {"name": "d",
                "volumeMounts": [{"name": "no", "mountPath": "/x"}]}]}}))
            .unwrap(),
        );
        let volume = crate::volumes::MountedVolume { host_path: "/h".into(), read_only: true, block: false };
        let mounts = PodMounts { volumes: [("v".to_string(), volume)].into(), groups: vec![] };
        let manager = crate::volumes::fake::FakeVolumes::default();
        let env = BTreeMap::new();
        let c = &pod.pod_spec().containers;
        let got = volumes(&pod, &c[0], &mounts, &env, &manager).await.unwrap();
        assert_eq!((got[0].container_path.as_str(), got[0].readonly), ("/rel", true));
        let err = volumes(&pod, &c[1], &mounts, &env, &manager).await.unwrap_err();
        assert_eq!(err, "cannot find volume \"no\" to mount into container \"d\"");
    }

    #[test]
    fn files_are_made() {
        let dir = tempfile::tempdir().unwrap();
        hosts(dir.path(), "x").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("etc-hosts")).unwrap(), "x");
        let m = termination_message(&dir.path().join("containers/c"), "0a", "/dev/termination-log").unwrap();
        let mode = std::fs::metadata(&m.host_path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
    }
}
