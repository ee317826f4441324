//! Looks at what the runtime runs, once a second, and wakes the tasks of the pods in which something changed.
//!
//! The look is two small lists however many pods there are. Right after a container was started it comes more often,
//! because many containers end as soon as they have begun.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use pilothouse_component_base::signals::Stop;
use tokio::time::Instant;

use crate::kubelet::Kubelet;
use crate::runtime::cri;
use crate::runtime::labels::POD_UID;
use crate::runtime::status::State;

const INTERVAL: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(250);
/// How long after a start the looks come often.
const LIVELY: Duration = Duration::from_secs(3);

/// What runs, by pod uid: ids with their states.
type Seen = HashMap<String, HashSet<(String, i32)>>;

fn group(sandboxes: &[cri::PodSandbox], containers: &[cri::Container]) -> Seen {
    let mut seen = Seen::new();
    let mut add = |labels: &HashMap<String, String>, id: &str, state: i32| {
        if let Some(uid) = labels.get(POD_UID) {
            seen.entry(uid.clone()).or_default().insert((id.to_string(), state));
        }
    };
    for s in sandboxes {
        add(&s.labels, &s.id, s.state);
    }
    for c in containers {
        add(&c.labels, &c.id, c.state);
    }
    seen
}

/// The pods that differ.
fn changed<'a>(old: &'a Seen, new: &'a Seen) -> HashSet<&'a str> {
    let differs = |uid: &&'a String| old.get(*uid) != new.get(*uid);
    old.keys().chain(new.keys()).filter(differs).map(String::as_str).collect()
}

/// Pods of which a sandbox is ready or a container runs.
fn running(sandboxes: &[cri::PodSandbox], containers: &[cri::Container]) -> HashSet<String> {
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let of = |labels: &HashMap<String, String>| labels.get(POD_UID).cloned();
    let sandboxes = sandboxes.iter().filter(|s| s.state == ready).filter_map(|s| of(&s.labels));
    let containers =
        containers.iter().filter(|c| State::from(c.state) == State::Running).filter_map(|c| of(&c.labels));
    sandboxes.chain(containers).collect()
}

impl Kubelet {
    /// Looks until `stop`.
    pub(crate) async fn watch_runtime(self: Arc<Self>, stop: Stop) {
        let mut seen = Seen::new();
        let mut last: Option<Instant> = None;
        loop {
            let wait = if self.since_start() < LIVELY { SOON } else { INTERVAL };
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(wait) => {} }
            let started = Instant::now();
            let both = futures::try_join!(self.cri.list_sandboxes(None), self.cri.list_containers(None));
            let (sandboxes, containers) = match both {
                Ok(b) => b,
                Err(e) => {
                    tracing::debug!("what runs is not known: {e}");
                    continue;
                }
            };
            let now = group(&sandboxes, &containers);
            let pods = running(&sandboxes, &containers);
            let count = |state: State| {
                i64::try_from(containers.iter().filter(|c| State::from(c.state) == state).count())
                    .unwrap_or(0)
            };
            self.metrics.relisted(
                started.elapsed(),
                last.map(|l| started.duration_since(l)),
                i64::try_from(pods.len()).unwrap_or(0),
                &[
                    ("running", count(State::Running)),
                    ("exited", count(State::Exited)),
                    ("created", count(State::Created)),
                    ("unknown", count(State::Unknown)),
                ],
            );
            last = Some(started);
            self.looked();
            for uid in changed(&seen, &now) {
                self.wake_worker(uid);
            }
            self.set_running(pods);
            seen = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_found_by_pod() {
        let c = |uid: &str, id: &str, state| cri::Container {
            id: id.into(),
            state,
            labels: HashMap::from([(POD_UID.to_string(), uid.to_string())]),
            ..Default::default()
        };
        let a = group(&[], &[c("1", "a", 1), c("2", "b", 1), c("3", "d", 1)]);
        let b = group(&[], &[c("1", "a", 1), c("2", "b", 2), c("4", "c", 1)]);
        assert_eq!(changed(&a, &b), HashSet::from(["2", "3", "4"]));
        assert!(changed(&b, &b).is_empty());
    }
}
