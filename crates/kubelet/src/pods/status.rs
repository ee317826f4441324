//! A pod's status as the API server gets it, from what runs and from what it was before: a plain function.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus as ApiStatus, Pod, PodIP, PodStatus as ApiPodStatus,
};

use super::conditions;
use crate::pod::{PodExt, as_container, time_from_nanos};
use crate::resources;
use crate::runtime::status::{ContainerStatus, PodStatus, State, should_restart};

/// Why a container could not be started: reason and message of its waiting state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// `ErrImagePull`, `CrashLoopBackOff`, …
    pub reason: String,
    /// Text; may be empty.
    pub message: String,
}

/// The containers that could not be started last time.
pub type Reasons = HashMap<String, Waiting>;

/// What probes say of containers, by pod uid, container name and the runtime's id.
pub trait Probed {
    /// Whether it has started; `None` where nothing says that it has not.
    fn started(&self, uid: &str, name: &str, id: &str) -> Option<bool>;
    /// Whether it is ready; `None` where nothing says that it is not.
    fn ready(&self, uid: &str, name: &str, id: &str) -> Option<bool>;
}

/// What the status needs beside the pod.
pub struct Inputs<'a> {
    /// What runs.
    pub runtime: &'a PodStatus,
    /// The runtime's name, before its ids: `containerd`.
    pub runtime_name: &'a str,
    /// The status as it was.
    pub previous: &'a ApiPodStatus,
    /// See [`Reasons`].
    pub reasons: &'a Reasons,
    /// See [`Probed`].
    pub probes: &'a dyn Probed,
    /// The node's address.
    pub host_ip: &'a str,
}

/// Makes a pod's status. `evicted` (reason and message) makes it a failed one.
pub fn generate(pod: &Pod, inputs: &Inputs<'_>, evicted: Option<(&str, &str)>) -> ApiPodStatus {
    let spec = pod.pod_spec();
    let previous = inputs.previous;
    let mut ips = inputs.runtime.ips.clone();
    if ips.is_empty() && !pod.host_network() {
        // The addresses of a pod whose sandbox is gone stay to be seen.
        ips = previous.pod_ips.iter().flatten().map(|i| i.ip.clone()).collect();
    }
    let of = |containers: &[Container], old: Option<&Vec<ApiStatus>>, init: bool| {
        let list = container_statuses(pod, inputs, containers, old.map_or(&[], Vec::as_slice), init);
        Some(list).filter(|l| !l.is_empty())
    };
    let ephemeral: Vec<Container> = pod.ephemeral_containers().iter().map(as_container).collect();
    let mut status = ApiPodStatus {
        ephemeral_container_statuses: of(&ephemeral, previous.ephemeral_container_statuses.as_ref(), false),
        qos_class: Some(resources::qos(pod).as_str().to_string()),
        init_container_statuses: of(pod.init_containers(), previous.init_container_statuses.as_ref(), true),
        container_statuses: of(&spec.containers, previous.container_statuses.as_ref(), false),
        ..Default::default()
    };
    set_ips(&mut status, &ips);
    if let Some((reason, message)) = evicted {
        status.phase = Some("Failed".into());
        status.reason = Some(reason.into());
        status.message = Some(message.into());
        return status;
    }

    let all: Vec<ApiStatus> =
        status.container_statuses.iter().chain(&status.init_container_statuses).flatten().cloned().collect();
    let mut phase = conditions::phase(spec, &all).to_string();
    if let Some(old @ ("Failed" | "Succeeded")) = pod.pod_status().phase.as_deref() {
        // There is no way back from these.
        phase = old.to_string();
        status.reason = previous.reason.clone();
        status.message = previous.message.clone();
    }
    apply_probes(pod, &mut status, inputs.probes);
    let others: Vec<_> = pod
        .pod_status()
        .conditions
        .iter()
        .flatten()
        .filter(|c| !conditions::OWNED.contains(&c.type_.as_str()))
        .cloned()
        .collect();
    let containers = status.container_statuses.as_deref();
    let mut list = others.clone();
    list.push(conditions::initialized(spec, status.init_container_statuses.as_deref(), &phase));
    list.push(conditions::ready(spec, &others, containers, &phase));
    list.push(conditions::containers_ready(spec, containers, &phase));
    list.push(conditions::condition("PodScheduled", true, "", ""));
    status.conditions = Some(list);
    status.phase = Some(phase);
    if !inputs.host_ip.is_empty() {
        status.host_ip = Some(inputs.host_ip.to_string());
        if pod.host_network() && ips.is_empty() {
            set_ips(&mut status, &[inputs.host_ip.to_string()]);
        }
    }
    status
}

fn set_ips(status: &mut ApiPodStatus, ips: &[String]) {
    if let Some(first) = ips.first() {
        status.pod_ip = Some(first.clone());
        status.pod_ips = Some(ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect());
    }
}

/// Says of a pod that it must not run: why, and that its containers wait for that.
pub fn block(status: &mut ApiPodStatus, reason: &str, message: &str) {
    status.reason = Some(reason.into());
    status.message = Some(message.into());
    let containers =
        status.container_statuses.iter_mut().chain(&mut status.init_container_statuses).flatten();
    for waiting in containers.filter_map(|c| c.state.as_mut()?.waiting.as_mut()) {
        waiting.reason = Some("Blocked".into());
    }
}

/// Fills in `ready` and `started`.
pub fn apply_probes(pod: &Pod, status: &mut ApiPodStatus, probes: &dyn Probed) {
    for c in status.container_statuses.iter_mut().flatten() {
        let running = c.state.as_ref().is_some_and(|s| s.running.is_some());
        let id = crate::probes::worker::bare_id(c.container_id.as_deref().unwrap_or("")).to_string();
        let started = running && probes.started(pod.uid(), &c.name, &id).unwrap_or(true);
        c.started = Some(started);
        c.ready = started && probes.ready(pod.uid(), &c.name, &id).unwrap_or(true);
    }
    for c in status.init_container_statuses.iter_mut().flatten() {
        let done = c.state.as_ref().and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0);
        c.ready = done;
    }
}

fn convert(c: &ContainerStatus, runtime: &str, old: Option<&ApiStatus>) -> ApiStatus {
    let id = format!("{runtime}://{}", c.id);
    let text = |s: &String| Some(s.clone()).filter(|s| !s.is_empty());
    let was_running = old.is_some_and(|o| o.state.as_ref().is_some_and(|s| s.running.is_some()));
    let mut restart_count = c.info.restart_count;
    let state = match c.state {
        State::Running => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(time_from_nanos(c.started_at)) }),
            ..Default::default()
        },
        // A container that was made and not started counts as dead: each is started right after it was made.
        State::Created | State::Exited => ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: c.exit_code,
                reason: text(&c.reason),
                message: text(&c.message),
                started_at: Some(time_from_nanos(c.started_at)),
                finished_at: Some(time_from_nanos(c.finished_at)),
                container_id: Some(id.clone()),
                signal: None,
            }),
            ..Default::default()
        },
        State::Unknown if was_running => {
            restart_count = old.map_or(0, |o| o.restart_count) + 1;
            ContainerState {
                terminated: Some(lost("The container could not be located when the pod was terminated")),
                ..Default::default()
            }
        }
        State::Unknown => {
            ContainerState { waiting: Some(ContainerStateWaiting::default()), ..Default::default() }
        }
    };
    ApiStatus {
        name: c.name.clone(),
        restart_count,
        image: c.image.clone(),
        image_id: c.image_id.clone(),
        container_id: Some(id),
        state: Some(state),
        last_state: Some(ContainerState::default()),
        ..Default::default()
    }
}

fn lost(message: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.into()),
        exit_code: 137,
        ..Default::default()
    }
}

fn container_statuses(
    pod: &Pod,
    inputs: &Inputs<'_>,
    containers: &[Container],
    previous: &[ApiStatus],
    init: bool,
) -> Vec<ApiStatus> {
    let waiting_for = if pod.init_containers().is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let mut out = Vec::with_capacity(containers.len());
    for container in containers {
        let old = previous.iter().find(|s| s.name == container.name);
        let seen: Vec<&ContainerStatus> =
            inputs.runtime.containers.iter().filter(|c| c.name == container.name).take(2).collect();
        let mut status = match (seen.first(), old) {
            (Some(current), _) => {
                let mut s = convert(current, inputs.runtime_name, old);
                if let Some(before) = seen.get(1) {
                    s.last_state = convert(before, inputs.runtime_name, None).state;
                } else if s.restart_count > 0 && !init {
                    // The one before it was collected; what was said of it stays.
                    s.last_state = remembered(&s, old);
                }
                s
            }
            // What is dead and collected stays as it was last seen.
            (None, Some(o)) if o.state.as_ref().is_some_and(|s| s.terminated.is_some()) => o.clone(),
            (None, old) => not_there(pod, container, old, waiting_for),
        };
        let succeeded = seen.first().is_some_and(|s| s.state == State::Exited && s.exit_code == 0);
        if !(init && succeeded)
            && should_restart(container, pod, inputs.runtime)
            && let Some(why) = inputs.reasons.get(&container.name)
        {
            if let Some(s) = status.state.take().filter(|s| s.terminated.is_some()) {
                status.last_state = Some(s);
            }
            status.state = Some(ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some(why.reason.clone()),
                    message: Some(why.message.clone()).filter(|m| !m.is_empty()),
                }),
                ..Default::default()
            });
        }
        out.push(status);
    }
    if !init {
        out.sort_by(|a, b| a.name.cmp(&b.name));
    }
    out
}

/// The last state of a container whose predecessor is no longer in the runtime.
fn remembered(new: &ApiStatus, old: Option<&ApiStatus>) -> Option<ContainerState> {
    let empty = Some(ContainerState::default());
    let Some(old) = old else { return empty };
    let same = old.container_id == new.container_id;
    match &old.state {
        Some(s) if !same && s.terminated.is_some() => Some(s.clone()),
        _ => old.last_state.clone().or(empty),
    }
}

fn not_there(pod: &Pod, container: &Container, old: Option<&ApiStatus>, waiting_for: &str) -> ApiStatus {
    let mut s = ApiStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        restart_count: old.map_or(0, |o| o.restart_count),
        last_state: old.and_then(|o| o.last_state.clone()).or(Some(ContainerState::default())),
        state: Some(ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(waiting_for.into()), message: None }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let was_running = old.is_some_and(|o| o.state.as_ref().is_some_and(|s| s.running.is_some()));
    let died_before = s.last_state.as_ref().is_some_and(|l| l.terminated.is_some());
    if was_running && !died_before {
        let text =
            "The container could not be located when the pod was deleted.  The container used to be Running";
        s.last_state = Some(ContainerState { terminated: Some(lost(text)), ..Default::default() });
        if !pod.deleting() {
            s.restart_count += 1;
        }
    }
    s
}

/// Whether no container of a status runs.
pub fn none_running(statuses: Option<&Vec<ApiStatus>>) -> bool {
    statuses.into_iter().flatten().all(|s| s.state.as_ref().is_none_or(|s| s.running.is_none()))
}

#[cfg(test)]
mod tests {
    use super::super::actions::fixtures::{container, pod, status};
    use super::*;
    use serde_json::{Value, json};

    struct All;
    impl Probed for All {
        fn started(&self, _: &str, _: &str, _: &str) -> Option<bool> {
            None
        }
        fn ready(&self, _: &str, _: &str, _: &str) -> Option<bool> {
            None
        }
    }

    fn run(pod: &Pod, runtime: &PodStatus, previous: Value, reasons: &[(&str, &str, &str)]) -> ApiPodStatus {
        let previous: ApiPodStatus = serde_json::from_value(previous).unwrap();
        let reasons = reasons
            .iter()
            .map(|(n, r, m)| (n.to_string(), Waiting { reason: r.to_string(), message: m.to_string() }))
            .collect();
        let inputs = Inputs {
            runtime,
            runtime_name: "containerd",
            previous: &previous,
            reasons: &reasons,
            probes: &All,
            host_ip: "20.0.0.1",
        };
        generate(pod, &inputs, None)
    }

    fn one(policy: &str) -> Pod {
        pod(json!({"restartPolicy": policy, "containers": [{"name": "c", "image": "busybox"}]}))
    }

    #[test]
    fn a_pod_that_is_new() {
        let p = one("Always");
        let s = run(&p, &PodStatus::default(), json!({}), &[]);
        let c = serde_json::to_value(&s.container_statuses.as_ref().unwrap()[0]).unwrap();
        assert_eq!(
            c,
            json!({"name": "c", "image": "busybox", "imageID": "", "lastState": {}, "ready": false, "restartCount": 0,
                "started": false, "state": {"waiting": {"reason": "ContainerCreating"}}})
        );
        assert_eq!(s.phase.as_deref(), Some("Pending"));
        assert_eq!((s.host_ip.as_deref(), s.pod_ip), (Some("20.0.0.1"), None));
    }

    #[test]
    fn a_pod_that_runs() {
        let p = one("Always");
        let s = run(&p, &status(vec![container(&p, "c", State::Running, 0)]), json!({}), &[]);
        let c = &s.container_statuses.as_ref().unwrap()[0];
        assert!(c.ready && c.started == Some(true));
        assert_eq!(c.container_id.as_deref(), Some("containerd://id-c"));
        assert_eq!((s.phase.as_deref(), s.pod_ip.as_deref()), (Some("Running"), Some("10.1.1.1")));
        assert!(s.conditions.unwrap().iter().all(|c| c.status == "True"));
    }

    #[test]
    fn a_crash_loop_shows_what_happened_last() {
        let p = one("Always");
        let mut dead = container(&p, "c", State::Exited, 1);
        dead.info.restart_count = 1;
        let text = "back-off 10s restarting failed container=c pod=p_n(u)";
        let s = run(&p, &status(vec![dead]), json!({}), &[("c", "CrashLoopBackOff", text)]);
        let c = &s.container_statuses.as_ref().unwrap()[0];
        assert_eq!(c.state.as_ref().unwrap().waiting.as_ref().unwrap().message.as_deref(), Some(text));
        assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
        assert_eq!((c.restart_count, s.phase.as_deref()), (1, Some("Running")));
    }

    #[test]
    fn the_end_of_a_pod() {
        let p = one("Never");
        let mut runtime = status(vec![container(&p, "c", State::Exited, 0)]);
        runtime.ips.clear();
        let s = run(&p, &runtime, json!({"podIPs": [{"ip": "10.1.1.9"}]}), &[]);
        assert_eq!((s.phase.as_deref(), s.pod_ip.as_deref()), (Some("Succeeded"), Some("10.1.1.9")));
        let initialized = s.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Initialized").unwrap();
        assert_eq!(
            (initialized.status.as_str(), initialized.reason.as_deref()),
            ("True", Some("PodCompleted"))
        );
        // Its containers are collected: they stay as they were seen.
        let before = serde_json::to_value(&s).unwrap();
        let again = run(&p, &PodStatus::default(), before, &[]);
        assert_eq!(again.container_statuses, s.container_statuses);
    }

    #[test]
    fn what_ran_and_is_nowhere_is_said_to_be_lost() {
        let p = one("Always");
        let before = json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 2,
            "state": {"running": {}}}]});
        let s = run(&p, &PodStatus::default(), before, &[]);
        let c = &s.container_statuses.as_ref().unwrap()[0];
        assert_eq!(c.restart_count, 3);
        assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 137);
    }

    #[test]
    fn containers_are_sorted_and_init_containers_are_not() {
        let p = pod(
            json!({"initContainers": [{"name": "z"}, {"name": "a"}], "containers": [{"name": "z2"}, {"name": "a2"}]}),
        );
        let s = run(&p, &PodStatus::default(), json!({}), &[]);
        let names =
            |l: &Option<Vec<ApiStatus>>| l.iter().flatten().map(|c| c.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&s.init_container_statuses), ["z", "a"]);
        assert_eq!(names(&s.container_statuses), ["a2", "z2"]);
        assert_eq!(s.init_container_statuses.unwrap()[0].started, None);
    }

    #[test]
    fn an_evicted_pod_has_no_conditions() {
        let p = one("Always");
        let inputs_status = status(vec![container(&p, "c", State::Running, 0)]);
        let previous = ApiPodStatus::default();
        let reasons = Reasons::new();
        let inputs = Inputs {
            runtime: &inputs_status,
            runtime_name: "containerd",
            previous: &previous,
            reasons: &reasons,
            probes: &All,
            host_ip: "20.0.0.1",
        };
        let s = generate(&p, &inputs, Some(("DeadlineExceeded", "too long")));
        assert_eq!((s.conditions, s.host_ip, s.phase.as_deref()), (None, None, Some("Failed")));
        assert_eq!(s.container_statuses.unwrap()[0].started, None);
    }
}
