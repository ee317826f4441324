//! What runs of a pod: its sandboxes and containers as the kubelet reasons about them.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::labels::{self, Info};
use super::{Cri, Result, cri};
use crate::pod::PodExt;

/// Longest termination message read from its file, in bytes.
const MAX_MESSAGE: u64 = 4096;
/// Longest termination message taken from the log, in bytes and lines.
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// A container's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Made and not started.
    Created,
    /// Running.
    Running,
    /// Dead.
    Exited,
    /// The runtime does not know.
    Unknown,
}

impl From<i32> for State {
    fn from(n: i32) -> State {
        match cri::ContainerState::try_from(n) {
            Ok(cri::ContainerState::ContainerCreated) => State::Created,
            Ok(cri::ContainerState::ContainerRunning) => State::Running,
            Ok(cri::ContainerState::ContainerExited) => State::Exited,
            _ => State::Unknown,
        }
    }
}

/// One container that is or was. Times are nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerStatus {
    /// The runtime's id.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Id of its sandbox.
    pub sandbox: String,
    /// Its log.
    pub log_path: String,
    /// State.
    pub state: State,
    /// When it was made.
    pub created_at: i64,
    /// When it was started.
    pub started_at: i64,
    /// When it ended.
    pub finished_at: i64,
    /// Exit code.
    pub exit_code: i32,
    /// Image as the runtime names it.
    pub image: String,
    /// Image with its digest.
    pub image_id: String,
    /// What its annotations say.
    pub info: Info,
    /// Why it ended: `Completed`, `Error`, `OOMKilled`, `StartError`.
    pub reason: String,
    /// The runtime's text and the container's own last words.
    pub message: String,
}

/// What runs of a pod.
#[derive(Debug, Clone, Default)]
pub struct PodStatus {
    /// IP addresses of the newest running sandbox.
    pub ips: Vec<String>,
    /// Containers, the newest first.
    pub containers: Vec<ContainerStatus>,
    /// Sandboxes, the newest first.
    pub sandboxes: Vec<cri::PodSandboxStatus>,
}

impl PodStatus {
    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// Containers that run, or that may run.
    pub fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers.iter().filter(|c| matches!(c.state, State::Running | State::Unknown))
    }

    /// Whether a sandbox is ready or a container runs.
    pub fn anything_runs(&self) -> bool {
        self.running().next().is_some() || self.sandboxes.iter().any(ready)
    }
}

/// Whether a sandbox is ready.
pub fn ready(sandbox: &cri::PodSandboxStatus) -> bool {
    sandbox.state == cri::PodSandboxState::SandboxReady as i32
}

/// Asks the runtime what runs of a pod.
pub async fn pod_status(runtime: &dyn Cri, uid: &str) -> Result<PodStatus> {
    let (sandboxes, containers) =
        futures::try_join!(runtime.list_sandboxes(Some(uid)), runtime.list_containers(Some(uid)))?;
    let mut status = PodStatus::default();
    for s in &sandboxes {
        match runtime.sandbox_status(&s.id).await {
            Ok(s) => status.sandboxes.push(s),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    for c in &containers {
        match runtime.container_status(&c.id).await {
            Ok(s) => {
                let mut s = container_status(s);
                s.sandbox = c.pod_sandbox_id.clone();
                status.containers.push(s);
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
    }
    status.sandboxes.sort_by_key(|s| std::cmp::Reverse(s.created_at));
    status.containers.sort_by_key(|c| std::cmp::Reverse(c.created_at));
    if let Some(newest) = status.sandboxes.first().filter(|s| ready(s)) {
        status.ips = ips(newest);
    }
    Ok(status)
}

/// The addresses of a sandbox; none for one in the node's network.
pub fn ips(sandbox: &cri::PodSandboxStatus) -> Vec<String> {
    let Some(network) = &sandbox.network else { return Vec::new() };
    std::iter::once(&network.ip)
        .chain(network.additional_ips.iter().map(|i| &i.ip))
        .filter(|ip| !ip.is_empty())
        .cloned()
        .collect()
}

fn container_status(c: cri::ContainerStatus) -> ContainerStatus {
    let info = labels::info(&c.annotations);
    let state = State::from(c.state);
    let mut message = c.message.clone();
    if state == State::Exited {
        let last_words = last_words(&c, &info);
        if !last_words.is_empty() {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&last_words);
        }
    }
    ContainerStatus {
        name: c.metadata.map(|m| m.name).unwrap_or_default(),
        sandbox: String::new(),
        log_path: c.log_path,
        state,
        created_at: c.created_at,
        started_at: c.started_at,
        finished_at: c.finished_at,
        exit_code: c.exit_code,
        image: c.image.map(|i| i.image).unwrap_or_default(),
        image_id: c.image_ref,
        info,
        reason: c.reason,
        message,
        id: c.id,
    }
}

/// What a container left in its termination message file, or else in its log.
fn last_words(c: &cri::ContainerStatus, info: &Info) -> String {
    let file =
        c.mounts.iter().find(|m| !info.message_path.is_empty() && m.container_path == info.message_path);
    if let Some(mount) = file {
        match read_tail(Path::new(&mount.host_path), MAX_MESSAGE) {
            Ok(text) if !text.is_empty() => return text,
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return format!("Error on reading termination log {}: {e}", mount.host_path),
        }
    }
    let fall_back = info.message_policy == "FallbackToLogsOnError"
        && c.exit_code != 0
        && c.reason != "ContainerCannotRun";
    if fall_back {
        return read_log_tail(Path::new(&c.log_path))
            .unwrap_or_else(|e| format!("Error on reading termination message from logs: {e}"));
    }
    String::new()
}

fn read_tail(path: &Path, max: u64) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(max)))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last lines of a log in CRI's format, without their prefixes.
fn read_log_tail(path: &Path) -> std::io::Result<String> {
    // A line's prefix is under 50 bytes; the last 80 lines that matter lie well within this.
    let raw = read_tail(path, (MAX_LOG_MESSAGE + MAX_LOG_LINES * 64) as u64 * 2)?;
    let lines: Vec<&str> = raw.split_inclusive('\n').collect();
    let mut text = String::new();
    for line in &lines[lines.len().saturating_sub(MAX_LOG_LINES)..] {
        // <time> <stream> <tag> <text>, tag F for a full line and P for a part of one.
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(tag), Some(rest)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        text.push_str(if tag.starts_with('P') { rest.trim_end_matches('\n') } else { rest });
    }
    Ok(crate::pod::tail(&text, MAX_LOG_MESSAGE).to_string())
}

/// Whether a container is to be started (again), by the restart policy.
pub fn should_restart(container: &Container, pod: &Pod, status: &PodStatus) -> bool {
    if pod.deleting() {
        return false;
    }
    let Some(last) = status.container(&container.name) else { return true };
    match last.state {
        State::Running => false,
        State::Unknown | State::Created => true,
        State::Exited => match pod.restart_policy() {
            "Never" => false,
            "OnFailure" => last.exit_code != 0,
            _ => true,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn exited(dir: &Path, policy: &str, code: i32) -> cri::ContainerStatus {
        cri::ContainerStatus {
            state: cri::ContainerState::ContainerExited as i32,
            exit_code: code,
            reason: "Error".into(),
            log_path: dir.join("log").display().to_string(),
            annotations: HashMap::from([
                ("io.kubernetes.container.terminationMessagePath".into(), "/dev/termination-log".into()),
                ("io.kubernetes.container.terminationMessagePolicy".into(), policy.into()),
            ]),
            mounts: vec![cri::Mount {
                container_path: "/dev/termination-log".into(),
                host_path: dir.join("message").display().to_string(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn last_words_come_from_the_file_then_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log: String = (0..60)
            .map(|i| format!("2020-01-01T00:00:00.0Z stdout F {}-{i}\n", "0123456789".repeat(7)))
            .collect();
        std::fs::write(dir.path().join("log"), log).unwrap();
        let message = |policy: &str, code| container_status(exited(dir.path(), policy, code)).message;
        assert_eq!(message("File", 1), "");
        assert_eq!(message("FallbackToLogsOnError", 0), "");
        let text = message("FallbackToLogsOnError", 1);
        assert_eq!(text.len(), 2048);
        assert!(
            text.ends_with(
                "-58\n01234567890123456789012345678901234567890123456789012345678901234567890123456789-59\n"
            ) || text.ends_with("-59\n")
        );
        std::fs::write(dir.path().join("message"), "x".repeat(5000)).unwrap();
        assert_eq!(message("FallbackToLogsOnError", 1).len(), 4096);
    }

    #[test]
    fn parts_of_a_log_line_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        std::fs::write(&path, "t stdout P one \nt stdout F two\nt stderr F three\n").unwrap();
        assert_eq!(read_log_tail(&path).unwrap(), "one two\nthree\n");
    }
}
