//! The container runtime, as the Container Runtime Interface (v1) has it.
//!
//! [`Cri`] is the protocol, one method a call, with the protocol's own types: [`grpc`] speaks it to containerd or any
//! other runtime, [`fake`] plays it in memory for tests and hollow nodes. [`status`] turns its answers into what the
//! kubelet reasons about; [`labels`] has the marks by which containers are found again.

pub mod fake;
pub mod grpc;
pub mod labels;
pub mod status;

use async_trait::async_trait;
pub use k8s_cri::v1 as cri;
use tonic::Code;

/// What went wrong in the runtime. Displayed as Go's gRPC displays it, because events and statuses show it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rpc error: code = {} desc = {message}", code_name(*code))]
pub struct RuntimeError {
    /// gRPC's code.
    pub code: Code,
    /// The runtime's text.
    pub message: String,
}

impl RuntimeError {
    /// An error with code `Unknown`, as most of containerd's are.
    pub fn unknown(message: impl Into<String>) -> RuntimeError {
        RuntimeError { code: Code::Unknown, message: message.into() }
    }

    /// Whether the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }
}

impl From<tonic::Status> for RuntimeError {
    fn from(s: tonic::Status) -> Self {
        RuntimeError { code: s.code(), message: s.message().to_string() }
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, RuntimeError>;

/// What a command in a container gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code.
    pub exit_code: i32,
}

/// What a stream is to be opened for; see [`Cri::stream_url`].
#[derive(Debug, Clone, PartialEq)]
pub enum Stream {
    /// Run a command.
    Exec(cri::ExecRequest),
    /// Attach to the container's own process.
    Attach(cri::AttachRequest),
    /// Reach ports of a sandbox.
    PortForward(cri::PortForwardRequest),
}

/// The calls. Each takes as long as the runtime needs; implementations bound it.
#[async_trait]
pub trait Cri: Send + Sync {
    /// Name, version and API version.
    async fn version(&self) -> Result<cri::VersionResponse>;
    /// Whether runtime and network are ready.
    async fn status(&self) -> Result<cri::RuntimeStatus>;

    /// Makes and starts a sandbox; its id.
    async fn run_sandbox(&self, config: cri::PodSandboxConfig, handler: &str) -> Result<String>;
    /// Stops a sandbox with what is left in it. Stopping a stopped one is fine.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Removes a stopped sandbox. Removing one that is gone is fine.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// A sandbox's status.
    async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus>;
    /// Sandboxes; those of one pod where its uid is given.
    async fn list_sandboxes(&self, pod_uid: Option<&str>) -> Result<Vec<cri::PodSandbox>>;

    /// Makes a container; its id.
    async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String>;
    /// Starts a container.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Stops a container, by force after `grace` seconds.
    async fn stop_container(&self, id: &str, grace: i64) -> Result<()>;
    /// Removes a container. Removing one that is gone is fine.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// A container's status.
    async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus>;
    /// Containers; those of one pod where its uid is given.
    async fn list_containers(&self, pod_uid: Option<&str>) -> Result<Vec<cri::Container>>;
    /// Makes the runtime open a container's log anew, after it was moved.
    async fn reopen_log(&self, id: &str) -> Result<()>;

    /// Runs a command and waits for it, `timeout` seconds at most (0: without a limit). A command that takes longer
    /// gives [`Code::DeadlineExceeded`].
    async fn exec(&self, id: &str, command: &[String], timeout: i64) -> Result<ExecOutput>;
    /// The URL at which the runtime serves a stream.
    async fn stream_url(&self, stream: Stream) -> Result<String>;

    /// An image's status; `None` where it is not there.
    async fn image_status(&self, image: &str) -> Result<Option<cri::Image>>;
    /// All images.
    async fn list_images(&self) -> Result<Vec<cri::Image>>;
    /// Pulls an image; the reference of what was pulled.
    async fn pull_image(
        &self,
        image: &str,
        auth: Option<cri::AuthConfig>,
        sandbox: Option<cri::PodSandboxConfig>,
    ) -> Result<String>;
    /// Removes an image. Removing one that is gone is fine.
    async fn remove_image(&self, image: &str) -> Result<()>;
    /// The file systems that images are on.
    async fn image_fs(&self) -> Result<Vec<cri::FilesystemUsage>>;

    /// Statistics of all containers.
    async fn container_stats(&self) -> Result<Vec<cri::ContainerStats>>;
    /// Tells the runtime the node's pod range.
    async fn set_pod_cidr(&self, cidr: &str) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_look_as_in_go() {
        let e = RuntimeError { code: Code::NotFound, message: "no such image".into() };
        assert_eq!(e.to_string(), "rpc error: code = NotFound desc = no such image");
        assert_eq!(RuntimeError::unknown("x").to_string(), "rpc error: code = Unknown desc = x");
    }
}
