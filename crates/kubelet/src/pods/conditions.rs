//! A pod's phase and conditions, from the statuses of its containers.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec};

/// The conditions that are the kubelet's own business.
pub const OWNED: [&str; 4] = ["PodScheduled", "Ready", "Initialized", "ContainersReady"];

fn find<'a>(list: &'a [ContainerStatus], name: &str) -> Option<&'a ContainerStatus> {
    list.iter().find(|c| c.name == name)
}

/// A condition; its times are set later.
pub fn condition(type_: &str, status: bool, reason: &str, message: &str) -> PodCondition {
    let text = |s: &str| Some(s.to_string()).filter(|s| !s.is_empty());
    PodCondition {
        type_: type_.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: text(reason),
        message: text(message),
        ..Default::default()
    }
}

/// The pod's phase. `statuses` are those of containers and init containers.
pub fn phase(spec: &PodSpec, statuses: &[ContainerStatus]) -> &'static str {
    let (mut pending_init, mut failed_init) = (0, 0);
    for c in spec.init_containers.iter().flatten() {
        let state = find(statuses, &c.name).and_then(|s| s.state.as_ref());
        let last =
            find(statuses, &c.name).and_then(|s| s.last_state.as_ref()).and_then(|s| s.terminated.as_ref());
        match state {
            Some(s) if s.terminated.is_some() => {
                failed_init += usize::from(s.terminated.as_ref().is_some_and(|t| t.exit_code != 0));
            }
            Some(s) if s.waiting.is_some() && s.running.is_none() && last.is_some() => {
                failed_init += usize::from(last.is_some_and(|t| t.exit_code != 0));
            }
            _ => pending_init += 1,
        }
    }
    let (mut unknown, mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0, 0);
    for c in &spec.containers {
        let Some(s) = find(statuses, &c.name) else {
            unknown += 1;
            continue;
        };
        let state = s.state.clone().unwrap_or_default();
        let died_before = s.last_state.as_ref().is_some_and(|l| l.terminated.is_some());
        if state.running.is_some() {
            running += 1;
        } else if let Some(t) = &state.terminated {
            stopped += 1;
            succeeded += usize::from(t.exit_code == 0);
        } else if state.waiting.is_some() {
            if died_before {
                stopped += 1;
            } else {
                waiting += 1;
            }
        } else {
            unknown += 1;
        }
    }
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    if failed_init > 0 && policy == "Never" {
        return "Failed";
    }
    if pending_init > 0 || waiting > 0 {
        return "Pending";
    }
    if running > 0 && unknown == 0 {
        return "Running";
    }
    if running == 0 && stopped > 0 && unknown == 0 {
        return match policy {
            "Always" => "Running",
            _ if stopped == succeeded => "Succeeded",
            "Never" => "Failed",
            _ => "Running",
        };
    }
    "Pending"
}

fn names<'a>(
    containers: impl Iterator<Item = &'a str>,
    statuses: &[ContainerStatus],
) -> (Vec<String>, Vec<String>) {
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for name in containers {
        match find(statuses, name) {
            None => unknown.push(name.to_string()),
            Some(s) if !s.ready => unready.push(name.to_string()),
            Some(_) => {}
        }
    }
    (unknown, unready)
}

fn message(unknown: &[String], unready: &[String], word: &str) -> String {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: [{}]", unknown.join(" ")));
    }
    if !unready.is_empty() {
        parts.push(format!("containers with {word} status: [{}]", unready.join(" ")));
    }
    parts.join(", ")
}

/// `ContainersReady`.
pub fn containers_ready(spec: &PodSpec, statuses: Option<&[ContainerStatus]>, phase: &str) -> PodCondition {
    const TYPE: &str = "ContainersReady";
    let Some(statuses) = statuses else { return condition(TYPE, false, "UnknownContainerStatuses", "") };
    let (unknown, unready) = names(spec.containers.iter().map(|c| c.name.as_str()), statuses);
    if phase == "Succeeded" && unknown.is_empty() {
        return condition(TYPE, false, "PodCompleted", "");
    }
    match message(&unknown, &unready, "unready").as_str() {
        "" => condition(TYPE, true, "", ""),
        m => condition(TYPE, false, "ContainersNotReady", m),
    }
}

/// `Ready`: all containers and all readiness gates. `conditions` are those of others.
pub fn ready(
    spec: &PodSpec,
    conditions: &[PodCondition],
    statuses: Option<&[ContainerStatus]>,
    phase: &str,
) -> PodCondition {
    let containers = containers_ready(spec, statuses, phase);
    if containers.status != "True" {
        return PodCondition { type_: "Ready".into(), ..containers };
    }
    let missing: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter_map(|g| {
            let gate = &g.condition_type;
            match conditions.iter().find(|c| c.type_ == *gate) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate \"{gate}\" does not exist."))
                }
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{gate}\" is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    match missing.is_empty() {
        true => condition("Ready", true, "", ""),
        false => condition("Ready", false, "ReadinessGatesNotReady", &missing.join(", ")),
    }
}

/// `Initialized`.
pub fn initialized(spec: &PodSpec, statuses: Option<&[ContainerStatus]>, phase: &str) -> PodCondition {
    const TYPE: &str = "Initialized";
    let inits = spec.init_containers.as_deref().unwrap_or(&[]);
    let Some(statuses) = statuses.or(inits.is_empty().then_some(&[])) else {
        return condition(TYPE, false, "UnknownContainerStatuses", "");
    };
    let (unknown, unready) = names(inits.iter().map(|c| c.name.as_str()), statuses);
    if phase == "Succeeded" && unknown.is_empty() {
        return condition(TYPE, true, "PodCompleted", "");
    }
    match message(&unknown, &unready, "incomplete").as_str() {
        "" => condition(TYPE, true, "", ""),
        m => condition(TYPE, false, "ContainersNotInitialized", m),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(policy: &str, init: bool) -> PodSpec {
        let inits = if init { json!([{"name": "i"}]) } else { json!([]) };
        serde_json::from_value(json!({"restartPolicy": policy, "initContainers": inits, "containers": [{"name": "a"}, {"name": "b"}]}))
            .unwrap()
    }

    fn s(name: &str, state: Value, last: Value) -> ContainerStatus {
        serde_json::from_value(
            json!({"name": name, "image": "", "imageID": "", "ready": state.get("running").is_some(),
            "restartCount": 0, "state": state, "lastState": last}),
        )
        .unwrap()
    }

    #[test]
    fn phases() {
        let (run, ok, bad, wait) = (
            json!({"running": {}}),
            json!({"terminated": {"exitCode": 0}}),
            json!({"terminated": {"exitCode": 1}}),
            json!({"waiting": {}}),
        );
        let p = |policy: &str, a: &Value, b: &Value| {
            phase(&spec(policy, false), &[s("a", a.clone(), json!({})), s("b", b.clone(), json!({}))])
        };
        assert_eq!(p("Always", &run, &run), "Running");
        assert_eq!(p("Always", &run, &wait), "Pending");
        assert_eq!(p("Always", &ok, &ok), "Running");
        assert_eq!(p("Never", &ok, &ok), "Succeeded");
        assert_eq!(p("Never", &ok, &bad), "Failed");
        assert_eq!(p("OnFailure", &ok, &bad), "Running");
        assert_eq!(p("Never", &run, &bad), "Running");
        let crash = [s("a", wait.clone(), bad.clone()), s("b", run.clone(), json!({}))];
        assert_eq!(phase(&spec("Always", false), &crash), "Running");
        let init = |state: &Value, last: &Value| {
            let all = [
                s("i", state.clone(), last.clone()),
                s("a", wait.clone(), json!({})),
                s("b", wait.clone(), json!({})),
            ];
            (phase(&spec("Always", true), &all), phase(&spec("Never", true), &all))
        };
        assert_eq!(init(&run, &json!({})), ("Pending", "Pending"));
        assert_eq!(init(&bad, &json!({})), ("Pending", "Failed"));
        assert_eq!(init(&wait, &bad), ("Pending", "Failed"));
    }

    #[test]
    fn conditions_name_the_containers() {
        let spec = spec("Always", true);
        let statuses = [s("a", json!({"running": {}}), json!({})), s("b", json!({"waiting": {}}), json!({}))];
        let c = containers_ready(&spec, Some(&statuses), "Pending");
        assert_eq!(c.message.as_deref(), Some("containers with unready status: [b]"));
        assert_eq!(
            ready(&spec, &[], Some(&statuses), "Pending").reason.as_deref(),
            Some("ContainersNotReady")
        );
        let c = initialized(&spec, Some(&[]), "Pending");
        assert_eq!(c.message.as_deref(), Some("containers with unknown status: [i]"));
        assert_eq!(
            containers_ready(&spec, None, "Pending").reason.as_deref(),
            Some("UnknownContainerStatuses")
        );
        assert_eq!(
            containers_ready(&spec, Some(&statuses), "Succeeded").reason.as_deref(),
            Some("PodCompleted")
        );
    }

    #[test]
    fn readiness_gates() {
        let spec: PodSpec = serde_json::from_value(
            json!({"containers": [], "readinessGates": [{"conditionType": "test/ok"}]}),
        )
        .unwrap();
        let text = |conditions: &[PodCondition]| ready(&spec, conditions, Some(&[]), "Running").message;
        assert_eq!(
            text(&[]).as_deref(),
            Some("corresponding condition of pod readiness gate \"test/ok\" does not exist.")
        );
        assert_eq!(
            text(&[condition("test/ok", false, "", "")]).as_deref(),
            Some("the status of pod readiness gate \"test/ok\" is not \"True\", but False")
        );
        assert_eq!(text(&[condition("test/ok", true, "", "")]), None);
    }
}
