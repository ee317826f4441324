//! Volumes that are plain folders, whatever they should be: for tests and hollow nodes.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;

use super::{Failure, MountError, MountedVolume, PodMounts, VolumeManager};
use crate::pod::PodExt;

/// See the module.
#[derive(Default)]
pub struct FakeVolumes {
    root: PathBuf,
    fail: Mutex<Option<String>>,
}

impl FakeVolumes {
    /// Volumes that lie (in name only) below `root`.
    pub fn new(root: impl Into<PathBuf>) -> FakeVolumes {
        FakeVolumes { root: root.into(), fail: Mutex::new(None) }
    }

    /// Makes mounting fail with this text, or succeed again.
    pub fn fail(&self, why: Option<&str>) {
        *self.fail.lock() = why.map(String::from);
    }
}

#[async_trait]
impl VolumeManager for FakeVolumes {
    async fn mount(&self, pod: &Arc<Pod>) -> Result<PodMounts, MountError> {
        let names: Vec<String> = pod.pod_spec().volumes.iter().flatten().map(|v| v.name.clone()).collect();
        if let (Some(why), Some(first)) = (self.fail.lock().clone(), names.first()) {
            let message = format!("MountVolume.SetUp failed for volume {first:?} : {why}");
            let failure = Failure { volume: first.clone(), reason: "FailedMount", message };
            return Err(MountError { failures: vec![failure], unmounted: names });
        }
        let dir = self.root.join(pod.uid());
        let volumes = names
            .into_iter()
            .map(|n| {
                let mounted = MountedVolume { host_path: dir.join(&n), read_only: false, block: false };
                (n, mounted)
            })
            .collect();
        Ok(PodMounts { volumes, groups: Vec::new() })
    }

    async fn unmount(&self, _: &str) -> Result<(), MountError> {
        Ok(())
    }

    async fn sub_path(
        &self,
        _: &Arc<Pod>,
        _: &str,
        _: usize,
        _: &str,
        mounted: &MountedVolume,
        sub_path: &str,
    ) -> Result<PathBuf, String> {
        Ok(mounted.host_path.join(sub_path))
    }

    fn in_use(&self) -> Vec<String> {
        Vec::new()
    }
}
