//! The real kubectl, in a shell on the cluster's host: documents' commands run as they are written.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, DATA_DIR};
use crate::paths;
use crate::wait;

/// Which kubectl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// v1.20.2, of Debian.
    V1_20,
    /// One of today.
    Current,
}

impl Version {
    fn program(self) -> PathBuf {
        paths::project().join(match self {
            Version::V1_20 => "target/kubectl-1.20",
            Version::Current => "target/kubectl-current",
        })
    }
}

/// A shell with a kubectl, a folder and a namespace of its own, which is deleted when this is dropped.
pub struct Session<'a> {
    /// The cluster it talks to.
    pub cluster: &'a Cluster,
    /// Which kubectl it has.
    pub version: Version,
    /// Its namespace.
    pub namespace: String,
    dir: PathBuf,
}

impl<'a> Session<'a> {
    /// Opens one. An error where that kubectl is not to be had.
    pub fn open(cluster: &'a Cluster, version: Version, name: &str) -> Result<Session<'a>, String> {
        let program = version.program();
        if !program.exists() {
            return Err(format!("there is no {}; scripts/test gets it", program.display()));
        }
        let suffix = match version {
            Version::V1_20 => "old",
            Version::Current => "new",
        };
        let namespace = format!("{}-{suffix}-{}", name.replace('_', "-"), std::process::id());
        let dir = paths::output().join("sessions").join(&namespace);
        fs::create_dir_all(dir.join("bin")).map_err(|e| e.to_string())?;
        let link = dir.join("bin/kubectl");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(program, link).map_err(|e| e.to_string())?;
        let session = Session { cluster, version, namespace, dir };
        let (ns, dir) = (&session.namespace, session.dir.display());
        cluster.sh(&format!("cp {DATA_DIR}/admin.kubeconfig {dir}/kubeconfig"));
        session.run(&format!(
            "kubectl config set-context --current --namespace={ns} && kubectl create namespace {ns}"
        ));
        // Pods are refused until their account is there.
        session.eventually("the default service account", 30, || {
            session.try_run("kubectl get serviceaccount default").map(|_| ())
        });
        Ok(session)
    }

    fn shell(&self, line: &str) -> std::process::Command {
        let mut command = self.cluster.command("env");
        command
            .arg(format!("KUBECONFIG={}", self.dir.join("kubeconfig").display()))
            .arg(format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", self.dir.join("bin").display()))
            .args(["bash", "-c"])
            .arg(format!("cd {} && {line}", self.dir.display()));
        command
    }

    /// Runs a command line.
    pub fn output(&self, line: &str) -> Output {
        self.shell(line).output().expect("the fabric script runs")
    }

    /// Runs a command line, which must succeed; what it printed on standard output.
    pub fn run(&self, line: &str) -> String {
        self.try_run(line).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Runs a command line; what it printed, or how it failed.
    pub fn try_run(&self, line: &str) -> Result<String, String> {
        let output = self.output(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            Ok(out.into_owned())
        } else {
            Err(format!("$ {line}\n{out}{err}({})", output.status))
        }
    }

    /// Runs a command line, which must fail; what it printed, errors included.
    pub fn fails(&self, line: &str) -> String {
        let output = self.output(line);
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success(), "$ {line}\nshould fail, but prints\n{text}");
        text
    }

    /// Runs a command line on a terminal, with this typed into it; all that the terminal showed.
    pub fn terminal(&self, line: &str, typed: &str) -> String {
        use std::io::Write;
        let quoted = line.replace('\'', r"'\''");
        let mut child = self
            .shell(&format!("script -qec '{quoted}' /dev/null"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the fabric script runs");
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            // An early end closes the terminal: what was shown until then tells why.
            let _ = stdin.write_all(typed.as_bytes());
        }
        let output = child.wait_with_output().expect("the command's output");
        drop(stdin);
        String::from_utf8_lossy(&output.stdout).replace('\r', "")
    }

    /// Starts a command line in the background; it ends when this is dropped. What it prints goes into `file`.
    pub fn background(&self, line: &str, file: &str) -> Background<'_> {
        let out = fs::File::create(self.dir.join(file)).expect("a file in the session's folder");
        let pid_file = self.dir.join(format!("{file}.pid"));
        let line = format!("echo $$ >{} && exec {line}", pid_file.display());
        let child =
            self.shell(&line).stdout(out).stderr(Stdio::null()).spawn().expect("the fabric script runs");
        Background { child, pid_file, cluster: self.cluster }
    }

    /// Puts a file into the session's folder.
    pub fn file(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).expect("a file in the session's folder");
    }

    /// The text of a file in the session's folder.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    /// Puts an example manifest into the session's folder under this name.
    pub fn example(&self, example: &str, name: &str) {
        let text = fs::read_to_string(paths::example(example)).expect("an example");
        self.file(name, &text);
    }

    /// An object, or a list of them, as JSON: `get("pod/web-0")`.
    pub fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.run(&format!("kubectl get {what} -o json"))).expect("JSON of kubectl")
    }

    /// A value of an object by a path such as `/status/phase`; `null` where there is none.
    pub fn field(&self, what: &str, path: &str) -> Value {
        match self.try_run(&format!("kubectl get {what} -o json")) {
            Ok(text) => serde_json::from_str::<Value>(&text)
                .ok()
                .and_then(|v| v.pointer(path).cloned())
                .unwrap_or_default(),
            Err(_) => Value::Null,
        }
    }

    /// Waits for a value of an object.
    pub fn expect(&self, what: &str, path: &str, value: impl Into<Value>, seconds: u64) {
        let value = value.into();
        self.eventually(&format!("{what} {path} is {value}"), seconds, || {
            let now = self.field(what, path);
            if now == value { Ok(()) } else { Err(format!("it is {now}")) }
        });
    }

    /// Waits until `check` gives a value.
    pub fn eventually<T>(&self, what: &str, seconds: u64, check: impl FnMut() -> Result<T, String>) -> T {
        wait::until(what, Duration::from_secs(seconds), check)
    }

    /// Waits until an object is gone.
    pub fn gone(&self, what: &str, seconds: u64) {
        self.eventually(&format!("{what} is gone"), seconds, || {
            let names = self.run(&format!("kubectl get {what} --ignore-not-found -o name"));
            if names.trim().is_empty() { Ok(()) } else { Err(names) }
        });
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let look =
                "kubectl get all,pvc -o wide; kubectl get events --sort-by=.lastTimestamp | tail -n 30";
            let output = self.output(look);
            eprintln!("---- {}\n{}", self.namespace, String::from_utf8_lossy(&output.stdout));
        }
        let _ = self.output(&format!("kubectl delete namespace {} --wait=false", self.namespace));
    }
}

/// A command in the background; it is killed when this is dropped.
pub struct Background<'a> {
    child: Child,
    pid_file: PathBuf,
    cluster: &'a Cluster,
}

impl Drop for Background<'_> {
    fn drop(&mut self) {
        // Its pid is one of the host's; the child here only waits for it.
        let _ = self.cluster.output(&format!("kill -9 $(cat {})", self.pid_file.display()));
        let _ = self.child.wait();
    }
}
