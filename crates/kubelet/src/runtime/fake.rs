//! A container runtime that only pretends: for tests and for hollow nodes. Containers run until they are stopped or
//! told to exit; every call is written down.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tonic::Code;

use super::labels::POD_UID;
use super::{Cri, ExecOutput, Result, RuntimeError, Stream, cri};

#[derive(Default)]
struct State {
    next: u64,
    sandboxes: Vec<cri::PodSandboxStatus>,
    containers: Vec<(String, cri::ContainerStatus)>,
    images: Vec<cri::Image>,
    calls: Vec<String>,
    fail: HashMap<String, RuntimeError>,
    exec: HashMap<String, ExecOutput>,
    streams: Option<String>,
}

/// See the module. Cheap to clone.
#[derive(Clone, Default)]
pub struct FakeCri(Arc<Mutex<State>>);

impl FakeCri {
    /// A runtime that has these images.
    pub fn with_images(images: &[&str]) -> FakeCri {
        let fake = FakeCri::default();
        fake.0.lock().images = images.iter().map(|i| image(i)).collect();
        fake
    }

    /// The calls that changed something, so far, in order; forgets them.
    pub fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().calls)
    }

    /// Makes a call fail from now on: `run_sandbox`, `create`, `start`, `pull <image>`, …
    pub fn fail(&self, call: &str, error: RuntimeError) {
        self.0.lock().fail.insert(call.to_string(), error);
    }

    /// Lets calls succeed again.
    pub fn heal(&self) {
        self.0.lock().fail.clear();
    }

    /// What a command gives in every container, by its words joined with blanks.
    pub fn on_exec(&self, command: &str, output: ExecOutput) {
        self.0.lock().exec.insert(command.to_string(), output);
    }

    /// Says where streams are served.
    pub fn serve_streams_at(&self, url: &str) {
        self.0.lock().streams = Some(url.to_string());
    }

    /// Ends the newest container of that name.
    pub fn exit(&self, name: &str, code: i32) {
        let mut s = self.0.lock();
        let of_name = |c: &cri::ContainerStatus| c.metadata.as_ref().is_some_and(|m| m.name == name);
        if let Some((_, c)) = s.containers.iter_mut().rev().find(|(_, c)| of_name(c)) {
            end(c, code);
        }
    }

    /// How many containers run.
    pub fn running(&self) -> usize {
        let running = cri::ContainerState::ContainerRunning as i32;
        self.0.lock().containers.iter().filter(|(_, c)| c.state == running).count()
    }

    /// How many sandboxes and containers there are, dead ones too.
    pub fn counts(&self) -> (usize, usize) {
        let s = self.0.lock();
        (s.sandboxes.len(), s.containers.len())
    }
}

fn image(name: &str) -> cri::Image {
    let full = if name.contains(':') { name.to_string() } else { format!("{name}:latest") };
    cri::Image { id: format!("sha256:{full}"), repo_tags: vec![full], size: 1 << 20, ..Default::default() }
}

fn same_image(a: &str, b: &str) -> bool {
    let full = |s: &str| if s.contains(':') { s.to_string() } else { format!("{s}:latest") };
    a == b || full(a) == full(b)
}

fn nanos() -> i64 {
    crate::clock::nanos()
}

fn end(c: &mut cri::ContainerStatus, code: i32) {
    if c.state == cri::ContainerState::ContainerExited as i32 {
        return;
    }
    c.state = cri::ContainerState::ContainerExited as i32;
    c.exit_code = code;
    c.finished_at = nanos();
    c.reason = if code == 0 { "Completed" } else { "Error" }.into();
}

fn not_found(what: &str) -> RuntimeError {
    RuntimeError { code: Code::NotFound, message: format!("{what} not found") }
}

impl State {
    fn step(&mut self, call: String) -> Result<u64> {
        let failure =
            self.fail.get(&call).or_else(|| self.fail.get(call.split(' ').next().unwrap_or(""))).cloned();
        self.calls.push(call);
        match failure {
            Some(e) => Err(e),
            None => {
                self.next += 1;
                Ok(self.next)
            }
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut cri::ContainerStatus> {
        self.containers.iter_mut().map(|(_, c)| c).find(|c| c.id == id).ok_or_else(|| not_found("container"))
    }

    fn name(&self, id: &str) -> String {
        let c = self.containers.iter().find(|(_, c)| c.id == id);
        c.and_then(|(_, c)| c.metadata.as_ref()).map(|m| m.name.clone()).unwrap_or_default()
    }
}

fn of_pod(labels: &HashMap<String, String>, uid: Option<&str>) -> bool {
    uid.is_none_or(|u| labels.get(POD_UID).is_some_and(|l| l == u))
}

#[async_trait]
impl Cri for FakeCri {
    async fn version(&self) -> Result<cri::VersionResponse> {
        Ok(cri::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "0".into(),
            runtime_api_version: "v1".into(),
        })
    }

    async fn status(&self) -> Result<cri::RuntimeStatus> {
        let ready = |t: &str| cri::RuntimeCondition { r#type: t.into(), status: true, ..Default::default() };
        Ok(cri::RuntimeStatus { conditions: vec![ready("RuntimeReady"), ready("NetworkReady")] })
    }

    async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: &str) -> Result<String> {
        let mut s = self.0.lock();
        let n = s.step(format!("run_sandbox {}", config.metadata.as_ref().map_or("", |m| &m.name)))?;
        let options = config.linux.and_then(|l| l.security_context).and_then(|c| c.namespace_options);
        let host = options.as_ref().is_some_and(|o| o.network == cri::NamespaceMode::Node as i32);
        let id = format!("sandbox{n}");
        s.sandboxes.push(cri::PodSandboxStatus {
            id: id.clone(),
            metadata: config.metadata,
            state: cri::PodSandboxState::SandboxReady as i32,
            created_at: nanos() + n as i64,
            network: Some(cri::PodSandboxNetworkStatus {
                ip: if host { String::new() } else { format!("172.16.{}.{}", n / 250, n % 250 + 2) },
                ..Default::default()
            }),
            linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(cri::Namespace { options }) }),
            labels: config.labels,
            annotations: config.annotations,
            runtime_handler: handler.into(),
        });
        Ok(id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let mut s = self.0.lock();
        s.step("stop_sandbox".into())?;
        for sandbox in s.sandboxes.iter_mut().filter(|x| x.id == id) {
            sandbox.state = cri::PodSandboxState::SandboxNotready as i32;
        }
        for (_, c) in s.containers.iter_mut().filter(|(sandbox, _)| sandbox == id) {
            end(c, 137);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let mut s = self.0.lock();
        s.step("remove_sandbox".into())?;
        s.sandboxes.retain(|x| x.id != id);
        s.containers.retain(|(sandbox, _)| sandbox != id);
        Ok(())
    }

    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        self.0.lock().sandboxes.iter().find(|s| s.id == id).cloned().ok_or_else(|| not_found("sandbox"))
    }

    async fn list_sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<cri::PodSandbox>> {
        let s = self.0.lock();
        Ok(s.sandboxes
            .iter()
            .filter(|x| of_pod(&x.labels, pod_uid))
            .map(|x| cri::PodSandbox {
                id: x.id.clone(),
                metadata: x.metadata.clone(),
                state: x.state,
                created_at: x.created_at,
                labels: x.labels.clone(),
                ..Default::default()
            })
            .collect())
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        _: cri::PodSandboxConfig,
    ) -> Result<String> {
        let mut s = self.0.lock();
        let n = s.step(format!("create {}", config.metadata.as_ref().map_or("", |m| &m.name)))?;
        let id = format!("container{n}");
        let status = cri::ContainerStatus {
            id: id.clone(),
            metadata: config.metadata,
            state: cri::ContainerState::ContainerCreated as i32,
            created_at: nanos() + n as i64,
            image: config.image.clone(),
            image_ref: config.image.map(|i| i.image).unwrap_or_default(),
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            log_path: config.log_path,
            ..Default::default()
        };
        s.containers.push((sandbox.to_string(), status));
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let mut s = self.0.lock();
        let name = s.name(id);
        let failed = s.step(format!("start {name}")).err();
        let c = s.container(id)?;
        c.started_at = nanos();
        match failed {
            Some(e) => {
                end(c, 128);
                c.reason = "StartError".into();
                c.message = e.message.clone();
                Err(e)
            }
            None => {
                c.state = cri::ContainerState::ContainerRunning as i32;
                Ok(())
            }
        }
    }

    async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let mut s = self.0.lock();
        let name = s.name(id);
        s.step(format!("stop {name} {grace}"))?;
        end(s.container(id)?, 0);
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let mut s = self.0.lock();
        let name = s.name(id);
        s.step(format!("remove {name}"))?;
        s.containers.retain(|(_, c)| c.id != id);
        Ok(())
    }

    async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus> {
        self.0.lock().container(id).cloned()
    }

    async fn list_containers(&self, pod_uid: Option<&str>) -> Result<Vec<cri::Container>> {
        let s = self.0.lock();
        Ok(s.containers
            .iter()
            .filter(|(_, c)| of_pod(&c.labels, pod_uid))
            .map(|(sandbox, c)| cri::Container {
                id: c.id.clone(),
                pod_sandbox_id: sandbox.clone(),
                metadata: c.metadata.clone(),
                image: c.image.clone(),
                state: c.state,
                created_at: c.created_at,
                labels: c.labels.clone(),
                annotations: c.annotations.clone(),
                ..Default::default()
            })
            .collect())
    }

    async fn reopen_log(&self, _: &str) -> Result<()> {
        Ok(())
    }

    async fn exec(&self, id: &str, command: &[String], _: i64) -> Result<ExecOutput> {
        let mut s = self.0.lock();
        let command = command.join(" ");
        s.step(format!("exec {command}"))?;
        if s.container(id)?.state != cri::ContainerState::ContainerRunning as i32 {
            return Err(RuntimeError::unknown(
                "failed to exec in container: container is in CONTAINER_EXITED state",
            ));
        }
        Ok(s.exec.get(&command).cloned().unwrap_or_default())
    }

    async fn stream_url(&self, stream: Stream) -> Result<String> {
        let mut s = self.0.lock();
        s.step(format!("{stream:?}"))?;
        s.streams.clone().ok_or_else(|| RuntimeError {
            code: Code::Unimplemented,
            message: "a fake runtime has no streams".into(),
        })
    }

    async fn image_status(&self, image: &str) -> Result<Option<cri::Image>> {
        let s = self.0.lock();
        Ok(s.images
            .iter()
            .find(|i| i.id == image || i.repo_tags.iter().any(|t| same_image(t, image)))
            .cloned())
    }

    async fn list_images(&self) -> Result<Vec<cri::Image>> {
        Ok(self.0.lock().images.clone())
    }

    async fn pull_image(
        &self,
        name: &str,
        _: Option<cri::AuthConfig>,
        _: Option<cri::PodSandboxConfig>,
    ) -> Result<String> {
        let mut s = self.0.lock();
        s.step(format!("pull {name}"))?;
        let new = image(name);
        let id = new.id.clone();
        if !s.images.iter().any(|i| i.id == id) {
            s.images.push(new);
        }
        Ok(id)
    }

    async fn remove_image(&self, name: &str) -> Result<()> {
        let mut s = self.0.lock();
        s.step(format!("remove_image {name}"))?;
        s.images.retain(|i| i.id != name && !i.repo_tags.iter().any(|t| same_image(t, name)));
        Ok(())
    }

    async fn image_fs(&self) -> Result<Vec<cri::FilesystemUsage>> {
        Ok(Vec::new())
    }

    async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>> {
        Ok(Vec::new())
    }

    async fn set_pod_cidr(&self, _: &str) -> Result<()> {
        Ok(())
    }
}
