//! A real etcd for a test: its own process on free ports of the loopback interface, its data in a temporary folder.
//! It is ended when the value is dropped, also when the test fails.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) struct Etcd {
    pub(crate) url: String,
    pub(crate) dir: PathBuf,
    client: SocketAddr,
    args: Vec<String>,
    child: Option<Child>,
    _temp: Option<tempfile::TempDir>,
}

fn free_ports(n: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|l| l.local_addr().unwrap()).collect()
}

fn program() -> String {
    std::env::var("ETCD").unwrap_or_else(|_| "/usr/bin/etcd".into())
}

impl Etcd {
    /// One member on its own; `extra` goes to its command line.
    pub(crate) fn start(extra: &[&str]) -> Etcd {
        Self::start_with("http", extra)
    }

    pub(crate) fn start_with(scheme: &str, extra: &[&str]) -> Etcd {
        let ports = free_ports(2);
        let mut etcd = Etcd::new(scheme, 0, &ports[..1], &ports[1..], extra);
        etcd.run();
        etcd.wait_ready();
        etcd
    }

    /// `n` members of one cluster.
    pub(crate) fn cluster(n: usize) -> Vec<Etcd> {
        let ports = free_ports(2 * n);
        let (clients, peers) = ports.split_at(n);
        let mut members: Vec<Etcd> = (0..n).map(|i| Etcd::new("http", i, clients, peers, &[])).collect();
        members.iter_mut().for_each(Etcd::run);
        members.iter().for_each(Etcd::wait_ready);
        members
    }

    fn new(scheme: &str, i: usize, clients: &[SocketAddr], peers: &[SocketAddr], extra: &[&str]) -> Etcd {
        let temp = tempfile::tempdir().unwrap();
        let url = format!("{scheme}://{}", clients[i]);
        let cluster: Vec<String> =
            peers.iter().enumerate().map(|(i, p)| format!("m{i}=http://{p}")).collect();
        let mut args: Vec<String> = [
            ("--name", format!("m{i}")),
            ("--data-dir", temp.path().join("data").display().to_string()),
            ("--listen-client-urls", url.clone()),
            ("--advertise-client-urls", url.clone()),
            ("--listen-peer-urls", format!("http://{}", peers[i])),
            ("--initial-advertise-peer-urls", format!("http://{}", peers[i])),
            ("--initial-cluster", cluster.join(",")),
            ("--log-level", "error".to_string()),
        ]
        .into_iter()
        .flat_map(|(k, v)| [k.to_string(), v])
        .collect();
        args.extend(extra.iter().map(|s| s.to_string()));
        Etcd { url, dir: temp.path().to_path_buf(), client: clients[i], args, child: None, _temp: Some(temp) }
    }

    fn run(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let child = Command::new(program())
            .args(&self.args)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}; it is in Debian's package etcd-server", program()));
        self.child = Some(child);
    }

    /// Returns once the member accepts connections; the calls themselves wait for the rest.
    fn wait_ready(&self) {
        let end = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect_timeout(&self.client, Duration::from_secs(1)).is_err() {
            if Instant::now() > end {
                panic!(
                    "etcd did not start:\n{}",
                    std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        let Some(child) = &self.child else { return };
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }

    /// Stops the process where it stands, as a machine that hangs.
    pub(crate) fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn restart(&mut self) {
        self.run();
        self.wait_ready();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
