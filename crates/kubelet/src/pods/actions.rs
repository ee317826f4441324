//! What must be done for a pod, by its spec and by what runs of it: a plain function.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pod::PodExt;
use crate::runtime::cri;
use crate::runtime::labels;
use crate::runtime::status::{ContainerStatus, PodStatus, State, ready, should_restart};

/// A container to be killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// The runtime's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The event's message.
    pub message: String,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actions {
    /// Kill everything of the pod, its sandboxes too.
    pub kill_pod: bool,
    /// Make a sandbox.
    pub create_sandbox: bool,
    /// The sandbox that is there; the one that is replaced where one is made. Empty where there is none.
    pub sandbox: String,
    /// Number of the sandbox.
    pub attempt: u32,
    /// The init container to start next.
    pub next_init: Option<String>,
    /// Containers to start, in order.
    pub start: Vec<String>,
    /// Ephemeral containers to start, before all others.
    pub ephemeral: Vec<String>,
    /// Containers to kill.
    pub kill: Vec<Kill>,
}

/// Tells whether a container (by its id) failed its liveness or startup probe: `liveness`, `startup`.
pub type FailedProbe<'a> = &'a dyn Fn(&str) -> Option<&'static str>;

/// Works out what to do.
pub fn compute(pod: &Pod, status: &PodStatus, failed_probe: FailedProbe<'_>) -> Actions {
    let mut a = lasting(pod, status, failed_probe);
    if !a.create_sandbox && !a.kill_pod && !pod.deleting() {
        // They are started once, whether or not the others are at their beginning, and never again.
        let new = pod.ephemeral_containers().iter().filter(|c| status.container(&c.name).is_none());
        a.ephemeral = new.map(|c| c.name.clone()).collect();
    }
    a
}

/// What to do for the containers that are part of the pod from its beginning.
fn lasting(pod: &Pod, status: &PodStatus, failed_probe: FailedProbe<'_>) -> Actions {
    let (create, attempt, sandbox) = sandbox_changed(pod, status);
    let mut a = Actions { kill_pod: create, create_sandbox: create, sandbox, attempt, ..Default::default() };
    let may_restart = pod.restart_policy() != "Never";
    if create {
        if !may_restart && attempt != 0 && !status.containers.is_empty() {
            // What ran once is not run again.
            a.create_sandbox = false;
            return a;
        }
        let succeeded = |c: &Container| {
            status.container(&c.name).is_some_and(|s| s.state == State::Exited && s.exit_code == 0)
        };
        let start: Vec<String> = pod
            .pod_spec()
            .containers
            .iter()
            .filter(|c| !(pod.restart_policy() == "OnFailure" && succeeded(c)))
            .map(|c| c.name.clone())
            .collect();
        if start.is_empty() && next_init(pod, status) == Init::Done {
            a.create_sandbox = false;
            return a;
        }
        match pod.init_containers().first() {
            Some(first) => a.next_init = Some(first.name.clone()),
            None => a.start = start,
        }
        return a;
    }

    match next_init(pod, status) {
        Init::Done => {}
        Init::Running => return a,
        Init::Start(name) => {
            a.next_init = Some(name);
            return a;
        }
        Init::Failed(last, name) => {
            if may_restart {
                if last.state == State::Unknown {
                    a.kill.push(Kill {
                        id: last.id.clone(),
                        name: name.clone(),
                        message: "Init container is in \"unknown\" state, try killing it before restart"
                            .into(),
                    });
                }
                a.next_init = Some(name);
            } else {
                a.kill_pod = true;
            }
            return a;
        }
    }

    let mut kept = 0;
    for c in &pod.pod_spec().containers {
        let current = status.container(&c.name);
        let running = current.filter(|s| s.state == State::Running);
        let Some(running) = running else {
            if should_restart(c, pod, status) {
                a.start.push(c.name.clone());
                if let Some(unknown) = current.filter(|s| s.state == State::Unknown) {
                    a.kill.push(Kill {
                        id: unknown.id.clone(),
                        name: c.name.clone(),
                        message: "Container is in \"unknown\" state, try killing it before restart".into(),
                    });
                }
            }
            continue;
        };
        let (mut message, mut restart) = (String::new(), may_restart);
        if running.info.hash.is_some_and(|h| h != labels::hash(c)) {
            message = format!("Container {} definition changed", c.name);
            // A changed spec is started whatever the restart policy says.
            restart = true;
        } else if let Some(probe) = failed_probe(&running.id) {
            message = format!("Container {} failed {probe} probe", c.name);
        }
        if message.is_empty() {
            kept += 1;
            continue;
        }
        if restart {
            message.push_str(", will be restarted");
            a.start.push(c.name.clone());
        }
        a.kill.push(Kill { id: running.id.clone(), name: c.name.clone(), message });
    }
    if kept == 0 && a.start.is_empty() {
        a.kill_pod = true;
    }
    a
}

/// Whether a new sandbox is needed, its number, and the one that is there.
fn sandbox_changed(pod: &Pod, status: &PodStatus) -> (bool, u32, String) {
    let Some(newest) = status.sandboxes.first() else { return (true, 0, String::new()) };
    let attempt = newest.metadata.as_ref().map_or(0, |m| m.attempt);
    let id = newest.id.clone();
    if status.sandboxes.iter().filter(|s| ready(s)).count() > 1 || !ready(newest) {
        return (true, attempt + 1, id);
    }
    let options = newest.linux.as_ref().and_then(|l| l.namespaces.as_ref()).and_then(|n| n.options.as_ref());
    let wanted = if pod.host_network() { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod };
    if options.is_some_and(|o| o.network != wanted as i32) {
        return (true, attempt + 1, String::new());
    }
    if !pod.host_network() && newest.network.as_ref().is_none_or(|n| n.ip.is_empty()) {
        return (true, attempt + 1, id);
    }
    (false, attempt, id)
}

#[derive(Debug, PartialEq)]
enum Init<'a> {
    /// All init containers succeeded.
    Done,
    /// One is running.
    Running,
    /// This one is next.
    Start(String),
    /// This one failed.
    Failed(&'a ContainerStatus, String),
}

fn next_init<'a>(pod: &Pod, status: &'a PodStatus) -> Init<'a> {
    let inits = pod.init_containers();
    if inits.is_empty() {
        return Init::Done;
    }
    // Dead init containers are removed in time: that the pod's own containers were made shows that they were done.
    if pod.pod_spec().containers.iter().any(|c| status.container(&c.name).is_some()) {
        return Init::Done;
    }
    for c in inits.iter().rev() {
        if let Some(s) = status.container(&c.name) {
            let failed = s.state == State::Unknown || (s.state == State::Exited && s.exit_code != 0);
            if failed {
                return Init::Failed(s, c.name.clone());
            }
        }
    }
    for (i, c) in inits.iter().enumerate().rev() {
        match status.container(&c.name).map(|s| s.state) {
            Some(State::Running) => return Init::Running,
            Some(State::Exited) => {
                return match inits.get(i + 1) {
                    Some(next) => Init::Start(next.name.clone()),
                    None => Init::Done,
                };
            }
            _ => {}
        }
    }
    Init::Start(inits[0].name.clone())
}

/// Builders of runtime statuses for tests of this and other modules.
#[cfg(test)]
pub mod fixtures {
    use super::*;
    use serde_json::{Value, json};

    /// A pod with these fields of its spec.
    pub fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
            .unwrap()
    }

    /// A ready sandbox.
    pub fn sandbox() -> cri::PodSandboxStatus {
        cri::PodSandboxStatus {
            id: "s0".into(),
            metadata: Some(Default::default()),
            network: Some(cri::PodSandboxNetworkStatus { ip: "10.1.1.1".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    /// A container of the pod in this state.
    pub fn container(pod: &Pod, name: &str, state: State, code: i32) -> ContainerStatus {
        ContainerStatus {
            id: format!("id-{name}"),
            name: name.into(),
            sandbox: "s0".into(),
            log_path: String::new(),
            state,
            created_at: 1,
            started_at: 1,
            finished_at: 2,
            exit_code: code,
            image: "busybox:latest".into(),
            image_id: "sha256:1".into(),
            info: labels::Info { hash: pod.container(name).map(labels::hash), ..Default::default() },
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: String::new(),
        }
    }

    /// What runs, with a ready sandbox.
    pub fn status(containers: Vec<ContainerStatus>) -> PodStatus {
        PodStatus { ips: vec!["10.1.1.1".into()], containers, sandboxes: vec![sandbox()] }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{container, pod, sandbox, status};
    use super::*;
    use serde_json::json;

    fn well(_: &str) -> Option<&'static str> {
        None
    }

    fn two(policy: &str) -> Pod {
        pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}))
    }

    #[test]
    fn a_new_pod_gets_a_sandbox_and_its_containers() {
        let a = compute(&two("Always"), &PodStatus::default(), &well);
        assert!(a.create_sandbox && a.kill_pod);
        assert_eq!((a.attempt, a.sandbox.as_str(), a.start), (0, "", vec!["a".to_string(), "b".into()]));
    }

    #[test]
    fn a_dead_sandbox_is_replaced() {
        let p = two("Always");
        let mut s = status(vec![container(&p, "a", State::Exited, 0)]);
        s.sandboxes[0].state = 1;
        let a = compute(&p, &s, &well);
        assert!(a.create_sandbox);
        assert_eq!((a.attempt, a.sandbox.as_str(), a.start.len()), (1, "s0", 2));
        let mut never = two("Never");
        assert!(!compute(&never, &s, &well).create_sandbox);
        never.spec.as_mut().unwrap().restart_policy = Some("OnFailure".into());
        assert_eq!(compute(&never, &s, &well).start, ["b"]);
        let mut s = status(vec![]);
        s.sandboxes.push(sandbox());
        assert!(compute(&p, &s, &well).create_sandbox, "two ready sandboxes are one too many");
        let mut s = status(vec![]);
        s.sandboxes[0].network = None;
        assert!(compute(&p, &s, &well).create_sandbox);
    }

    #[test]
    fn the_restart_policy_decides() {
        for (policy, code, starts) in
            [("Always", 0, true), ("OnFailure", 0, false), ("OnFailure", 1, true), ("Never", 1, false)]
        {
            let p = two(policy);
            let s =
                status(vec![container(&p, "a", State::Exited, code), container(&p, "b", State::Running, 0)]);
            let a = compute(&p, &s, &well);
            assert_eq!(!a.start.is_empty(), starts, "{policy} {code}");
            assert!(!a.kill_pod);
        }
        let p = two("Never");
        let done = status(vec![container(&p, "a", State::Exited, 0), container(&p, "b", State::Exited, 1)]);
        assert!(compute(&p, &done, &well).kill_pod);
    }

    #[test]
    fn failed_probes_and_changed_specs_restart() {
        let mut p = two("Always");
        let s = status(vec![container(&p, "a", State::Running, 0), container(&p, "b", State::Running, 0)]);
        let a = compute(&p, &s, &|id| (id == "id-a").then_some("liveness"));
        assert_eq!(a.kill[0].message, "Container a failed liveness probe, will be restarted");
        assert_eq!(a.start, ["a"]);
        p.spec.as_mut().unwrap().restart_policy = Some("Never".into());
        let a = compute(&p, &s, &|_| Some("startup"));
        assert!(a.kill_pod && a.start.is_empty());
        p.spec.as_mut().unwrap().containers[0].image = Some("other".into());
        let a = compute(&p, &s, &well);
        assert_eq!(a.kill[0].message, "Container a definition changed, will be restarted");
        let mut taken_over = s.clone();
        taken_over.containers[0].info.hash = None;
        assert!(compute(&p, &taken_over, &well).kill.is_empty());
    }

    #[test]
    fn init_containers_go_one_by_one() {
        let p = |policy: &str| {
            pod(
                json!({"restartPolicy": policy, "initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "c"}]}),
            )
        };
        let always = p("Always");
        let next = |s: &PodStatus| compute(&always, s, &well);
        assert_eq!(next(&PodStatus::default()).next_init.as_deref(), Some("i"));
        assert_eq!(
            next(&status(vec![container(&always, "i", State::Running, 0)])),
            Actions { sandbox: "s0".into(), ..Default::default() }
        );
        assert_eq!(
            next(&status(vec![container(&always, "i", State::Exited, 0)])).next_init.as_deref(),
            Some("j")
        );
        let failed = status(vec![
            container(&always, "j", State::Exited, 1),
            container(&always, "i", State::Exited, 0),
        ]);
        assert_eq!(next(&failed).next_init.as_deref(), Some("j"));
        assert!(compute(&p("Never"), &failed, &well).kill_pod);
        let done = status(vec![container(&always, "j", State::Exited, 0)]);
        assert_eq!(next(&done).start, ["c"]);
        let collected = status(vec![container(&always, "c", State::Running, 0)]);
        assert!(next(&collected).next_init.is_none() && !next(&collected).kill_pod);
    }

    #[test]
    fn ephemeral_containers_are_started_once() {
        let p = pod(
            json!({"restartPolicy": "Always", "initContainers": [{"name": "i"}], "containers": [{"name": "c"}],
            "ephemeralContainers": [{"name": "e"}, {"name": "f"}]}),
        );
        assert!(compute(&p, &PodStatus::default(), &well).ephemeral.is_empty(), "not without a sandbox");
        let mut s = status(vec![container(&p, "i", State::Running, 0)]);
        assert_eq!(compute(&p, &s, &well).ephemeral, ["e", "f"]);
        s.containers.push(container(&p, "e", State::Exited, 1));
        assert_eq!(compute(&p, &s, &well).ephemeral, ["f"]);
        let over = pod(
            json!({"restartPolicy": "Never", "containers": [{"name": "c"}], "ephemeralContainers": [{"name": "e"}]}),
        );
        let s = status(vec![container(&over, "c", State::Exited, 0)]);
        assert!(compute(&over, &s, &well).ephemeral.is_empty());
    }

    #[test]
    fn a_pod_that_goes_starts_nothing() {
        let mut p = two("Always");
        p.metadata.deletion_timestamp = Some(crate::pod::now());
        let s = status(vec![container(&p, "a", State::Exited, 0), container(&p, "b", State::Running, 0)]);
        assert!(compute(&p, &s, &well).start.is_empty());
    }
}
