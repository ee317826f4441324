//! CRI over gRPC on a unix socket.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use super::labels::POD_UID;
use super::{Cri, ExecOutput, Result, RuntimeError, Stream, cri};
use crate::metrics::Metrics;

/// containerd answers so, with code UNKNOWN, while it starts.
const STARTING: &str = "server is not initialized yet";
const RETRY: Duration = Duration::from_millis(250);
const MAX_MESSAGE: usize = 16 << 20;
/// Pulling an image takes as long as it takes; what makes no progress is the runtime's to notice.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

/// A connection to a runtime. Made at once, opened when needed, and opened again after it broke.
pub struct GrpcCri {
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
    timeout: Duration,
    metrics: Metrics,
}

fn channel(path: &str) -> Channel {
    let path = path.to_string();
    // The address is never used: the connector knows the socket.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    }))
}

impl GrpcCri {
    /// A connection to the sockets of the runtime and of its image service (often the same one). `timeout` bounds
    /// each call, beyond what the call itself asks for.
    pub fn new(runtime: &str, image: &str, timeout: Duration, metrics: Metrics) -> GrpcCri {
        GrpcCri {
            runtime: RuntimeServiceClient::new(channel(runtime)).max_decoding_message_size(MAX_MESSAGE),
            image: ImageServiceClient::new(channel(image)).max_decoding_message_size(MAX_MESSAGE),
            timeout,
            metrics,
        }
    }

    /// Makes a call, again and again while the runtime is starting, for `timeout` in all.
    async fn call<T, F, Fut>(&self, operation: &'static str, timeout: Duration, make: F) -> Result<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let started = Instant::now();
        let end = started + timeout;
        let result = loop {
            let answer = match tokio::time::timeout_at(end, make()).await {
                Ok(answer) => answer.map(Response::into_inner).map_err(RuntimeError::from),
                Err(_) => Err(RuntimeError {
                    code: Code::DeadlineExceeded,
                    message: "context deadline exceeded".into(),
                }),
            };
            match answer {
                Err(e) if e.message.contains(STARTING) && Instant::now() + RETRY < end => {
                    tokio::time::sleep(RETRY).await;
                }
                other => break other,
            }
        };
        self.metrics.runtime_operation(operation, started.elapsed(), result.is_err());
        result
    }
}

fn ignore_missing(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.is_not_found() => Ok(()),
        other => other,
    }
}

fn selector(pod_uid: Option<&str>) -> HashMap<String, String> {
    pod_uid.map(|u| (POD_UID.to_string(), u.to_string())).into_iter().collect()
}

fn missing() -> RuntimeError {
    RuntimeError::unknown("the runtime's answer is not complete")
}

#[async_trait]
impl Cri for GrpcCri {
    async fn version(&self) -> Result<cri::VersionResponse> {
        self.call("version", self.timeout, || {
            let mut c = self.runtime.clone();
            async move { c.version(cri::VersionRequest { version: "0.1.0".into() }).await }
        })
        .await
    }

    async fn status(&self) -> Result<cri::RuntimeStatus> {
        self.call("status", self.timeout, || {
            let mut c = self.runtime.clone();
            async move { c.status(cri::StatusRequest { verbose: false }).await }
        })
        .await?
        .status
        .ok_or_else(missing)
    }

    async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: &str) -> Result<String> {
        // Setting up a network may take long: twice the time of other calls, as in Kubernetes.
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.into() };
        let started = Instant::now();
        let result = self
            .call("run_podsandbox", self.timeout * 2, || {
                let (mut c, r) = (self.runtime.clone(), request.clone());
                async move { c.run_pod_sandbox(r).await }
            })
            .await;
        self.metrics.run_sandbox(handler, started.elapsed(), result.is_err());
        Ok(result?.pod_sandbox_id)
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let done = self
            .call("stop_podsandbox", self.timeout, || {
                let (mut c, pod_sandbox_id) = (self.runtime.clone(), id.to_string());
                async move { c.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id }).await }
            })
            .await
            .map(drop);
        ignore_missing(done)
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let done = self
            .call("remove_podsandbox", self.timeout, || {
                let (mut c, pod_sandbox_id) = (self.runtime.clone(), id.to_string());
                async move { c.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await }
            })
            .await
            .map(drop);
        ignore_missing(done)
    }

    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus> {
        self.call("podsandbox_status", self.timeout, || {
            let (mut c, pod_sandbox_id) = (self.runtime.clone(), id.to_string());
            async move {
                c.pod_sandbox_status(cri::PodSandboxStatusRequest { pod_sandbox_id, verbose: false }).await
            }
        })
        .await?
        .status
        .ok_or_else(missing)
    }

    async fn list_sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<cri::PodSandbox>> {
        let filter = cri::PodSandboxFilter { label_selector: selector(pod_uid), ..Default::default() };
        Ok(self
            .call("list_podsandbox", self.timeout, || {
                let (mut c, filter) = (self.runtime.clone(), Some(filter.clone()));
                async move { c.list_pod_sandbox(cri::ListPodSandboxRequest { filter }).await }
            })
            .await?
            .items)
    }

    async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(self
            .call("create_container", self.timeout, || {
                let (mut c, r) = (self.runtime.clone(), request.clone());
                async move { c.create_container(r).await }
            })
            .await?
            .container_id)
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        self.call("start_container", self.timeout, || {
            let (mut c, container_id) = (self.runtime.clone(), id.to_string());
            async move { c.start_container(cri::StartContainerRequest { container_id }).await }
        })
        .await
        .map(drop)
    }

    async fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let timeout = self.timeout + Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        let done = self
            .call("stop_container", timeout, || {
                let (mut c, container_id) = (self.runtime.clone(), id.to_string());
                async move { c.stop_container(cri::StopContainerRequest { container_id, timeout: grace }).await }
            })
            .await
            .map(drop);
        ignore_missing(done)
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let done = self
            .call("remove_container", self.timeout, || {
                let (mut c, container_id) = (self.runtime.clone(), id.to_string());
                async move { c.remove_container(cri::RemoveContainerRequest { container_id }).await }
            })
            .await
            .map(drop);
        ignore_missing(done)
    }

    async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus> {
        self.call("container_status", self.timeout, || {
            let (mut c, container_id) = (self.runtime.clone(), id.to_string());
            async move { c.container_status(cri::ContainerStatusRequest { container_id, verbose: false }).await }
        })
        .await?
        .status
        .ok_or_else(missing)
    }

    async fn list_containers(&self, pod_uid: Option<&str>) -> Result<Vec<cri::Container>> {
        let filter = cri::ContainerFilter { label_selector: selector(pod_uid), ..Default::default() };
        Ok(self
            .call("list_containers", self.timeout, || {
                let (mut c, filter) = (self.runtime.clone(), Some(filter.clone()));
                async move { c.list_containers(cri::ListContainersRequest { filter }).await }
            })
            .await?
            .containers)
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        self.call("reopen_container_log", self.timeout, || {
            let (mut c, container_id) = (self.runtime.clone(), id.to_string());
            async move { c.reopen_container_log(cri::ReopenContainerLogRequest { container_id }).await }
        })
        .await
        .map(drop)
    }

    async fn exec(&self, id: &str, command: &[String], timeout: i64) -> Result<ExecOutput> {
        // The runtime itself ends the command at its time; ours is only for a runtime that hangs.
        let limit = match u64::try_from(timeout) {
            Ok(s) if s > 0 => self.timeout + Duration::from_secs(s),
            _ => Duration::from_secs(u64::from(u32::MAX)),
        };
        let request = cri::ExecSyncRequest { container_id: id.to_string(), cmd: command.to_vec(), timeout };
        let r = self
            .call("exec_sync", limit, || {
                let (mut c, r) = (self.runtime.clone(), request.clone());
                async move { c.exec_sync(r).await }
            })
            .await?;
        Ok(ExecOutput { stdout: r.stdout, stderr: r.stderr, exit_code: r.exit_code })
    }

    async fn stream_url(&self, stream: Stream) -> Result<String> {
        let c = &self.runtime;
        match &stream {
            Stream::Exec(r) => self
                .call("exec", self.timeout, || {
                    let (mut c, r) = (c.clone(), r.clone());
                    async move { c.exec(r).await }
                })
                .await
                .map(|r| r.url),
            Stream::Attach(r) => self
                .call("attach", self.timeout, || {
                    let (mut c, r) = (c.clone(), r.clone());
                    async move { c.attach(r).await }
                })
                .await
                .map(|r| r.url),
            Stream::PortForward(r) => self
                .call("port_forward", self.timeout, || {
                    let (mut c, r) = (c.clone(), r.clone());
                    async move { c.port_forward(r).await }
                })
                .await
                .map(|r| r.url),
        }
    }

    async fn image_status(&self, image: &str) -> Result<Option<cri::Image>> {
        let spec = spec(image);
        Ok(self
            .call("image_status", self.timeout, || {
                let (mut c, image) = (self.image.clone(), Some(spec.clone()));
                async move { c.image_status(cri::ImageStatusRequest { image, verbose: false }).await }
            })
            .await?
            .image)
    }

    async fn list_images(&self) -> Result<Vec<cri::Image>> {
        Ok(self
            .call("list_images", self.timeout, || {
                let mut c = self.image.clone();
                async move { c.list_images(cri::ListImagesRequest { filter: None }).await }
            })
            .await?
            .images)
    }

    async fn pull_image(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
        sandbox: Option<cri::PodSandboxConfig>,
    ) -> Result<String> {
        let request = cri::PullImageRequest { image: Some(spec(image)), auth, sandbox_config: sandbox };
        Ok(self
            .call("pull_image", PULL_TIMEOUT, || {
                let (mut c, r) = (self.image.clone(), Request::new(request.clone()));
                async move { c.pull_image(r).await }
            })
            .await?
            .image_ref)
    }

    async fn remove_image(&self, image: &str) -> Result<()> {
        let spec = spec(image);
        self.call("remove_image", self.timeout, || {
            let (mut c, image) = (self.image.clone(), Some(spec.clone()));
            async move { c.remove_image(cri::RemoveImageRequest { image }).await }
        })
        .await
        .map(drop)
    }

    async fn image_fs(&self) -> Result<Vec<cri::FilesystemUsage>> {
        Ok(self
            .call("image_fs_info", self.timeout, || {
                let mut c = self.image.clone();
                async move { c.image_fs_info(cri::ImageFsInfoRequest {}).await }
            })
            .await?
            .image_filesystems)
    }

    async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>> {
        Ok(self
            .call("list_container_stats", self.timeout, || {
                let mut c = self.runtime.clone();
                async move { c.list_container_stats(cri::ListContainerStatsRequest { filter: None }).await }
            })
            .await?
            .stats)
    }

    async fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        self.call("update_runtime_config", self.timeout, || {
            let mut c = self.runtime.clone();
            let network_config = Some(cri::NetworkConfig { pod_cidr: cidr.to_string() });
            let runtime_config = Some(cri::RuntimeConfig { network_config });
            async move { c.update_runtime_config(cri::UpdateRuntimeConfigRequest { runtime_config }).await }
        })
        .await
        .map(drop)
    }
}

fn spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_string(), ..Default::default() }
}
