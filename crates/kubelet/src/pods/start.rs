//! Starting what a pod needs: its sandbox, its containers.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::status::Waiting;
use crate::backoff;
use crate::cgroups;
use crate::containers::config::{Prepared, container_config};
use crate::containers::downward::NodeFields;
use crate::containers::{dns, env, hosts, mounts, sandbox, security};
use crate::hooks;
use crate::images::keyring::Keyring;
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::resources;
use crate::runtime::cri;
use crate::runtime::labels;
use crate::runtime::status::{PodStatus, State};
use crate::volumes::PodMounts;

/// Why a container does not run, and when to try again (`None`: at the next error's time).
pub(crate) struct NotStarted {
    pub(crate) why: Waiting,
    pub(crate) again: Option<Duration>,
}

/// What all containers of a pod share when they are started.
pub(crate) struct Start<'a> {
    pub(crate) pod: &'a Arc<Pod>,
    pub(crate) runtime: &'a PodStatus,
    pub(crate) sandbox: &'a str,
    pub(crate) sandbox_config: &'a cri::PodSandboxConfig,
    pub(crate) ips: &'a [String],
    pub(crate) mounts: &'a PodMounts,
    pub(crate) secrets: &'a Keyring,
    pub(crate) interrupt: &'a CancellationToken,
}

fn not_started(reason: &str, message: impl Into<String>, again: Option<Duration>) -> NotStarted {
    NotStarted { why: Waiting { reason: reason.into(), message: message.into() }, again }
}

/// The container whose processes an ephemeral one is to see: its id.
fn target(s: &Start<'_>, container: &Container) -> Result<Option<String>, String> {
    let ephemeral = s.pod.ephemeral_containers().iter().find(|c| c.name == container.name);
    let Some(name) = ephemeral.and_then(|c| c.target_container_name.as_deref()).filter(|n| !n.is_empty())
    else {
        return Ok(None);
    };
    match s.runtime.container(name) {
        Some(c) => Ok(Some(c.id.clone())),
        None => Err(format!("unable to find target container {name}")),
    }
}

impl Kubelet {
    /// The configuration of a pod's sandbox, with its events.
    pub(crate) fn sandbox_config(
        &self,
        pod: &Pod,
        attempt: u32,
        groups: &[i64],
    ) -> Result<cri::PodSandboxConfig, String> {
        let text = match self.config.resolv_conf.as_str() {
            "" => None,
            path => Some(std::fs::read_to_string(path).map_err(|e| format!("open {path}: {e}"))?),
        };
        let node = dns::Node {
            resolv_conf: text.as_deref(),
            cluster_dns: &self.config.cluster_dns,
            cluster_domain: &self.config.cluster_domain,
        };
        let (dns, warnings) = dns::pod_dns(pod, &node)?;
        for (reason, message) in warnings {
            self.recorder.warning(&pod.reference(), reason, message);
        }
        let parent = match &self.cgroups {
            Some(c) => c.parent(&cgroups::Name::of_pod(resources::qos(pod), pod.uid())),
            None => String::new(),
        };
        let groups = security::supplemental_groups(pod, groups);
        sandbox::sandbox_config(pod, attempt, &self.config, dns, parent, groups)
    }

    /// Credentials from the pod's `imagePullSecrets`. Secrets that are not there are passed over.
    pub(crate) async fn pull_secrets(&self, pod: &Pod) -> Keyring {
        let mut found: Vec<Arc<Secret>> = Vec::new();
        for r in pod.pod_spec().image_pull_secrets.iter().flatten() {
            match self.objects.secret(pod.namespace(), &r.name, Duration::from_secs(60)).await {
                Ok(Some(s)) => found.push(s),
                Ok(None) => tracing::warn!(
                    pod = pod.described(),
                    "Unable to retrieve pull secret {}/{}: not found. The image pull may not succeed.",
                    pod.namespace(),
                    r.name
                ),
                Err(e) => tracing::warn!(pod = pod.described(), "unable to retrieve pull secret: {e}"),
            }
        }
        Keyring::from_secrets(found.iter().map(|s| s.as_ref()))
    }

    /// How long a container that died must wait; notes the new try where it need not.
    fn crash_back_off(&self, s: &Start<'_>, container: &Container) -> Option<NotStarted> {
        // The newest dead one counts, also where a later one ran until a moment ago and was killed: a container that
        // fails its probes again and again waits like one that crashes.
        let dead =
            s.runtime.containers.iter().find(|c| c.name == container.name && c.state == State::Exited)?;
        let key = format!("{}_{}_{:x}", s.pod.uid(), container.name, labels::hash(container));
        let finished = crate::clock::instant(dead.finished_at);
        if let Some(left) = self.crash_backoff.remaining_since(&key, finished) {
            let about = s.pod.container_reference(&container.name);
            self.recorder.warning(&about, "BackOff", "Back-off restarting failed container");
            let text = format!(
                "back-off {} restarting failed container={} pod={}",
                backoff::show(self.crash_backoff.wait(&key)),
                container.name,
                s.pod.described()
            );
            return Some(not_started("CrashLoopBackOff", text, Some(left)));
        }
        self.crash_backoff.next(&key, finished);
        None
    }

    /// Starts one container, through to its `postStart` hook.
    pub(crate) async fn start_container(
        self: &Arc<Self>,
        s: &Start<'_>,
        container: &Container,
    ) -> Result<(), NotStarted> {
        if let Some(wait) = self.crash_back_off(s, container) {
            return Err(wait);
        }
        let about = s.pod.container_reference(&container.name);
        let failed = |text: &str| self.recorder.warning(&about, "Failed", format!("Error: {text}"));
        let image =
            self.images.ensure(s.pod, container, s.secrets, s.sandbox_config, s.interrupt).await.map_err(
                |e| {
                    failed(e.reason);
                    // A first failure is followed soon by a look that says when the next try will be.
                    let again = e.retry.or((e.reason == "ErrImagePull").then_some(Duration::from_secs(1)));
                    not_started(e.reason, e.message, again)
                },
            )?;

        let previous = s.runtime.container(&container.name);
        let restarts = match previous {
            Some(p) => p.info.restart_count + 1,
            None => self.noted_restarts(s.pod, &container.name),
        };
        let restarts = u32::try_from(restarts).unwrap_or(0);
        let prepared = match target(s, container) {
            Ok(target) => self.prepare(s, container, &image, restarts).await.map(|c| (c, target)),
            Err(e) => Err(e),
        };
        let (mut config, target) = prepared.map_err(|e| {
            failed(&e);
            not_started("CreateContainerConfigError", e, None)
        })?;
        if let Some(id) = target {
            security::join_processes(&mut config, &id);
        }
        let log =
            self.config.pod_log_dir(s.pod.namespace(), s.pod.name(), s.pod.uid()).join(&config.log_path);
        let id =
            self.cri.create_container(s.sandbox, config, s.sandbox_config.clone()).await.map_err(|e| {
                failed(&e.message);
                not_started("CreateContainerError", e.message, None)
            })?;
        self.recorder.normal(&about, "Created", format!("Created container {}", container.name));
        self.cri.start_container(&id).await.map_err(|e| {
            failed(&e.message);
            not_started("RunContainerError", e.message, Some(Duration::from_secs(1)))
        })?;
        self.recorder.normal(&about, "Started", format!("Started container {}", container.name));
        self.started_something();
        if log.exists() {
            let link = self.config.log_link(s.pod.namespace(), s.pod.name(), &container.name, &id);
            if let Err(e) = std::os::unix::fs::symlink(&log, &link) {
                tracing::debug!("{}: {e}", link.display());
            }
        }
        self.post_start(s, container, &id).await
    }

    async fn post_start(
        self: &Arc<Self>,
        s: &Start<'_>,
        container: &Container,
        id: &str,
    ) -> Result<(), NotStarted> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(());
        };
        let ip = s.ips.first().map_or("", String::as_str);
        let run = hooks::run(self.cri.as_ref(), s.pod, container, id, ip, hook);
        let result = tokio::select! {
            r = run => r,
            _ = s.interrupt.cancelled() => return Ok(()),
        };
        let Err(e) = result else { return Ok(()) };
        let about = s.pod.container_reference(&container.name);
        self.recorder.warning(&about, "FailedPostStartHook", e.message.as_str());
        if let Ok(now) = crate::runtime::status::pod_status(self.cri.as_ref(), s.pod.uid()).await
            && let Some(c) = now.containers.iter().find(|c| c.id == id)
            && let Err(e) =
                self.kill_container(Some(s.pod), c, "FailedPostStartHook", Default::default()).await
        {
            tracing::warn!(
                pod = s.pod.described(),
                container = container.name,
                "not killed after its hook: {e}"
            );
        }
        Err(not_started(&format!("PostStartHookError: {}", e.error), e.message, Some(Duration::from_secs(1))))
    }

    /// How often a container was started that the runtime no longer knows.
    fn noted_restarts(&self, pod: &Pod, name: &str) -> i32 {
        let status = self.status.current(pod);
        status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .flatten()
            .find(|c| c.name == name)
            .map_or(0, |c| c.restart_count)
    }

    /// Works out a container's configuration; makes the files that it mounts.
    async fn prepare(
        &self,
        s: &Start<'_>,
        container: &Container,
        image: &str,
        restarts: u32,
    ) -> Result<cri::ContainerConfig, String> {
        let pod = s.pod;
        let links = pod.pod_spec().enable_service_links.unwrap_or(true);
        let allocatable = self.node.allocatable();
        let host_ip = self.node.ip();
        let context = env::Context {
            services: env::service_variables(&self.services.list(), pod.namespace(), links),
            node: NodeFields { host_ip: &host_ip, pod_ips: s.ips },
            allocatable: &allocatable,
        };
        let sources = env::sources(pod, container, self.objects.as_ref()).await?;
        let environment = env::environment(pod, container, &sources, &context)?;
        for w in &environment.warnings {
            self.recorder.warning(&pod.reference(), "InvalidEnvironmentVariableNames", w.as_str());
        }

        let pod_dir = self.config.pod_dir(pod.uid());
        let io = |e: std::io::Error| e.to_string();
        let mut list =
            mounts::volumes(pod, container, s.mounts, &environment.variables, self.volumes.as_ref()).await?;
        if mounts::manages_hosts(pod, container, s.ips) {
            let aliases = pod.pod_spec().host_aliases.clone().unwrap_or_default();
            let text = if pod.host_network() {
                hosts::of_node(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), &aliases)
            } else {
                let (name, domain) = hosts::host_name(pod, &self.config.cluster_domain);
                hosts::managed(s.ips, &name, &domain, &aliases)
            };
            list.push(mounts::hosts(&pod_dir, &text).map_err(io)?);
        }
        if let Some(path) = container.termination_message_path.as_deref().filter(|p| !p.is_empty()) {
            let dir = self.config.container_dir(pod.uid(), &container.name);
            let name = format!("{:08x}", rand::random::<u32>());
            list.push(mounts::termination_message(&dir, &name, path).map_err(io)?);
        }
        let devices = mounts::devices(pod, container, s.mounts)?;

        let there = self.cri.image_status(image).await.map_err(|e| e.to_string())?;
        let user = security::image_user(there.as_ref());
        security::verify_non_root(pod, container, &user)?;
        let logs = self.config.pod_log_dir(pod.namespace(), pod.name(), pod.uid()).join(&container.name);
        std::fs::create_dir_all(&logs).map_err(io)?;
        let prepared = Prepared {
            image,
            user: &user,
            environment: &environment.variables,
            mounts: list,
            devices,
            groups: security::supplemental_groups(pod, &s.mounts.groups),
            restart_count: restarts,
            memory_capacity: self.node.memory(),
        };
        Ok(container_config(pod, container, &self.config, prepared))
    }

    /// Makes a pod's sandbox; its id and addresses. Errors are texts of the event.
    pub(crate) async fn create_sandbox(
        &self,
        pod: &Pod,
        config: &cri::PodSandboxConfig,
    ) -> Result<(String, Vec<String>), String> {
        std::fs::create_dir_all(&config.log_directory).map_err(|e| e.to_string())?;
        let handler = match pod.pod_spec().runtime_class_name.as_deref().filter(|c| !c.is_empty()) {
            Some(class) => self.objects.runtime_handler(class).await?,
            None => String::new(),
        };
        let started = Instant::now();
        let id = self.cri.run_sandbox(config.clone(), &handler).await.map_err(|e| e.to_string())?;
        tracing::debug!(pod = pod.described(), took = ?started.elapsed(), "sandbox made");
        if pod.host_network() {
            return Ok((id, Vec::new()));
        }
        let status = self.cri.sandbox_status(&id).await.map_err(|e| e.to_string())?;
        let ips = crate::runtime::status::ips(&status);
        Ok((id, ips))
    }
}
