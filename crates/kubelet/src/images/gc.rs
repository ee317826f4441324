//! Image garbage collection: where the images' disk is too full, those that were not used for the longest time go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use parking_lot::Mutex;
use pilothouse_client::EventRecorder;
use pilothouse_component_base::signals::Stop;
use tokio::time::Instant;

use super::reference;
use crate::config::Config;
use crate::runtime::{Cri, cri};
use crate::stats::Stats;

const INTERVAL: Duration = Duration::from_secs(300);

/// When images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Percents of the disk in use from which on images go.
    pub high: u64,
    /// Percents of the disk to come down to.
    pub low: u64,
    /// Images that were not seen for longer than this only.
    pub min_age: Duration,
}

impl Policy {
    /// `imageGCHighThresholdPercent`, `imageGCLowThresholdPercent`, `imageMinimumGCAge`.
    pub fn from_config(config: &Config) -> Result<Policy, String> {
        let percent = |name: &str| {
            let n = config.kubelet.int(name);
            u64::try_from(n)
                .ok()
                .filter(|p| *p <= 100)
                .ok_or(format!("invalid configuration: {name} {n} must be between 0 and 100, inclusive"))
        };
        let (high, low) = (percent("imageGCHighThresholdPercent")?, percent("imageGCLowThresholdPercent")?);
        if low > high {
            return Err(format!(
                "invalid configuration: imageGCLowThresholdPercent {low} can not be higher than imageGCHighThresholdPercent {high}"
            ));
        }
        Ok(Policy { high, low, min_age: config.kubelet.duration("imageMinimumGCAge")? })
    }
}

#[derive(Debug, Clone)]
struct Seen {
    first: Instant,
    last_used: Option<Instant>,
    size: u64,
}

/// See the module.
pub struct ImageGc {
    runtime: Arc<dyn Cri>,
    recorder: EventRecorder,
    node: ObjectReference,
    policy: Policy,
    infra: String,
    seen: Mutex<HashMap<String, Seen>>,
}

impl ImageGc {
    /// The sandbox's image stays. Events are about `node`.
    pub fn new(
        runtime: Arc<dyn Cri>,
        recorder: EventRecorder,
        node: ObjectReference,
        policy: Policy,
        infra: &str,
    ) -> ImageGc {
        let infra = reference::with_default_tag(infra).unwrap_or_else(|_| infra.to_string());
        ImageGc { runtime, recorder, node, policy, infra, seen: Mutex::default() }
    }

    /// Collects now and then until `stop`.
    pub async fn run(self: Arc<Self>, stats: Arc<Stats>, stop: Stop) {
        let mut before_failed = false;
        loop {
            if let Err(e) = self.look().await {
                tracing::debug!("images: {e}");
            }
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(INTERVAL) => {} }
            let sample = stats.sample().await;
            let space = sample.image_fs;
            match self.collect(space.capacity, space.available).await {
                Ok(_) => before_failed = false,
                Err(e) => {
                    tracing::warn!("Image garbage collection failed: {e}");
                    // Once may be bad luck.
                    if before_failed {
                        self.recorder.warning(&self.node, "ImageGCFailed", e);
                    }
                    before_failed = true;
                }
            }
        }
    }

    /// Makes room where a disk of that size has too little of it; the bytes that became free.
    pub async fn collect(&self, capacity: u64, available: u64) -> Result<u64, String> {
        let available = available.min(capacity);
        if capacity == 0 {
            self.recorder.warning(
                &self.node,
                "InvalidDiskCapacity",
                "invalid capacity 0 on image filesystem",
            );
            return Err("invalid capacity 0 on image filesystem".into());
        }
        let Some(wanted) = to_free(self.policy, capacity, available) else { return Ok(0) };
        let used = 100 - available * 100 / capacity;
        tracing::info!(
            "disk usage on image filesystem is at {used}% which is over the high threshold ({}%). Trying to free {wanted} bytes down to the low threshold ({}%)",
            self.policy.high,
            self.policy.low
        );
        let freed = self.free(wanted, self.policy.min_age).await?;
        if freed < wanted {
            let e = format!(
                "failed to garbage collect required amount of images. Wanted to free {wanted} bytes, but freed {freed} bytes"
            );
            self.recorder.warning(&self.node, "FreeDiskSpaceFailed", e.as_str());
            return Err(e);
        }
        Ok(freed)
    }

    /// Removes all images that nothing uses.
    pub async fn remove_unused(&self) -> Result<u64, String> {
        self.free(u64::MAX, Duration::ZERO).await
    }

    /// Notes which images there are and which are in use; gives those that are.
    async fn look(&self) -> Result<(Vec<cri::Image>, HashSet<String>), String> {
        let (images, containers) =
            futures::try_join!(self.runtime.list_images(), self.runtime.list_containers(None))
                .map_err(|e| e.to_string())?;
        let names: HashSet<&str> = containers
            .iter()
            .flat_map(|c| [c.image_ref.as_str(), c.image.as_ref().map_or("", |i| i.image.as_str())])
            .collect();
        let used: HashSet<String> = images
            .iter()
            .filter(|i| {
                let called = |n: &str| names.contains(n) || n == self.infra;
                i.pinned || called(&i.id) || i.repo_tags.iter().chain(&i.repo_digests).any(|n| called(n))
            })
            .map(|i| i.id.clone())
            .collect();
        let now = Instant::now();
        let mut seen = self.seen.lock();
        for i in &images {
            let s = seen.entry(i.id.clone()).or_insert(Seen { first: now, last_used: None, size: i.size });
            s.size = i.size;
            if used.contains(&i.id) {
                s.last_used = Some(now);
            }
        }
        seen.retain(|id, _| images.iter().any(|i| i.id == *id));
        Ok((images, used))
    }

    async fn free(&self, wanted: u64, min_age: Duration) -> Result<u64, String> {
        let began = Instant::now();
        let (_, used) = self.look().await?;
        let mut candidates: Vec<(String, Seen)> = {
            let seen = self.seen.lock();
            seen.iter().filter(|(id, _)| !used.contains(*id)).map(|(id, s)| (id.clone(), s.clone())).collect()
        };
        candidates.sort_by_key(|(id, s)| (s.last_used, s.first, id.clone()));
        let (mut freed, mut errors) = (0, Vec::new());
        for (id, s) in candidates {
            if freed >= wanted {
                break;
            }
            if began.duration_since(s.first) < min_age {
                continue;
            }
            tracing::info!("removing image {id} to free {} bytes", s.size);
            match self.runtime.remove_image(&id).await {
                Ok(()) => {
                    self.seen.lock().remove(&id);
                    freed += s.size;
                }
                Err(e) => errors.push(e.to_string()),
            }
        }
        if errors.is_empty() {
            Ok(freed)
        } else {
            Err(format!(
                "wanted to free {wanted} bytes, but freed {freed} bytes space with errors in image deletion: {}",
                errors.join(", ")
            ))
        }
    }
}

/// How many bytes must become free; `None` where the disk is not too full.
fn to_free(policy: Policy, capacity: u64, available: u64) -> Option<u64> {
    let used = 100 - u64::try_from(u128::from(available) * 100 / u128::from(capacity)).unwrap_or(0);
    if used < policy.high {
        return None;
    }
    let aim = u128::from(capacity) * u128::from(100 - policy.low) / 100;
    Some(u64::try_from(aim).unwrap_or(u64::MAX).saturating_sub(available))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeCri;

    const POLICY: Policy = Policy { high: 85, low: 80, min_age: Duration::from_secs(120) };

    #[test]
    fn how_much_must_go() {
        assert_eq!(to_free(POLICY, 1000, 160), None);
        assert_eq!(to_free(POLICY, 1000, 150), Some(50));
        assert_eq!(to_free(POLICY, 1000, 0), Some(200));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_unused_images_go() {
        let fake = FakeCri::with_images(&["pause:3.2", "used", "old", "young"]);
        let container = |image: &str| cri::ContainerConfig {
            image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
            ..Default::default()
        };
        fake.create_container("s", container("sha256:used:latest"), Default::default()).await.unwrap();
        fake.create_container("s", container("sha256:young:latest"), Default::default()).await.unwrap();
        let (recorder, _) = EventRecorder::for_test("kubelet");
        let gc = ImageGc::new(Arc::new(fake.clone()), recorder, Default::default(), POLICY, "pause:3.2");
        gc.look().await.unwrap();
        fake.remove_container("container2").await.unwrap();
        fake.take_calls();
        let mib = 1 << 20;
        assert!(gc.collect(100 * mib, 19 * mib).await.is_ok_and(|n| n == 0), "81 % is not over 85 %");
        assert!(gc.collect(10 * mib, mib).await.is_err(), "all are too young");
        tokio::time::advance(Duration::from_secs(121)).await;
        assert_eq!(gc.collect(10 * mib, mib).await.unwrap(), mib);
        assert_eq!(fake.take_calls(), ["remove_image sha256:old:latest"]);
        assert_eq!(gc.remove_unused().await.unwrap(), mib);
        assert_eq!(fake.take_calls(), ["remove_image sha256:young:latest"]);
    }
}
