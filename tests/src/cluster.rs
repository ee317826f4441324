//! A whole cluster: `pilothouse up` on a test host.
//!
//! A test host is a set of namespaces (see `tests/hosts/fabric`): its own network without a way out, mounts, pids and
//! cgroups. So nothing leaves the machine, and ending the host ends and removes all that ran in it. [`Cluster::shared`]
//! is one cluster for all tests of a run; the host ends by itself when the run's process does, however that ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::paths;
use crate::wait;

/// The host's name.
const HOST: &str = "node1";
/// The host's address, on a switch that nothing else is on.
pub const ADDRESS: &str = "20.0.0.100";
/// Where the cluster keeps everything, on the host.
pub const DATA_DIR: &str = "/var/lib/pilothouse";
const START: Duration = Duration::from_secs(180);

/// A cluster on a host of its own.
pub struct Cluster {
    run: String,
    log: PathBuf,
    /// Whether the host ends with this value.
    owned: bool,
}

impl Cluster {
    /// The cluster that all tests of this run share; started by the first that asks. Tests are root's: `None`, with
    /// the reason, where this process may not make namespaces.
    pub fn shared() -> Result<Cluster, String> {
        possible()?;
        let dir = paths::output();
        let lock = fs::File::create(dir.join("cluster.lock")).map_err(|e| e.to_string())?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e.to_string())?;
        let owner = owner();
        let cluster = Cluster { run: format!("pilothouse-{owner}"), log: dir.join("up.log"), owned: false };
        let started = dir.join(format!("cluster-{owner}"));
        if !started.exists() {
            cluster.start_host(owner);
            cluster.start_up();
            cluster.wait_ready();
            fs::write(&started, "").map_err(|e| e.to_string())?;
        }
        Ok(cluster)
    }

    /// A cluster for one test alone; its host ends when this is dropped.
    pub fn own(name: &str) -> Result<Cluster, String> {
        possible()?;
        let pid = std::process::id();
        let log = paths::output().join(format!("up-{name}.log"));
        let cluster = Cluster { run: format!("pilothouse-{name}-{pid}"), log, owned: true };
        cluster.start_host(pid);
        cluster.start_up();
        cluster.wait_ready();
        Ok(cluster)
    }

    fn fabric(&self) -> Command {
        let mut command = Command::new(paths::project().join("tests/hosts/fabric"));
        command.args(["-r", &self.run]).stdin(Stdio::null());
        command
    }

    fn start_host(&self, owner: u32) {
        let output = self
            .fabric()
            .env("FABRIC_OWNER", owner.to_string())
            .args(["up", "--bind"])
            .arg(paths::project())
            .arg(format!("{HOST}={ADDRESS}"))
            .stdout(Stdio::null())
            .stderr(
                fs::File::create(self.log.with_extension("host")).expect("a file for the host's messages"),
            )
            .status();
        let messages = fs::read_to_string(self.log.with_extension("host")).unwrap_or_default();
        assert!(output.is_ok_and(|s| s.success()), "the test host does not start:\n{messages}");
    }

    /// Starts `pilothouse up`.
    pub fn start_up(&self) {
        let version = std::env::var("PILOTHOUSE_EMULATED_VERSION").unwrap_or_default();
        let command = format!(
            "setsid {} up --data-dir={DATA_DIR} --image-dir={} --emulated-version={version} \
             </dev/null >>{} 2>&1 & echo $! >/run/up.pid",
            paths::pilothouse().display(),
            paths::project().join("target/images").display(),
            self.log.display(),
        );
        self.sh(&command);
    }

    /// Returns when the node is ready.
    pub fn wait_ready(&self) {
        wait::until("the node is ready", START, || {
            let get = format!(
                "KUBECONFIG={DATA_DIR}/admin.kubeconfig {} get nodes --no-headers",
                old_kubectl().display()
            );
            let output = self.output(&get);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.split_whitespace().any(|w| w == "Ready") {
                return Ok(());
            }
            if !self.output("kill -0 $(cat /run/up.pid)").status.success() {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(20).collect();
                panic!("`up` ended:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
            Err(text + &String::from_utf8_lossy(&output.stderr))
        });
    }

    /// A command that runs on the host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.fabric();
        command.args(["exec", HOST, program]);
        command
    }

    /// Runs a shell's command line on the host.
    pub fn output(&self, line: &str) -> Output {
        self.command("bash").args(["-c", line]).output().expect("the fabric script runs")
    }

    /// Runs a shell's command line on the host, which must succeed; what it printed.
    pub fn sh(&self, line: &str) -> String {
        let output = self.output(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {}\n{out}{err}", output.status);
        out.into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.owned {
            let _ = self.fabric().arg("down").status();
        }
    }
}

/// Why a cluster cannot run here.
fn possible() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("a cluster's test host needs root".into());
    }
    for program in ["containerd", "runc", "nft", "ip", "unshare", "nsenter", "setpriv"] {
        let found = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists());
        if !found {
            return Err(format!("{program} is not installed"));
        }
    }
    Ok(())
}

/// The process whose end ends the shared host: nextest runs each test in a process of its own.
fn owner() -> u32 {
    if std::env::var_os("NEXTEST").is_some() {
        std::os::unix::process::parent_id()
    } else {
        std::process::id()
    }
}

fn old_kubectl() -> PathBuf {
    paths::project().join("target/kubectl-1.20")
}
