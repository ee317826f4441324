//! One probe: a command, an HTTP request, a connection.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};

use crate::hooks::{CommandError, resolve_port, run_command};
use crate::http;
use crate::runtime::Cri;

/// Most of a command's output that is shown.
const MAX_OUTPUT: usize = 10 * 1024;

/// What one probe gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// Well, with a reservation (a redirect that leads elsewhere).
    Warning(String),
    /// Not well, and what it said.
    Failure(String),
    /// It could not be made.
    Errored(String),
}

/// Makes one probe.
pub async fn run(runtime: &dyn Cri, spec: &Probe, container: &Container, id: &str, pod_ip: &str) -> Outcome {
    let seconds = i64::from(spec.timeout_seconds.unwrap_or(1).max(1));
    let timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
    if let Some(exec) = &spec.exec {
        let command = exec.command.clone().unwrap_or_default();
        let (output, error) = run_command(runtime, id, &command, seconds).await;
        let mut text = String::from_utf8_lossy(&output).into_owned();
        if text.len() > MAX_OUTPUT {
            let mut end = MAX_OUTPUT;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
        }
        return match error {
            None => Outcome::Success,
            Some(CommandError::Exit(..) | CommandError::TimedOut(_)) => Outcome::Failure(text),
            Some(CommandError::Runtime(e)) => Outcome::Errored(e),
        };
    }
    if let Some(get) = &spec.http_get {
        let host = get.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
        let port = match resolve_port(&get.port, container) {
            Ok(p) => p,
            Err(e) => return Outcome::Errored(e),
        };
        let mut headers: Vec<(String, String)> =
            get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        for (name, value) in [("User-Agent", "kube-probe/1.20"), ("Accept", "*/*")] {
            if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)) {
                headers.push((name.into(), value.into()));
            }
        }
        // An empty value means that the header is not sent.
        headers.retain(|(n, v)| {
            !(v.is_empty() && (n.eq_ignore_ascii_case("Accept") || n.eq_ignore_ascii_case("User-Agent")))
        });
        let scheme = get.scheme.as_deref().unwrap_or("HTTP");
        let url = http::url(scheme, host, port, get.path.as_deref().unwrap_or("/"));
        return match http::get(&url, &headers, Some(timeout)).await {
            Err(e) => Outcome::Failure(e),
            Ok(a) => match a.code {
                200..300 => Outcome::Success,
                300..400 => Outcome::Warning(a.body),
                code => Outcome::Failure(format!("HTTP probe failed with statuscode: {code}")),
            },
        };
    }
    if let Some(tcp) = &spec.tcp_socket {
        let host = tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
        let port = match resolve_port(&tcp.port, container) {
            Ok(p) => p,
            Err(e) => return Outcome::Errored(e),
        };
        return match tokio::time::timeout(timeout, http::dial(host, port)).await {
            Ok(Ok(_)) => Outcome::Success,
            Ok(Err(e)) => Outcome::Failure(e),
            Err(_) => Outcome::Failure(format!("dial tcp {host}:{port}: i/o timeout")),
        };
    }
    Outcome::Errored("missing probe handler".into())
}
