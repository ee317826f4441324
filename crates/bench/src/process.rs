//! Processes of this machine, from `/proc`.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

/// CPU and memory of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProcessUsage {
    /// CPU seconds, user and system, in steps of 10 ms.
    pub cpu: f64,
    /// Resident bytes.
    pub resident: u64,
}

/// What process `pid` uses.
pub fn usage(pid: u32) -> io::Result<ProcessUsage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, ticks) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(ProcessUsage { cpu: ticks as f64 / 100.0, resident: resident(&status) })
}

/// Parent and ticks of CPU time (100 a second) in `/proc/<pid>/stat`.
fn parse_stat(stat: &str) -> Option<(u32, u64)> {
    // The command's name may hold blanks and brackets; what follows its last bracket is regular.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some((fields.get(1)?.parse().ok()?, ticks))
}

fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

/// `pid` and all its descendants.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some((parent, _)) = parse_stat(&stat) {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at) {
        all.extend(children.remove(pid).unwrap_or_default());
        at += 1;
    }
    all
}

/// The name of process `pid`.
pub fn name(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).map(|s| s.trim().to_string()).unwrap_or_default()
}

/// Asks a child to end, and ends it if it has not within `patience`.
pub async fn stop(child: &mut Child, patience: Duration) -> io::Result<()> {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(io::Error::from)?;
    }
    match tokio::time::timeout(patience, child.wait()).await {
        Ok(status) => status.map(|_| ()),
        Err(_) => child.kill().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "42 (a) b (c) S 7 42 42 0 -1 4194304 1 0 0 0 150 50 0 0 20 0 1 0 100 1 1";
        assert_eq!(parse_stat(stat), Some((7, 200)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn this_process() {
        let own = std::process::id();
        assert!(usage(own).unwrap().resident > 100_000);
        assert!(tree(own).contains(&own));
        assert!(usage(u32::MAX).is_err());
    }

    #[tokio::test]
    async fn a_child_that_does_not_listen_is_ended() {
        let mut child = tokio::process::Command::new("sh")
            .args(["-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut ready = [0; 6];
        tokio::io::AsyncReadExt::read_exact(&mut out, &mut ready).await.unwrap();
        stop(&mut child, Duration::from_millis(100)).await.unwrap();
        assert!(child.try_wait().unwrap().is_some());
    }
}
