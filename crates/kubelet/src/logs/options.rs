//! What a request for a log asks for, and which of a container's runs it means. Texts are those of v1.20's kubelet.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};

/// What is wrong with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// A parameter cannot be read: 400.
    #[error("{{\"message\": \"Unable to decode query.\"}}")]
    Undecodable,
    /// A parameter may not be as it is: 422.
    #[error("{{\"message\": \"Invalid request.\"}}")]
    Invalid,
}

/// What a request for a log asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Wait for more while the container runs.
    pub follow: bool,
    /// The run before this one.
    pub previous: bool,
    /// The last so many lines.
    pub tail: Option<u64>,
    /// Lines from this moment on.
    pub since: Option<Timestamp>,
    /// Each line with its time.
    pub timestamps: bool,
    /// At most so many bytes.
    pub limit: Option<u64>,
}

impl Options {
    /// From a query, as decoded pairs.
    pub fn from_query(query: &[(String, String)], now: Timestamp) -> Result<Options, LogError> {
        let get = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
        let number = |name: &str| -> Result<Option<i64>, LogError> {
            get(name).map(|v| v.parse::<i64>().map_err(|_| LogError::Undecodable)).transpose()
        };
        // As Go's conversion reads booleans: there, and neither of these.
        let flag =
            |name: &str| get(name).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"));
        let tail = match get("tail").filter(|t| !t.is_empty()) {
            Some("all") => None,
            Some(t) => Some(t.parse::<i64>().map_err(|_| LogError::Undecodable)?),
            None => number("tailLines")?,
        };
        let since_seconds = number("sinceSeconds")?;
        let since_time = match get("sinceTime") {
            None | Some("" | "null") => None,
            Some(t) => Some(t.parse::<Timestamp>().map_err(|_| LogError::Undecodable)?),
        };
        let limit = number("limitBytes")?;
        let bad = tail.is_some_and(|t| t < 0)
            || limit.is_some_and(|l| l < 1)
            || since_seconds.is_some_and(|s| s < 1)
            || (since_seconds.is_some() && since_time.is_some());
        if bad {
            return Err(LogError::Invalid);
        }
        let ago = since_seconds.and_then(|s| now.checked_sub(SignedDuration::from_secs(s)).ok());
        Ok(Options {
            follow: flag("follow"),
            previous: flag("previous"),
            tail: tail.and_then(|t| u64::try_from(t).ok()),
            since: ago.or(since_time),
            timestamps: flag("timestamps"),
            limit: limit.and_then(|l| u64::try_from(l).ok()),
        })
    }
}

/// The id (`containerd://…`) of the run whose log is meant, by the pod's status.
pub fn container_id(
    pod: &str,
    status: &PodStatus,
    container: &str,
    previous: bool,
) -> Result<String, String> {
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let of_name = |c: &&ContainerStatus| c.name == container;
    let Some(c) = lists.into_iter().flatten().flatten().find(of_name) else {
        return Err(format!("container {container:?} in pod {pod:?} is not available"));
    };
    let state = c.state.clone().unwrap_or_default();
    let id = |s: &Option<String>| s.clone().filter(|i| !i.is_empty());
    let last = c.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    let last_id = last.and_then(|t| id(&t.container_id));
    let terminated = || format!("container {container:?} in pod {pod:?} is terminated");
    if previous {
        return last_id
            .ok_or_else(|| format!("previous terminated container {container:?} in pod {pod:?} not found"));
    }
    if state.running.is_some() {
        return Ok(c.container_id.clone().unwrap_or_default());
    }
    if let Some(t) = &state.terminated {
        return id(&t.container_id).or(last_id).ok_or_else(terminated);
    }
    if last.is_some() {
        return last_id.ok_or_else(terminated);
    }
    let Some(waiting) = &state.waiting else {
        return Err(format!("container {container:?} in pod {pod:?} is waiting to start - no logs yet"));
    };
    let why = match waiting.reason.as_deref().unwrap_or("") {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    };
    Err(format!("container {container:?} in pod {pod:?} is waiting to start: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn options(query: &[(&str, &str)]) -> Result<Options, LogError> {
        let pairs: Vec<_> = query.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Options::from_query(&pairs, Timestamp::from_second(1000).unwrap())
    }

    #[test]
    fn reads_queries_as_v1_20() {
        let o =
            options(&[("follow", ""), ("timestamps", "False"), ("tailLines", "3"), ("sinceSeconds", "10")])
                .unwrap();
        assert!(o.follow && !o.timestamps && !o.previous);
        assert_eq!((o.tail, o.since), (Some(3), Timestamp::from_second(990).ok()));
        assert_eq!(options(&[("tail", "all"), ("tailLines", "3")]).unwrap().tail, None);
        assert_eq!(options(&[("tail", "2")]).unwrap().tail, Some(2));
        for bad in [&[("tailLines", "x")][..], &[("sinceTime", "now")]] {
            assert_eq!(options(bad), Err(LogError::Undecodable));
        }
        let both = [("sinceSeconds", "1"), ("sinceTime", "2020-01-01T00:00:00Z")];
        for bad in [&[("tailLines", "-1")][..], &[("limitBytes", "0")], &[("sinceSeconds", "0")], &both] {
            assert_eq!(options(bad), Err(LogError::Invalid));
        }
        assert_eq!(LogError::Invalid.to_string(), "{\"message\": \"Invalid request.\"}");
    }

    fn id(status: Value, previous: bool) -> Result<String, String> {
        let mut c = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0});
        c.as_object_mut().unwrap().extend(status.as_object().unwrap().clone());
        let s: PodStatus = serde_json::from_value(json!({"containerStatuses": [c]})).unwrap();
        container_id("p", &s, "c", previous)
    }

    #[test]
    fn the_run_that_is_meant() {
        let ended = |id: &str| json!({"terminated": {"exitCode": 1, "containerID": id}});
        assert_eq!(id(json!({"containerID": "x://1", "state": {"running": {}}}), false).unwrap(), "x://1");
        assert_eq!(id(json!({"state": ended("x://1")}), false).unwrap(), "x://1");
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!(id(json!({"state": waiting, "lastState": ended("x://0")}), false).unwrap(), "x://0");
        assert_eq!(
            id(json!({"state": {"running": {}}, "lastState": ended("x://0")}), true).unwrap(),
            "x://0"
        );
        let e = id(json!({"state": {"running": {}}}), true).unwrap_err();
        assert_eq!(e, "previous terminated container \"c\" in pod \"p\" not found");
        let e = id(json!({"state": {"waiting": {"reason": "PodInitializing"}}}), false).unwrap_err();
        assert_eq!(e, "container \"c\" in pod \"p\" is waiting to start: PodInitializing");
        let e = id(json!({"state": {"waiting": {"reason": "ErrImagePull"}}}), false).unwrap_err();
        assert!(e.ends_with("image can't be pulled"));
        assert!(
            container_id("p", &PodStatus::default(), "d", false).unwrap_err().ends_with("is not available")
        );
    }
}
