//! The command line of the binary itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn pilothouse(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pilothouse")).args(args).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_names_every_component() {
    let output = pilothouse(&["help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for name in [
        "up",
        "reset",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
    ] {
        assert!(help.contains(name), "{name} is not in:\n{help}");
    }
}

#[test]
fn a_link_by_a_components_name_is_that_component() {
    for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"] {
        let output = Command::new(env!("CARGO_BIN_EXE_pilothouse"))
            .arg0(format!("/usr/bin/{name}"))
            .arg("--version")
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        assert!(text(&output.stdout).starts_with("Kubernetes v1."), "{name}: {}", text(&output.stdout));
        assert!(pilothouse(&[name, "--help"]).status.success(), "{name}");
    }
}

#[test]
fn unknown_flags_and_commands_are_errors() {
    for args in [&["kube-apiserver", "--no-such-flag"][..], &["up", "--no-such-flag"], &["no-such-command"]] {
        let output = pilothouse(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains("no-such-"), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn reset_of_what_is_not_there_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let missing = format!("--data-dir={}", dir.path().join("missing").display());
    assert!(pilothouse(&["reset", &missing]).status.success());
}

#[test]
fn reset_refuses_a_folder_that_is_not_ours() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letters"), "dear").unwrap();
    let output = pilothouse(&["reset", &format!("--data-dir={}", dir.path().display())]);
    assert!(!output.status.success());
    assert!(dir.path().join("letters").exists());
}

#[test]
fn it_is_cfssl_by_that_name() {
    let by_name = |name: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilothouse"));
        command.arg0(name).args(args).stdin(std::process::Stdio::null()).output().unwrap()
    };
    let version = by_name("/usr/local/bin/cfssl", &["version"]);
    assert!(text(&version.stdout).starts_with("Version: "), "{version:?}");
    assert_eq!(version.stdout, pilothouse(&["pki", "version"]).stdout);
    let empty = by_name("cfssljson", &["-bare", "x"]);
    assert!(!empty.status.success() && text(&empty.stderr).contains("there is no input"), "{empty:?}");
    assert_eq!(by_name("cfssl", &["gencert", "-nope"]).status.code(), Some(2));
}

/// A port of loopback that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
    listener.expect("loopback has a free port").port()
}

#[test]
fn an_api_server_without_etcd_names_it_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let below = |name: &str| dir.path().join(name).display().to_string();
    let etcd = format!("http://127.0.0.1:{}", free_port());
    let output = pilothouse(&[
        "kube-apiserver",
        &format!("--etcd-servers={etcd}"),
        "--etcd-startup-timeout=1s",
        &format!("--cert-dir={}", below("pki")),
        &format!("--data-dir={}", below("data")),
    ]);
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    let wanted = format!("etcd cannot be reached within 1 s: {etcd}: ");
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with("Error: ") && last.contains(&wanted), "{errors}");
    assert!(last.to_lowercase().contains("connection refused"), "{errors}");
}

/// Ended where the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The answer to a GET, head and body; none where nobody listens.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

#[test]
fn kube_proxy_waits_for_the_api_server() {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    let cluster = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: 'http://127.0.0.1:{}'}}\n\
         contexts:\n- name: c\n  context: {{cluster: c, user: u}}\ncurrent-context: c\nusers:\n- name: u\n  user: {{}}\n",
        free_port()
    );
    std::fs::write(&kubeconfig, cluster).unwrap();
    let (health, metrics) = (free_port(), free_port());
    let args = [
        "kube-proxy".to_string(),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--healthz-bind-address=127.0.0.1:{health}"),
        format!("--metrics-bind-address=127.0.0.1:{metrics}"),
        // The machine's connection tracking is left as it is.
        "--conntrack-max-per-core=0".into(),
        "--conntrack-tcp-timeout-established=0s".into(),
        "--conntrack-tcp-timeout-close-wait=0s".into(),
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilothouse"));
    let mut proxy = Running(command.args(&args).stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(proxy.0.stderr.take().unwrap());
    let mut asked = 0;
    // It asks again after the first answer has failed.
    while asked < 2 {
        let mut line = String::new();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "it has ended");
        asked += usize::from(line.contains("the server does not say which kinds it has"));
    }
    assert_eq!(proxy.0.try_wait().unwrap(), None);
    let mode = get(metrics, "/proxyMode").unwrap();
    assert!(mode.starts_with("HTTP/1.1 200 OK") && mode.ends_with("\r\n\r\nnftables"), "{mode}");
    assert!(get(metrics, "/healthz").unwrap().ends_with("\r\n\r\nok"));
    let healthz = get(health, "/healthz").unwrap();
    assert!(healthz.starts_with("HTTP/1.1 200 OK"), "{healthz}");
    assert!(healthz.contains("application/json") && healthz.contains("nosniff"), "{healthz}");
    assert!(healthz.contains("\r\n\r\n{\"lastUpdated\": \"2"), "{healthz}");

    // Another one cannot have its ports; it says so, and ends where it is told to.
    let mut second = Command::new(env!("CARGO_BIN_EXE_pilothouse"));
    let second = second.args(&args).arg("--bind-address-hard-fail").output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let wanted = format!("failed to listen on 127.0.0.1:{health}: Address already in use");
    assert!(text(&second.stderr).contains(&wanted), "{}", text(&second.stderr));
}

/// Resident kilobytes of the program's code.
fn code_in_memory(process: u32) -> usize {
    let smaps = std::fs::read_to_string(format!("/proc/{process}/smaps")).unwrap_or_default();
    let (mut inside, mut sum) = (false, 0);
    for line in smaps.lines() {
        match line.strip_prefix("Rss:") {
            Some(rss) if inside => {
                sum += rss.trim().trim_end_matches(" kB").parse::<usize>().expect("a number of kB")
            }
            None if line.contains(" r-xp ") => inside = line.ends_with("/pilothouse"),
            None if line.contains("-p ") => inside = false,
            _ => {}
        }
    }
    sum
}

#[test]
fn what_only_the_start_needed_is_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let below = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilothouse"));
    command.args([
        "kube-apiserver",
        "--storage-backend=embedded",
        "--bind-address=127.0.0.1",
        &format!("--secure-port={port}"),
        &format!("--cert-dir={}", below("pki")),
        &format!("--data-dir={}", below("data")),
    ]);
    let mut server = Running(command.stderr(Stdio::null()).spawn().unwrap());
    let (begun, mut most) = (Instant::now(), 0);
    loop {
        let now = code_in_memory(server.0.id());
        most = most.max(now);
        if now < most / 2 {
            break;
        }
        assert_eq!(server.0.try_wait().unwrap(), None);
        assert!(begun.elapsed() < Duration::from_secs(60), "{now} KiB of {most} are there yet");
        std::thread::sleep(Duration::from_millis(20));
    }
    // It goes on.
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nobody listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.0.try_wait().unwrap(), None);
}
