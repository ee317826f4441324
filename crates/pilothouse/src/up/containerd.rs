//! A private containerd. It is a process of its own that outlives this one, so that a restart of Pilothouse does not
//! touch the pods; a start finds a running one by its pid file and socket.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;

use super::Config;
use super::layout::Layout;

/// How long containerd may take until its socket answers.
const START: Duration = Duration::from_secs(60);

/// Starts containerd where it does not run yet, and returns its CRI endpoint.
pub async fn ensure_running(config: &Config, layout: &Layout) -> anyhow::Result<String> {
    if running(layout).is_none() {
        let path = layout.path("containerd/config.toml");
        fs::write(&path, config_toml(config, layout)).with_context(|| path.display().to_string())?;
    }
    start(layout).await
}

/// Starts containerd with the configuration that is there, where it does not run yet, and returns its CRI endpoint.
pub async fn start(layout: &Layout) -> anyhow::Result<String> {
    let socket = layout.path("containerd/containerd.sock");
    if socket.as_os_str().len() > 100 {
        bail!("{}: a socket's path may have 107 bytes; choose a shorter --data-dir", socket.display());
    }
    let endpoint = format!("unix://{}", socket.display());
    if running(layout).is_some() && UnixStream::connect(&socket).await.is_ok() {
        return Ok(endpoint);
    }
    let path = layout.path("containerd/config.toml");
    let log_path = layout.path("logs/containerd.log");
    let log = fs::File::create(&log_path).with_context(|| log_path.display().to_string())?;
    fs::set_permissions(&log_path, fs::Permissions::from_mode(0o600))?;
    let mut child = Command::new("containerd")
        .arg("--config")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A group of its own: a Ctrl-C at our terminal is not for it.
        .process_group(0)
        .spawn()
        .context("containerd (Debian package containerd)")?;
    fs::write(layout.path("containerd/pid"), child.id().to_string())?;
    let deadline = tokio::time::Instant::now() + START;
    while UnixStream::connect(&socket).await.is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("containerd ended with {status}; see {}", log_path.display());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("containerd does not answer at {}; see {}", socket.display(), log_path.display());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Reaps it when it ends while we live.
    std::thread::spawn(move || child.wait());
    Ok(endpoint)
}

/// Makes containerd ask the mirror on this port before any registry. It reads this anew at each pull.
pub fn use_mirror(layout: &Layout, port: u16) -> anyhow::Result<()> {
    let path = layout.path("containerd/certs.d/_default/hosts.toml");
    let dir = path.parent().unwrap_or(&path);
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let text = format!("[host.\"http://127.0.0.1:{port}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    fs::write(&path, text).with_context(|| path.display().to_string())
}

/// The port that the mirror had last time; 0 where there was none.
pub fn last_mirror_port(layout: &Layout) -> u16 {
    fs::read_to_string(layout.path("containerd/certs.d/_default/hosts.toml"))
        .ok()
        .and_then(|t| t.split_once("127.0.0.1:")?.1.split_once('"')?.0.parse().ok())
        .unwrap_or(0)
}

/// The pid of the running private containerd of this data directory.
pub fn running(layout: &Layout) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(layout.path("containerd/pid")).ok()?.trim().parse().ok()?;
    // The pid may be another process's by now: its command line must name our configuration.
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours = layout.path("containerd/config.toml").display().to_string();
    cmdline.split(|b| *b == 0).any(|arg| arg == ours.as_bytes()).then(|| Pid::from_raw(pid))
}

/// Ends the private containerd and waits until it is gone.
pub fn stop(layout: &Layout) {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let Some(pid) = running(layout) else { return };
        let _ = kill(pid, signal);
        for _ in 0..100 {
            if running(layout).is_none() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn config_toml(config: &Config, layout: &Layout) -> String {
    let path = |p: &str| layout.path(p).display().to_string();
    let (root, state, socket) =
        (path("containerd/root"), path("containerd/state"), path("containerd/containerd.sock"));
    let (cni, pause) = (path("cni"), &config.pause_image);
    // Without CAP_SYS_RESOURCE runc cannot lower an OOM score.
    let restrict = !has_cap_sys_resource();
    let apparmor = !Path::new("/sys/kernel/security/apparmor").exists();
    let mirrors = path("containerd/certs.d");
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = {apparmor}
  restrict_oom_score_adj = {restrict}
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{mirrors}"
"#
    )
}

fn has_cap_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| {
            s.lines()
                .find_map(|l| l.strip_prefix("CapEff:"))
                .and_then(|v| u64::from_str_radix(v.trim(), 16).ok())
        })
        .is_some_and(|caps| caps & (1 << CAP_SYS_RESOURCE) != 0)
}
