//! `/exec`, `/attach`, `/portForward`: the runtime is asked where it serves the stream, and a tunnel leads there.
//! `/run` runs a command and gives its output. Texts are those of v1.20's kubelet.

use std::sync::Arc;

use http::{HeaderMap, Request};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use tonic::Code;

use super::answer::{self, Answer};
use super::query;
use super::route::Target;
use super::tunnel;
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::runtime::labels::CONTAINER_NAME;
use crate::runtime::status::State;
use crate::runtime::{RuntimeError, Stream, cri};

/// The streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// Reads a query. With a terminal there is one output only.
pub fn wanted(pairs: &[(String, String)]) -> Result<Wanted, String> {
    let on = |name: &str| query::first(pairs, name) == "1";
    let tty = on("tty");
    let w = Wanted { stdin: on("input"), stdout: on("output"), stderr: on("error") && !tty, tty };
    if !w.stdin && !w.stdout && !w.stderr {
        return Err("you must specify at least 1 of stdin, stdout, stderr".into());
    }
    Ok(w)
}

/// The ports that a WebSocket client names in its query; others name them in the stream.
pub fn ports(pairs: &[(String, String)], headers: &HeaderMap) -> Result<Vec<i32>, String> {
    if !tunnel::is_websocket(headers) {
        return Ok(Vec::new());
    }
    let given = query::all(pairs, "port");
    if given.is_empty() {
        return Err("query parameter \"port\" is required".into());
    }
    let mut ports = Vec::new();
    for text in &given {
        if text.is_empty() {
            return Err("query parameter \"port\" cannot be empty".into());
        }
        for p in text.split(',') {
            let port: u16 = p.parse().map_err(|e: std::num::ParseIntError| {
                let why = match e.kind() {
                    std::num::IntErrorKind::PosOverflow => "value out of range",
                    _ => "invalid syntax",
                };
                format!("unable to parse {text:?} as a port: strconv.ParseUint: parsing {p:?}: {why}")
            })?;
            if port < 1 {
                return Err(format!("port {text:?} must be > 0"));
            }
            ports.push(i32::from(port));
        }
    }
    Ok(ports)
}

/// The answer for an error of the runtime.
fn runtime_error(e: &RuntimeError) -> Answer {
    match e.code {
        Code::NotFound => answer::text(404, e.to_string()),
        Code::ResourceExhausted => {
            let mut a = answer::text(429, e.to_string());
            a.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("60"));
            a
        }
        _ => answer::text(500, e.to_string()),
    }
}

/// The running container of that name.
async fn running(kubelet: &Kubelet, pod: &Pod, name: &str) -> Result<Option<String>, RuntimeError> {
    let of_name = |c: &&cri::Container| {
        State::from(c.state) == State::Running && c.labels.get(CONTAINER_NAME).is_some_and(|n| n == name)
    };
    let containers = kubelet.cri.list_containers(Some(pod.uid())).await?;
    Ok(containers.iter().filter(of_name).max_by_key(|c| c.created_at).map(|c| c.id.clone()))
}

fn find(kubelet: &Kubelet, target: &Target) -> Result<Arc<Pod>, Answer> {
    kubelet
        .registry
        .find(&target.namespace, &target.pod)
        .ok_or_else(|| answer::text(404, "pod does not exist"))
}

async fn tunnel_to(kubelet: &Kubelet, request: Request<Incoming>, stream: Stream) -> Answer {
    match kubelet.cri.stream_url(stream).await {
        Ok(url) => tunnel::connect(request, &url).await,
        Err(e) => runtime_error(&e),
    }
}

/// `/exec`
pub async fn exec(kubelet: &Kubelet, request: Request<Incoming>, target: &Target) -> Answer {
    let pairs = query::pairs(request.uri().query().unwrap_or(""));
    let wanted = match wanted(&pairs) {
        Ok(w) => w,
        Err(e) => return answer::text(400, e),
    };
    let pod = match find(kubelet, target) {
        Ok(p) => p,
        Err(a) => return a,
    };
    let id = match running(kubelet, &pod, &target.container).await {
        Ok(Some(id)) => id,
        Ok(None) => return answer::text(500, format!("container not found ({:?})", target.container)),
        Err(e) => return runtime_error(&e),
    };
    let exec = cri::ExecRequest {
        container_id: id,
        cmd: query::all(&pairs, "command"),
        tty: wanted.tty,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
    };
    tunnel_to(kubelet, request, Stream::Exec(exec)).await
}

/// `/attach`
pub async fn attach(kubelet: &Kubelet, request: Request<Incoming>, target: &Target) -> Answer {
    let pairs = query::pairs(request.uri().query().unwrap_or(""));
    let wanted = match wanted(&pairs) {
        Ok(w) => w,
        Err(e) => return answer::text(400, e),
    };
    let pod = match find(kubelet, target) {
        Ok(p) => p,
        Err(a) => return a,
    };
    let missing = || format!("container {} not found in pod {}", target.container, pod.full_name());
    let id = match running(kubelet, &pod, &target.container).await {
        Ok(Some(id)) => id,
        Ok(None) => return answer::text(500, missing()),
        Err(e) => return runtime_error(&e),
    };
    let Some(container) = pod.any_container(&target.container) else { return answer::text(500, missing()) };
    let tty = container.tty.unwrap_or(false);
    let attach = cri::AttachRequest {
        container_id: id,
        stdin: wanted.stdin,
        // Whether it has a terminal was decided when it was made.
        tty,
        stdout: wanted.stdout,
        stderr: wanted.stderr && !tty,
    };
    tunnel_to(kubelet, request, Stream::Attach(attach)).await
}

/// `/portForward`
pub async fn port_forward(kubelet: &Kubelet, request: Request<Incoming>, target: &Target) -> Answer {
    let pairs = query::pairs(request.uri().query().unwrap_or(""));
    let port = match ports(&pairs, request.headers()) {
        Ok(p) => p,
        Err(e) => return answer::text(400, e),
    };
    let pod = match find(kubelet, target) {
        Ok(p) => p,
        Err(a) => return a,
    };
    if target.uid.as_ref().is_some_and(|u| kubelet.registry.translate(u) != pod.uid()) {
        return answer::text(404, "pod not found");
    }
    let sandboxes = match kubelet.cri.list_sandboxes(Some(pod.uid())).await {
        Ok(s) => s,
        Err(e) => return runtime_error(&e),
    };
    let ready = cri::PodSandboxState::SandboxReady as i32;
    let newest = sandboxes.iter().filter(|s| s.state == ready).max_by_key(|s| s.created_at);
    let Some(sandbox) = newest else {
        return answer::text(500, format!("pod not found ({:?})", pod.full_name()));
    };
    let forward = cri::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port };
    tunnel_to(kubelet, request, Stream::PortForward(forward)).await
}

/// `/run`
pub async fn run(kubelet: &Kubelet, query: &str, target: &Target) -> Answer {
    let pod = match find(kubelet, target) {
        Ok(p) => p,
        Err(a) => return a,
    };
    let id = match running(kubelet, &pod, &target.container).await {
        Ok(Some(id)) => id,
        Ok(None) => return answer::text(500, format!("container not found ({:?})", target.container)),
        Err(e) => return answer::text(500, e.to_string()),
    };
    let pairs = query::pairs(query);
    let command = query::first(&pairs, "cmd");
    let words: Vec<String> = command.split(' ').map(String::from).collect();
    match kubelet.cri.exec(&id, &words, 0).await {
        Ok(out) if out.exit_code == 0 => {
            let mut both = out.stdout;
            both.extend(out.stderr);
            answer::of(200, answer::JSON, both)
        }
        Ok(out) => {
            let said = String::from_utf8_lossy(&out.stderr);
            answer::text(500, format!("command '{command}' exited with {}: {said}", out.exit_code))
        }
        Err(e) => answer::text(500, e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted() {
        let w = |q: &str| wanted(&query::pairs(q));
        assert_eq!(
            w("tty=1&input=1&error=1").unwrap(),
            Wanted { stdin: true, stdout: false, stderr: false, tty: true }
        );
        assert!(w("output=true").unwrap_err().starts_with("you must specify at least 1"));
        assert!(w("tty=1&error=1").is_err());
    }

    #[test]
    fn ports_of_websockets() {
        let mut h = HeaderMap::new();
        let p = |q: &str, h: &HeaderMap| ports(&query::pairs(q), h);
        assert_eq!(p("", &h), Ok(vec![]));
        h.insert("connection", "keep-alive, Upgrade".parse().unwrap());
        h.insert("upgrade", "websocket".parse().unwrap());
        assert_eq!(p("port=80,81&port=1", &h), Ok(vec![80, 81, 1]));
        assert_eq!(p("", &h).unwrap_err(), "query parameter \"port\" is required");
        assert_eq!(p("port=0", &h).unwrap_err(), "port \"0\" must be > 0");
        assert_eq!(
            p("port=99999", &h).unwrap_err(),
            "unable to parse \"99999\" as a port: strconv.ParseUint: parsing \"99999\": value out of range"
        );
    }
}
