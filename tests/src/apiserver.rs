//! An API server alone, as a process.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::https::Client;
use crate::paths;
use crate::process::{Process, free_port};

/// Where it keeps its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// In a file of its own.
    Embedded,
    /// In an etcd that is started for it.
    Etcd,
}

/// A running API server with an empty store, and an administrator's token. Ends when dropped.
pub struct ApiServer {
    // Dropped in this order: the server before its etcd, the files last.
    _server: Process,
    _etcd: Option<Process>,
    dir: TempDir,
    port: u16,
}

/// The administrator's token.
pub const TOKEN: &str = "administrator";

impl ApiServer {
    /// Starts one that serves what v1.20 serves, and returns when it is ready.
    pub async fn start(store: Store) -> anyhow::Result<ApiServer> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        fs::write(
            path("tokens.csv"),
            format!("{TOKEN},admin,uid-admin,\"system:masters\"\nsomebody,somebody,uid-somebody\n"),
        )?;
        let (etcd, storage) = match store {
            Store::Embedded => (
                None,
                vec![
                    "--storage-backend=embedded".to_string(),
                    format!("--data-dir={}", path("data").display()),
                ],
            ),
            Store::Etcd => {
                let (etcd, url) = start_etcd(&path("etcd"))?;
                let data = format!("--data-dir={}", path("data").display());
                (Some(etcd), vec![format!("--etcd-servers={url}"), data])
            }
        };
        let port = free_port();
        let log = fs::File::create(path("log"))?;
        let server = Process::start(
            Command::new(paths::pilothouse())
                .arg("kube-apiserver")
                .args(&storage)
                .args(["--emulated-version=1.20", "--bind-address=127.0.0.1"])
                .arg(format!("--secure-port={port}"))
                .arg(format!("--cert-dir={}", path("pki").display()))
                .arg(format!("--token-auth-file={}", path("tokens.csv").display()))
                .args(["--service-cluster-ip-range=10.0.0.0/24", "--service-node-port-range=30000-50000"])
                .args(["--authorization-mode=RBAC,Node", "--disable-admission-plugins=ServiceAccount"])
                .arg("--allow-privileged=true")
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        let mut running = ApiServer { _server: server, _etcd: etcd, dir, port };
        running.wait_ready().await?;
        Ok(running)
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            if let Ok(mut client) = self.client(TOKEN).await
                && client.send("GET", "/readyz", &[], None).await.is_ok_and(|a| a.status == 200)
            {
                return Ok(());
            }
            if !self._server.runs() || tokio::time::Instant::now() > end {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                anyhow::bail!("the API server does not get ready:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A connection of the user with this token.
    pub async fn client(&self, token: &str) -> anyhow::Result<Client> {
        Client::connect(self.port, &self.dir.path().join("pki/apiserver.crt"), token).await
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

fn start_etcd(dir: &std::path::Path) -> anyhow::Result<(Process, String)> {
    let url = format!("http://127.0.0.1:{}", free_port());
    let peers = format!("http://127.0.0.1:{}", free_port());
    let etcd = Process::start(
        Command::new("etcd")
            .arg(format!("--data-dir={}", dir.display()))
            .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}"), "--log-level=error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )
    .map_err(|e| anyhow::anyhow!("etcd (Debian package etcd-server): {e}"))?;
    Ok((etcd, url))
}
