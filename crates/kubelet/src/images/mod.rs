//! Getting a container's image onto the node.

pub mod gc;
pub mod keyring;
pub mod reference;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use pilothouse_apimachinery::go::quote;
use pilothouse_client::EventRecorder;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::pod::PodExt;
use crate::runtime::{Cri, RuntimeError, cri};
use keyring::Keyring;

/// Why there is no image: the reason and the message of the container's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageError {
    /// `ErrImagePull`, `ImagePullBackOff`, `ErrImageNeverPull`, `InvalidImageName`, `ImageInspectError`.
    pub reason: &'static str,
    /// Text.
    pub message: String,
    /// How long to wait before the next try, where that is known.
    pub retry: Option<Duration>,
}

/// So many a second, so many at once.
struct Limit {
    per_second: f64,
    burst: f64,
    state: Mutex<(f64, Instant)>,
}

impl Limit {
    fn accept(&self) -> bool {
        let mut s = self.state.lock();
        let now = Instant::now();
        s.0 = (s.0 + now.duration_since(s.1).as_secs_f64() * self.per_second).min(self.burst);
        s.1 = now;
        if s.0 < 1.0 {
            return false;
        }
        s.0 -= 1.0;
        true
    }
}

/// See the module.
pub struct Images {
    runtime: Arc<dyn Cri>,
    recorder: EventRecorder,
    backoff: Backoff,
    one_at_a_time: Option<tokio::sync::Mutex<()>>,
    limit: Option<Limit>,
    node_keyring: Keyring,
}

impl Images {
    /// `qps` 0 is no limit. `node_keyring` has the node's own credentials.
    pub fn new(
        runtime: Arc<dyn Cri>,
        recorder: EventRecorder,
        serial: bool,
        qps: i64,
        burst: i64,
        node_keyring: Keyring,
    ) -> Images {
        let limit = (qps > 0).then(|| Limit {
            per_second: qps as f64,
            burst: burst as f64,
            state: Mutex::new((burst as f64, Instant::now())),
        });
        Images {
            runtime,
            recorder,
            backoff: Backoff::new(Duration::from_secs(10), Duration::from_secs(300)),
            one_at_a_time: serial.then(|| tokio::sync::Mutex::new(())),
            limit,
            node_keyring,
        }
    }

    /// Makes sure that a container's image is there, and gives its reference. `interrupt` ends a pull: the pod is no
    /// longer wanted.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        secrets: &Keyring,
        sandbox: &cri::PodSandboxConfig,
        interrupt: &CancellationToken,
    ) -> Result<String, ImageError> {
        let given = container.image.as_deref().unwrap_or("");
        let event_for = pod.container_reference(&container.name);
        let error = |reason, message: String, retry| ImageError { reason, message, retry };
        let image = reference::with_default_tag(given).map_err(|e| {
            let text = format!("Failed to apply default image tag {}: {e}", quote(given));
            self.recorder.warning(&event_for, "InspectFailed", text.as_str());
            error("InvalidImageName", text, None)
        })?;
        let present = self.present(&image).await.map_err(|e| {
            let text = format!("Failed to inspect image {}: {e}", quote(given));
            self.recorder.warning(&event_for, "InspectFailed", text.as_str());
            error("ImageInspectError", text, None)
        })?;
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        if !should_pull(policy, present.is_some()) {
            return match present {
                Some(reference) => {
                    let text = format!("Container image {} already present on machine", quote(given));
                    self.recorder.normal(&event_for, "Pulled", text);
                    Ok(reference)
                }
                None => {
                    let text =
                        format!("Container image {} is not present with pull policy of Never", quote(given));
                    self.recorder.warning(&event_for, "ErrImageNeverPull", text.as_str());
                    Err(error("ErrImageNeverPull", text, None))
                }
            };
        }
        let key = format!("{}_{given}", pod.uid());
        if let Some(wait) = self.backoff.remaining_since_update(&key) {
            let text = format!("Back-off pulling image {}", quote(given));
            self.recorder.normal(&event_for, "BackOff", text.as_str());
            return Err(error("ImagePullBackOff", text, Some(wait)));
        }
        self.recorder.normal(&event_for, "Pulling", format!("Pulling image {}", quote(given)));
        let started = Instant::now();
        let pulled = tokio::select! {
            r = self.pull(&image, secrets, sandbox) => r,
            _ = interrupt.cancelled() => Err(PullError::Interrupted),
        };
        match pulled {
            Ok(reference) => {
                let took = crate::images::show_duration(started.elapsed());
                let text = format!("Successfully pulled image {} in {took}", quote(given));
                self.recorder.normal(&event_for, "Pulled", text);
                self.backoff.collect();
                Ok(reference)
            }
            Err(PullError::Interrupted) => Err(error("ErrImagePull", "pull interrupted".into(), None)),
            Err(PullError::Failed(e)) => {
                let text = format!("Failed to pull image {}: {e}", quote(given));
                self.recorder.warning(&event_for, "Failed", text);
                self.backoff.next(&key, Instant::now());
                Err(error("ErrImagePull", e, None))
            }
        }
    }

    async fn present(&self, image: &str) -> Result<Option<String>, RuntimeError> {
        Ok(self.runtime.image_status(image).await?.map(|i| i.repo_digests.into_iter().next().unwrap_or(i.id)))
    }

    async fn pull(
        &self,
        image: &str,
        secrets: &Keyring,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<String, PullError> {
        let _turn = match &self.one_at_a_time {
            Some(m) => Some(m.lock().await),
            None => None,
        };
        if self.limit.as_ref().is_some_and(|l| !l.accept()) {
            return Err(PullError::Failed("pull QPS exceeded".into()));
        }
        let repository = reference::repository(image);
        let mut credentials = secrets.lookup(&repository);
        credentials.extend(self.node_keyring.lookup(&repository));
        if credentials.is_empty() {
            let pulled = self.runtime.pull_image(image, None, Some(sandbox.clone())).await;
            return pulled.map_err(|e| PullError::Failed(e.to_string()));
        }
        let mut errors = Vec::new();
        for auth in credentials {
            match self.runtime.pull_image(image, Some(auth), Some(sandbox.clone())).await {
                Ok(reference) => return Ok(reference),
                Err(e) => errors.push(e.to_string()),
            }
        }
        errors.dedup();
        Err(PullError::Failed(match errors.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        }))
    }
}

enum PullError {
    Interrupted,
    Failed(String),
}

fn should_pull(policy: &str, present: bool) -> bool {
    match policy {
        "Never" => false,
        "Always" => true,
        _ => !present,
    }
}

/// A duration as Go prints it: `1.234567891s`, `12.5ms`.
pub fn show_duration(d: Duration) -> String {
    let n = d.as_nanos();
    let fraction = |whole: u128, rest: u128, width: usize| {
        let rest = format!("{rest:0width$}");
        match rest.trim_end_matches('0') {
            "" => whole.to_string(),
            r => format!("{whole}.{r}"),
        }
    };
    match n {
        0..1_000 => format!("{n}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(n / 1_000, n % 1_000, 3)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(n / 1_000_000, n % 1_000_000, 6)),
        _ => {
            let (s, ns) = (n / 1_000_000_000, n % 1_000_000_000);
            let seconds = format!("{}s", fraction(s % 60, ns, 9));
            match (s / 3600, s / 60 % 60) {
                (0, 0) => seconds,
                (0, m) => format!("{m}m{seconds}"),
                (h, m) => format!("{h}h{m}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeCri;
    use serde_json::json;

    #[test]
    fn durations_look_as_in_go() {
        for (ns, want) in [
            (1_500_000, "1.5ms"),
            (2_000, "2µs"),
            (61_000_000_001, "1m1.000000001s"),
            (3_600_000_000_000, "1h0m0s"),
            (250_000_000, "250ms"),
        ] {
            assert_eq!(show_duration(Duration::from_nanos(ns)), want);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn policies_and_back_off() {
        let fake = FakeCri::with_images(&["busybox"]);
        let (recorder, events) = EventRecorder::for_test("kubelet");
        let images = Images::new(Arc::new(fake.clone()), recorder, true, 0, 0, Keyring::default());
        let pod = |policy: &str, image: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"containers": [{"name": "c", "image": image, "imagePullPolicy": policy}]}}))
            .unwrap()
        };
        let ensure = async |policy: &str, image: &str| {
            let p = pod(policy, image);
            let sandbox = Default::default();
            images
                .ensure(&p, &p.pod_spec().containers[0], &Keyring::default(), &sandbox, &Default::default())
                .await
        };
        assert_eq!(ensure("IfNotPresent", "busybox").await.unwrap(), "sha256:busybox:latest");
        assert!(fake.take_calls().is_empty());
        ensure("Always", "busybox").await.unwrap();
        assert_eq!(fake.take_calls(), ["pull busybox:latest"]);
        let e = ensure("Never", "nosuch").await.unwrap_err();
        assert_eq!(
            (e.reason, e.message.as_str()),
            ("ErrImageNeverPull", "Container image \"nosuch\" is not present with pull policy of Never")
        );
        assert_eq!(ensure("Always", "Bad").await.unwrap_err().reason, "InvalidImageName");
        fake.fail("pull", RuntimeError::unknown("no"));
        let e = ensure("Always", "x:1").await.unwrap_err();
        assert_eq!((e.reason, e.message.as_str()), ("ErrImagePull", "rpc error: code = Unknown desc = no"));
        let e = ensure("Always", "x:1").await.unwrap_err();
        assert_eq!((e.reason, e.message.as_str()), ("ImagePullBackOff", "Back-off pulling image \"x:1\""));
        tokio::time::advance(Duration::from_secs(10)).await;
        fake.heal();
        assert!(ensure("Always", "x:1").await.is_ok());
        tokio::task::yield_now().await;
        let reasons: Vec<String> = events.lock().iter().filter_map(|e| e.reason.clone()).collect();
        assert_eq!(
            reasons,
            [
                "Pulled",
                "Pulling",
                "Pulled",
                "ErrImageNeverPull",
                "InspectFailed",
                "Pulling",
                "Failed",
                "BackOff",
                "Pulling",
                "Pulled"
            ]
        );
    }
}
