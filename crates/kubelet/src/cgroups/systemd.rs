//! Slices, made and ended by systemd.

use std::io;

use tokio::process::Command;

async fn systemctl(verb: &str, slice: &str) -> io::Result<()> {
    let out = Command::new("systemctl").args([verb, "--quiet", slice]).output().await?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr).trim().to_string();
    Err(io::Error::other(format!("systemctl {verb} {slice}: {text}")))
}

/// Starts a slice; those above it start with it.
pub async fn start(slice: &str) -> io::Result<()> {
    systemctl("start", slice).await
}

/// Stops a slice and what is in it.
pub async fn stop(slice: &str) -> io::Result<()> {
    systemctl("stop", slice).await
}
