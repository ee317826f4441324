//! Lifecycle hooks: what runs right after a container started and right before it is stopped.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use pilothouse_apimachinery::go::quote;

use crate::http;
use crate::pod::PodExt;
use crate::runtime::Cri;

/// A hook that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookError {
    /// The event's message.
    pub message: String,
    /// The error alone.
    pub error: String,
}

/// A port by number or by its name in the container. The error is Go's.
pub fn resolve_port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => i64::from(*n),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(p) => i64::from(p.container_port),
                None => name
                    .parse()
                    .map_err(|_| format!("strconv.Atoi: parsing {}: invalid syntax", quote(name)))?,
            }
        }
    };
    match u16::try_from(number) {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("invalid port number: {number}")),
    }
}

/// What an exec gives: its output, and an error as the kubelet words it.
pub async fn run_command(
    runtime: &dyn Cri,
    id: &str,
    command: &[String],
    timeout: i64,
) -> (Vec<u8>, Option<CommandError>) {
    match runtime.exec(id, command, timeout).await {
        Ok(o) => {
            let error = (o.exit_code != 0).then(|| {
                CommandError::Exit(
                    o.exit_code,
                    format!(
                        "command '{}' exited with {}: {}",
                        command.join(" "),
                        o.exit_code,
                        String::from_utf8_lossy(&o.stderr)
                    ),
                )
            });
            let mut out = o.stdout;
            out.extend_from_slice(&o.stderr);
            (out, error)
        }
        Err(e) if e.code == tonic::Code::DeadlineExceeded => (
            Vec::new(),
            Some(CommandError::TimedOut(format!("command {} timed out", quote(&command.join(" "))))),
        ),
        Err(e) => (Vec::new(), Some(CommandError::Runtime(e.to_string()))),
    }
}

/// Why a command in a container failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// It ended with that code.
    #[error("{1}")]
    Exit(i32, String),
    /// It took too long.
    #[error("{0}")]
    TimedOut(String),
    /// It could not be run.
    #[error("{0}")]
    Runtime(String),
}

/// Runs a hook to its end.
pub async fn run(
    runtime: &dyn Cri,
    pod: &Pod,
    container: &Container,
    id: &str,
    pod_ip: &str,
    hook: &LifecycleHandler,
) -> Result<(), HookError> {
    let of = format!("for Container \"{}\" in Pod \"{}\" failed", container.name, pod.described());
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let (output, error) = run_command(runtime, id, &command, 0).await;
        return error.map_or(Ok(()), |e| {
            let error = e.to_string();
            let output = quote(&String::from_utf8_lossy(&output));
            Err(HookError {
                message: format!(
                    "Exec lifecycle hook ([{}]) {of} - error: {error}, message: {output}",
                    command.join(" ")
                ),
                error,
            })
        });
    }
    if let Some(get) = &hook.http_get {
        let path = get.path.as_deref().unwrap_or("");
        let attempt = async {
            let host = get.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod_ip);
            if host.is_empty() {
                return Err("failed to find networking container: unknown pod IP".to_string());
            }
            let port = match &get.port {
                IntOrString::Int(0) => 80,
                IntOrString::String(s) if s.is_empty() => 80,
                p => resolve_port(p, container)?,
            };
            // The slash before the path is Kubernetes' own; a path usually brings another.
            http::get(&http::url("http", host, port, &format!("/{path}")), &[], None).await
        };
        return attempt.await.map(drop).map_err(|error| HookError {
            message: format!("Http lifecycle hook ({path}) {of} - error: {error}, message: \"\""),
            error,
        });
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    let error = "invalid handler: nothing to do".to_string();
    Err(HookError { message: format!("Cannot run handler: {error}"), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ExecOutput;
    use crate::runtime::fake::FakeCri;
    use serde_json::json;

    #[tokio::test]
    async fn a_failed_hook_says_what_it_ran() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c"}]}}))
            .unwrap();
        let c = &pod.pod_spec().containers[0];
        let fake = FakeCri::default();
        let id = fake
            .create_container("s", crate::runtime::cri::ContainerConfig::default(), Default::default())
            .await
            .unwrap();
        fake.start_container(&id).await.unwrap();
        fake.on_exec("sh -c x", ExecOutput { stdout: b"why\n".to_vec(), exit_code: 9, ..Default::default() });
        let hook: LifecycleHandler =
            serde_json::from_value(json!({"exec": {"command": ["sh", "-c", "x"]}})).unwrap();
        let e = run(&fake, &pod, c, &id, "", &hook).await.unwrap_err();
        assert_eq!(
            e.message,
            "Exec lifecycle hook ([sh -c x]) for Container \"c\" in Pod \"p_n(u)\" failed - error: command 'sh -c x' exited with 9: , message: \"why\\n\""
        );
        let hook: LifecycleHandler =
            serde_json::from_value(json!({"httpGet": {"path": "/bye", "port": 1}})).unwrap();
        let e = run(&fake, &pod, c, &id, "127.0.0.1", &hook).await.unwrap_err();
        assert_eq!(
            e.error,
            "Get \"http://127.0.0.1:1//bye\": dial tcp 127.0.0.1:1: connect: connection refused"
        );
    }

    #[test]
    fn ports() {
        let c: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]}))
                .unwrap();
        assert_eq!(resolve_port(&IntOrString::String("web".into()), &c), Ok(80));
        assert_eq!(resolve_port(&IntOrString::String("81".into()), &c), Ok(81));
        assert_eq!(
            resolve_port(&IntOrString::String("nosuch".into()), &c).unwrap_err(),
            "strconv.Atoi: parsing \"nosuch\": invalid syntax"
        );
        assert!(resolve_port(&IntOrString::Int(0), &c).is_err());
    }
}
