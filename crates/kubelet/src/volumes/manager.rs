//! The volume manager: each volume of a pod made ready in the pod's folder, or found on the host.
//!
//! Folders are laid out as the original's: `<root>/pods/<uid>/volumes/kubernetes.io~<plug-in>/<name>` and
//! `<root>/pods/<uid>/volume-subpaths/<name>/<container>/<index>`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, NFSVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod,
    ProjectedVolumeSource, Volume,
};
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_apimachinery::go::quote;
use pilothouse_apimachinery::quantity::Quantity;
use pilothouse_apimachinery::version::Release;

use super::atomic::{self, Payload};
use super::token::Tokens;
use super::{Failure, MountError, MountedVolume, PodMounts, VolumeManager, content, host};
use crate::node::KubeletRelease;
use crate::objects::Objects;
use crate::pod::PodExt;
use crate::resources::Amounts;

/// Files are brought up to date from objects that are no older than this.
const MAX_AGE: Duration = Duration::from_secs(1);
const DEFAULT_MODE: u32 = 0o644;

/// See the module.
pub struct Volumes {
    root: PathBuf,
    client: Client,
    objects: Arc<dyn Objects>,
    tokens: Tokens,
    /// What the downward API shows where a container has no limit.
    allocatable: Mutex<Amounts>,
    release: KubeletRelease,
}

/// A volume's source, with what became of a claim.
struct Ready {
    path: PathBuf,
    read_only: bool,
    block: bool,
    group: Option<i64>,
}

impl Ready {
    fn at(path: impl Into<PathBuf>) -> Ready {
        Ready { path: path.into(), read_only: false, block: false, group: None }
    }
}

impl Volumes {
    /// Below the kubelet's `--root-dir`, with the kubelet's own credentials.
    pub fn new(root: &Path, client: Client, objects: Arc<dyn Objects>, release: KubeletRelease) -> Volumes {
        Volumes {
            root: root.to_path_buf(),
            client,
            objects,
            tokens: Tokens::default(),
            allocatable: Mutex::new(Amounts::default()),
            release,
        }
    }

    /// Says what the node has to give.
    pub fn set_allocatable(&self, amounts: Amounts) {
        *self.allocatable.lock() = amounts;
    }

    fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    fn volume_dir(&self, pod: &Pod, plugin: &str, name: &str) -> PathBuf {
        self.pod_dir(pod.uid()).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
    }

    async fn set_up(&self, pod: &Pod, volume: &Volume) -> Result<Ready, String> {
        let name = volume.name.as_str();
        if let Some(s) = &volume.empty_dir {
            return self.empty_dir(pod, name, s);
        }
        if let Some(s) = &volume.host_path {
            host::check_host_path(&s.path, s.type_.as_deref().unwrap_or_default())?;
            return Ok(Ready::at(&s.path));
        }
        if let Some(s) = &volume.config_map {
            let map = self.objects.config_map(pod.namespace(), &s.name, MAX_AGE).await?;
            let mode = mode(s.default_mode);
            let payload = content::config_map(
                map.as_deref(),
                &s.name,
                s.items.as_ref(),
                mode,
                s.optional.unwrap_or(false),
            )?;
            return self.files(pod, "configmap", name, &payload, false);
        }
        if let Some(s) = &volume.secret {
            let secret_name = s.secret_name.as_deref().unwrap_or_default();
            let secret = self.objects.secret(pod.namespace(), secret_name, MAX_AGE).await?;
            let mode = mode(s.default_mode);
            let payload = content::secret(
                secret.as_deref(),
                secret_name,
                s.items.as_ref(),
                mode,
                s.optional.unwrap_or(false),
            )?;
            return self.files(pod, "secret", name, &payload, true);
        }
        if let Some(s) = &volume.downward_api {
            let payload = {
                let allocatable = self.allocatable.lock();
                content::downward_api(pod, s.items.as_ref(), mode(s.default_mode), &allocatable)?
            };
            return self.files(pod, "downward-api", name, &payload, true);
        }
        if let Some(s) = &volume.projected {
            let payload = self.projected(pod, s).await?;
            return self.files(pod, "projected", name, &payload, true);
        }
        if let Some(s) = &volume.persistent_volume_claim {
            return self.claim(pod, name, &s.claim_name, s.read_only.unwrap_or(false)).await;
        }
        if volume.ephemeral.is_some() {
            let claim = format!("{}-{name}", pod.name());
            return self.claim(pod, name, &claim, false).await;
        }
        if let Some(s) = &volume.nfs {
            return self.nfs(pod, name, s, &[]).await;
        }
        Err(format!("no volume plugin matched name: {name}"))
    }

    fn empty_dir(&self, pod: &Pod, name: &str, source: &EmptyDirVolumeSource) -> Result<Ready, String> {
        let dir = self.volume_dir(pod, "empty-dir", name);
        open_dir(&dir)?;
        match source.medium.as_deref().unwrap_or_default() {
            "" => {}
            "Memory" => {
                let limit = source.size_limit.as_ref().and_then(|q| q.0.parse::<Quantity>().ok());
                let sized = self.release.get() > Release::V1_20;
                let size = limit.filter(|_| sized).map_or(0, |q| u64::try_from(q.value()).unwrap_or(0));
                host::mount_memory(&dir, size).map_err(|e| e.to_string())?;
            }
            other => return Err(format!("unknown storage medium {}", quote(other))),
        }
        if let Some(group) = fs_group(pod).filter(|g| !of_group(&dir, *g)) {
            host::give_to_group(&dir, group, false).map_err(|e| e.to_string())?;
        }
        Ok(Ready::at(dir))
    }

    /// A volume of files that the kubelet writes; secret ones lie in memory.
    fn files(
        &self,
        pod: &Pod,
        plugin: &str,
        name: &str,
        payload: &Payload,
        memory: bool,
    ) -> Result<Ready, String> {
        let dir = self.volume_dir(pod, plugin, name);
        open_dir(&dir)?;
        let text = |e: std::io::Error| e.to_string();
        if memory {
            // The mount has a mode of its own: 1777.
            host::mount_memory(&dir, 0).map_err(text)?;
        }
        let written = atomic::write(&dir, payload).map_err(text)?;
        if let Some(group) = fs_group(pod).filter(|g| written || !of_group(&dir, *g)) {
            host::give_to_group(&dir, group, true).map_err(text)?;
        }
        Ok(Ready { read_only: true, ..Ready::at(dir) })
    }

    async fn projected(&self, pod: &Pod, source: &ProjectedVolumeSource) -> Result<Payload, String> {
        let default_mode = mode(source.default_mode);
        let mut payload = Payload::new();
        let mut errors: Vec<String> = Vec::new();
        for s in source.sources.iter().flatten() {
            let part = if let Some(c) = &s.config_map {
                let map = self.objects.config_map(pod.namespace(), &c.name, MAX_AGE).await;
                map.and_then(|m| {
                    let optional = c.optional.unwrap_or(false);
                    content::config_map(m.as_deref(), &c.name, c.items.as_ref(), default_mode, optional)
                })
            } else if let Some(c) = &s.secret {
                let secret = self.objects.secret(pod.namespace(), &c.name, MAX_AGE).await;
                secret.and_then(|m| {
                    let optional = c.optional.unwrap_or(false);
                    content::secret(m.as_deref(), &c.name, c.items.as_ref(), default_mode, optional)
                })
            } else if let Some(d) = &s.downward_api {
                content::downward_api(pod, d.items.as_ref(), default_mode, &self.allocatable.lock())
            } else if let Some(t) = &s.service_account_token {
                let owner = only_user(pod);
                // A token is for its owner's eyes where the pod says who that is.
                let mode = if owner.is_some() || fs_group(pod).is_some() { 0o600 } else { default_mode };
                self.tokens.get(&self.client, pod, t).await.map(|token| {
                    [(t.path.clone(), atomic::File { data: token.into_bytes(), mode, owner })].into()
                })
            } else {
                Ok(Payload::new())
            };
            match part {
                Ok(p) => payload.extend(p),
                Err(e) => errors.push(e),
            }
        }
        match errors.as_slice() {
            [] => Ok(payload),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }

    async fn claim(
        &self,
        pod: &Pod,
        volume: &str,
        claim_name: &str,
        read_only: bool,
    ) -> Result<Ready, String> {
        let text = |e: kube::Error| match e {
            kube::Error::Api(s) => s.message.clone(),
            other => other.to_string(),
        };
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), pod.namespace());
        let claim = claims
            .get(claim_name)
            .await
            .map_err(|e| format!("failed to fetch PVC from API server: {}", text(e)))?;
        let spec = claim.spec.unwrap_or_default();
        let bound = claim.status.and_then(|s| s.phase).as_deref() == Some("Bound");
        let volume_name = spec.volume_name.filter(|n| bound && !n.is_empty()).ok_or("PVC is not bound")?;
        let pv = Api::<PersistentVolume>::all(self.client.clone())
            .get(&volume_name)
            .await
            .map_err(|e| format!("failed to fetch PV {volume_name} from API server: {}", text(e)))?;
        let annotations = pv.metadata.annotations.unwrap_or_default();
        let group = annotations.get("pv.beta.kubernetes.io/gid").and_then(|g| g.parse().ok());
        let pv_spec = pv.spec.unwrap_or_default();
        let block = pv_spec.volume_mode.as_deref() == Some("Block");
        let ready = if let Some(h) = &pv_spec.host_path {
            host::check_host_path(&h.path, h.type_.as_deref().unwrap_or_default())?;
            Ready::at(&h.path)
        } else if let Some(l) = &pv_spec.local {
            if !Path::new(&l.path).exists() {
                return Err(format!("path {} does not exist", quote(&l.path)));
            }
            if let Some(group) = fs_group(pod).filter(|_| !block) {
                host::give_to_group(Path::new(&l.path), group, false).map_err(|e| e.to_string())?;
            }
            Ready::at(&l.path)
        } else if let Some(n) = &pv_spec.nfs {
            let older = annotations.get("volume.beta.kubernetes.io/mount-options");
            let options = match older {
                Some(list) => list.split(',').map(String::from).collect(),
                None => pv_spec.mount_options.clone().unwrap_or_default(),
            };
            self.nfs(pod, &volume_name, n, &options).await?
        } else {
            return Err(format!("no volume plugin matched name: {volume}"));
        };
        Ok(Ready { read_only: ready.read_only || read_only, block, group, ..ready })
    }

    async fn nfs(
        &self,
        pod: &Pod,
        name: &str,
        source: &NFSVolumeSource,
        options: &[String],
    ) -> Result<Ready, String> {
        let dir = self.volume_dir(pod, "nfs", name);
        make_dir(&dir)?;
        if !host::is_mounted(&dir).map_err(|e| e.to_string())? {
            let args = nfs_arguments(source, options, &dir);
            let output = tokio::process::Command::new("mount")
                .args(&args)
                .stdin(std::process::Stdio::null())
                .kill_on_drop(true)
                .output();
            let output = tokio::time::timeout(Duration::from_secs(120), output)
                .await
                .map_err(|_| "mount failed: timed out".to_string())?
                .map_err(|e| format!("mount failed: {e}"))?;
            if !output.status.success() {
                return Err(format!(
                    "mount failed: exit status {}\nMounting command: mount\nMounting arguments: {}\nOutput: {}\n",
                    output.status.code().unwrap_or(-1),
                    args.join(" "),
                    String::from_utf8_lossy(&output.stderr).trim_end()
                ));
            }
        }
        Ok(Ready { read_only: source.read_only.unwrap_or(false), ..Ready::at(dir) })
    }
}

/// What `mount` is called with: options each once, in order.
fn nfs_arguments(source: &NFSVolumeSource, options: &[String], dir: &Path) -> Vec<String> {
    let read_only = source.read_only.unwrap_or(false).then_some("ro");
    let options: BTreeSet<&str> = options.iter().map(String::as_str).chain(read_only).collect();
    let mut args = vec!["-t".to_string(), "nfs".into()];
    if !options.is_empty() {
        args.extend(["-o".to_string(), options.into_iter().collect::<Vec<_>>().join(",")]);
    }
    args.extend([format!("{}:{}", source.server, source.path), dir.display().to_string()]);
    args
}

fn mode(value: Option<i32>) -> u32 {
    value.and_then(|m| u32::try_from(m).ok()).unwrap_or(DEFAULT_MODE)
}

fn make_dir(dir: &Path) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display()))
}

/// A folder that everybody may write to, whatever the umask says. One that is there keeps what it has beyond that: it
/// may be a mount with a sticky bit, or a group's.
fn open_dir(dir: &Path) -> Result<(), String> {
    make_dir(dir)?;
    let text = |e: std::io::Error| format!("{}: {e}", dir.display());
    let mode = fs::metadata(dir).map_err(text)?.mode() & 0o7777;
    match mode & 0o777 {
        0o777 => Ok(()),
        _ => fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o777)).map_err(text),
    }
}

fn of_group(dir: &Path, group: u32) -> bool {
    fs::metadata(dir).is_ok_and(|m| m.gid() == group)
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.pod_spec().security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The user that all containers of a pod run as, where the pod says so of each.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.pod_spec();
    let general = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(general));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then(|| u32::try_from(first).ok())?
}

#[async_trait]
impl VolumeManager for Volumes {
    async fn mount(&self, pod: &Arc<Pod>) -> Result<PodMounts, MountError> {
        let mut mounts = PodMounts { volumes: BTreeMap::new(), groups: Vec::new() };
        let mut error = MountError::default();
        for volume in pod.pod_spec().volumes.iter().flatten() {
            match self.set_up(pod, volume).await {
                Ok(ready) => {
                    mounts.groups.extend(ready.group);
                    mounts.volumes.insert(
                        volume.name.clone(),
                        MountedVolume {
                            host_path: ready.path,
                            read_only: ready.read_only,
                            block: ready.block,
                        },
                    );
                }
                Err(why) => {
                    error.unmounted.push(volume.name.clone());
                    error.failures.push(Failure {
                        volume: volume.name.clone(),
                        reason: "FailedMount",
                        message: format!(
                            "MountVolume.SetUp failed for volume {} : {why}",
                            quote(&volume.name)
                        ),
                    });
                }
            }
        }
        if error.unmounted.is_empty() { Ok(mounts) } else { Err(error) }
    }

    async fn unmount(&self, uid: &str) -> Result<(), MountError> {
        self.tokens.forget(uid);
        let dir = self.pod_dir(uid);
        let mut error = MountError::default();
        // Sub paths first: they are mounts of what lies in the volumes.
        for part in ["volume-subpaths", "volumes"] {
            let path = dir.join(part);
            if !path.exists() {
                continue;
            }
            if let Err(e) = host::remove(&path) {
                error.unmounted.push(part.to_string());
                error.failures.push(Failure {
                    volume: part.to_string(),
                    reason: "FailedUnMount",
                    message: format!("UnmountVolume.TearDown failed: {e}"),
                });
                break;
            }
        }
        if error.failures.is_empty() { Ok(()) } else { Err(error) }
    }

    async fn sub_path(
        &self,
        pod: &Arc<Pod>,
        container: &str,
        index: usize,
        volume: &str,
        mounted: &MountedVolume,
        sub_path: &str,
    ) -> Result<PathBuf, String> {
        let target = self
            .pod_dir(pod.uid())
            .join("volume-subpaths")
            .join(volume)
            .join(container)
            .join(index.to_string());
        host::bind_sub_path(&mounted.host_path, sub_path, &target).map_err(|e| {
            format!(
                "failed to prepare subPath for volumeMount {} of container {}: {e}",
                quote(volume),
                quote(container)
            )
        })?;
        Ok(target)
    }

    fn in_use(&self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::FixedObjects;
    use serde_json::json;

    fn manager(root: &Path, objects: FixedObjects) -> Volumes {
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        Volumes::new(root, client, Arc::new(objects), KubeletRelease::default())
    }

    fn pod(volumes: serde_json::Value) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u1"},
                "spec": {"containers": [], "volumes": volumes}}))
            .unwrap(),
        )
    }

    #[tokio::test]
    async fn mounts_what_it_can_and_says_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let objects = FixedObjects::default();
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": {"k": "v"}});
        objects
            .config_maps
            .lock()
            .insert(("ns".into(), "m".into()), Arc::new(serde_json::from_value(map).unwrap()));
        let m = manager(dir.path(), objects);
        let good = pod(json!([{"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "m"}},
            {"name": "h", "hostPath": {"path": "/etc"}}]));
        let mounts = m.mount(&good).await.unwrap();
        assert_eq!(mounts.volumes["h"].host_path, Path::new("/etc"));
        let file = mounts.volumes["c"].host_path.join("k");
        assert_eq!(fs::read_to_string(file).unwrap(), "v");
        assert!(mounts.volumes["c"].read_only);
        let bad = pod(json!([{"name": "x", "configMap": {"name": "no"}}]));
        let e = m.mount(&bad).await.unwrap_err();
        assert_eq!(
            e.failures[0].message,
            "MountVolume.SetUp failed for volume \"x\" : configmap \"no\" not found"
        );
        assert_eq!(e.unmounted, ["x"]);
        m.unmount("u1").await.unwrap();
        assert!(!dir.path().join("pods/u1/volumes").exists());
        assert!(Path::new("/etc/passwd").exists());
    }

    #[test]
    fn nfs_is_mounted_with_the_volumes_options() {
        let args = |source: serde_json::Value, options: &[&str]| {
            let source = serde_json::from_value(source).unwrap();
            let options: Vec<String> = options.iter().map(ToString::to_string).collect();
            nfs_arguments(&source, &options, Path::new("/d")).join(" ")
        };
        let plain = json!({"server": "h", "path": "/p"});
        assert_eq!(args(plain.clone(), &[]), "-t nfs h:/p /d");
        assert_eq!(args(plain, &["vers=4.1", "hard", "vers=4.1"]), "-t nfs -o hard,vers=4.1 h:/p /d");
        let read_only = json!({"server": "h", "path": "/p", "readOnly": true});
        assert_eq!(args(read_only, &["ro", "hard"]), "-t nfs -o hard,ro h:/p /d");
    }

    #[test]
    fn one_user_for_all_or_none() {
        let pod = |pod_user: Option<i64>, users: &[Option<i64>]| -> Pod {
            let containers: Vec<_> =
                users.iter().map(|u| json!({"name": "c", "securityContext": {"runAsUser": u}})).collect();
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": containers,
                "securityContext": {"runAsUser": pod_user}}}))
            .unwrap()
        };
        assert_eq!(only_user(&pod(Some(5), &[None, None])), Some(5));
        assert_eq!(only_user(&pod(None, &[Some(5), Some(5)])), Some(5));
        assert_eq!(only_user(&pod(None, &[Some(5), None])), None);
        assert_eq!(only_user(&pod(Some(5), &[Some(6), None])), None);
    }
}
