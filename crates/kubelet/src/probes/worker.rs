//! When to probe, and what a row of results means: a state machine without I/O.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodStatus, Probe};

use super::{Kind, Verdict};

/// What to do at a tick.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Note a verdict on a container without probing it.
    Set(String, Verdict),
    /// Make a probe; note the initial verdict first, where the container is new.
    Probe {
        /// The runtime's id of the container.
        id: String,
        /// Verdict before the first probe.
        initial: Option<Verdict>,
    },
    /// Never probe again; the container that is dead for good, where there is one.
    Stop(Option<String>),
}

/// One probe of one container in a pod.
#[derive(Debug)]
pub struct Worker {
    kind: Kind,
    initial_delay: i64,
    failure_threshold: u32,
    success_threshold: u32,
    never_restarted: bool,
    container: Option<String>,
    replaced: Option<String>,
    on_hold: bool,
    last: Option<bool>,
    run: u32,
}

/// `containerd://id` without the runtime.
pub fn bare_id(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, id)| id)
}

impl Worker {
    /// A worker for a container that has not been seen.
    pub fn new(kind: Kind, spec: &Probe, never_restarted: bool) -> Worker {
        let count = |n: Option<i32>, default| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(default).max(1);
        Worker {
            kind,
            initial_delay: i64::from(spec.initial_delay_seconds.unwrap_or(0)),
            failure_threshold: count(spec.failure_threshold, 3),
            success_threshold: count(spec.success_threshold, 1),
            never_restarted,
            container: None,
            replaced: None,
            on_hold: false,
            last: None,
            run: 0,
        }
    }

    /// The container that is being probed.
    pub fn container_id(&self) -> Option<&str> {
        self.container.as_deref()
    }

    /// The container that was probed before the present one, once.
    pub fn take_replaced(&mut self) -> Option<String> {
        self.replaced.take()
    }

    fn initial(&self) -> Verdict {
        match self.kind {
            Kind::Liveness => Verdict::Success,
            Kind::Readiness => Verdict::Failure,
            Kind::Startup => Verdict::Unknown,
        }
    }

    /// Decides what to do, by the pod's status as it stands.
    pub fn step(&mut self, status: &PodStatus, name: &str, now: Timestamp) -> Step {
        if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
            return Step::Stop(None);
        }
        let c = status.container_statuses.iter().flatten().find(|c| c.name == name);
        let Some((c, id)) = c.and_then(|c| Some((c, bare_id(c.container_id.as_deref()?).to_string()))) else {
            return Step::Wait;
        };
        if id.is_empty() {
            return Step::Wait;
        }
        let mut new = None;
        if self.container.as_deref() != Some(id.as_str()) {
            self.replaced = self.container.replace(id.clone());
            self.on_hold = false;
            new = Some(self.initial());
        }
        let wait = |new: Option<Verdict>, id: &str| new.map_or(Step::Wait, |v| Step::Set(id.to_string(), v));
        if self.on_hold {
            return wait(new, &id);
        }
        let state = c.state.clone().unwrap_or_default();
        let Some(running) = &state.running else {
            if state.terminated.is_some() && self.never_restarted {
                return Step::Stop(Some(id));
            }
            return Step::Set(id, Verdict::Failure);
        };
        let started_at = running.started_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
        if now.duration_since(started_at).as_secs() < self.initial_delay {
            return wait(new, &id);
        }
        // A container that has started needs no startup probe; one that has not is asked nothing else.
        if (c.started == Some(true)) == (self.kind == Kind::Startup) {
            return wait(new, &id);
        }
        Step::Probe { id, initial: new }
    }

    /// Takes a probe's result (`None`: it could not be made) and gives the verdict, where the row is long enough.
    pub fn result(&mut self, result: Option<bool>) -> Option<Verdict> {
        let well = result?;
        self.run = if self.last == Some(well) { self.run + 1 } else { 1 };
        self.last = Some(well);
        let needed = if well { self.success_threshold } else { self.failure_threshold };
        if self.run < needed {
            return None;
        }
        if !well && self.kind != Kind::Readiness {
            // The container will be restarted: leave it alone until there is a new one.
            self.on_hold = true;
            self.run = 0;
        }
        Some(if well { Verdict::Success } else { Verdict::Failure })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn status(id: &str, started: bool, state: Value) -> PodStatus {
        serde_json::from_value(
            json!({"phase": "Running", "containerStatuses": [{"name": "c", "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "started": started, "containerID": id, "state": state}]}),
        )
        .unwrap()
    }

    fn running(id: &str, started: bool) -> PodStatus {
        status(id, started, json!({"running": {"startedAt": "2020-01-01T00:00:00Z"}}))
    }

    fn worker(kind: Kind, spec: Value) -> Worker {
        Worker::new(kind, &serde_json::from_value(spec).unwrap(), false)
    }

    fn at(second: i64) -> Timestamp {
        "2020-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(second)
    }

    #[test]
    fn waits_for_the_delay_and_for_the_start() {
        let mut w = worker(Kind::Liveness, json!({"initialDelaySeconds": 5}));
        assert_eq!(w.step(&PodStatus::default(), "c", at(0)), Step::Wait);
        assert_eq!(w.step(&running("x://a", true), "c", at(4)), Step::Set("a".into(), Verdict::Success));
        assert_eq!(w.step(&running("x://a", false), "c", at(9)), Step::Wait);
        assert_eq!(
            w.step(&running("x://a", true), "c", at(9)),
            Step::Probe { id: "a".into(), initial: None }
        );
        let mut s = worker(Kind::Startup, json!({}));
        assert_eq!(
            s.step(&running("x://a", false), "c", at(0)),
            Step::Probe { id: "a".into(), initial: Some(Verdict::Unknown) }
        );
        assert_eq!(s.step(&running("x://a", true), "c", at(0)), Step::Wait);
    }

    #[test]
    fn thresholds_count_rows() {
        let mut w = worker(Kind::Readiness, json!({"successThreshold": 2, "failureThreshold": 3}));
        let results = [true, true, false, false, true, false, false, false].map(|r| w.result(Some(r)));
        let (s, f) = (Some(Verdict::Success), Some(Verdict::Failure));
        assert_eq!(results, [None, s, None, None, None, None, None, f]);
        assert_eq!(w.result(None), None);
        assert_eq!(w.result(Some(false)), f, "a probe that could not be made breaks no row");
    }

    #[test]
    fn a_failed_container_is_left_alone_until_there_is_a_new_one() {
        let mut w = worker(Kind::Liveness, json!({"failureThreshold": 1}));
        assert!(matches!(w.step(&running("x://a", true), "c", at(0)), Step::Probe { .. }));
        assert_eq!(w.result(Some(false)), Some(Verdict::Failure));
        assert_eq!(w.step(&running("x://a", true), "c", at(1)), Step::Wait);
        assert_eq!(
            w.step(&running("x://b", true), "c", at(2)),
            Step::Probe { id: "b".into(), initial: Some(Verdict::Success) }
        );
        assert_eq!(w.take_replaced().as_deref(), Some("a"));
    }

    #[test]
    fn the_dead_are_not_probed() {
        let dead = status("x://a", false, json!({"terminated": {"exitCode": 0}}));
        let mut w = worker(Kind::Readiness, json!({}));
        assert_eq!(w.step(&dead, "c", at(0)), Step::Set("a".into(), Verdict::Failure));
        let mut never = Worker::new(Kind::Readiness, &Probe::default(), true);
        assert_eq!(never.step(&dead, "c", at(0)), Step::Stop(Some("a".into())));
        let over = PodStatus { phase: Some("Failed".into()), ..Default::default() };
        assert_eq!(w.step(&over, "c", at(0)), Step::Stop(None));
    }
}
