//! Rotates the logs of containers: a log over its size is moved aside, and the runtime told to begin a new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pilothouse_apimachinery::quantity::Quantity;
use pilothouse_component_base::signals::Stop;

use crate::kubelet::Kubelet;
use crate::runtime::labels::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID, info};
use crate::runtime::status::State;

const INTERVAL: Duration = Duration::from_secs(10);

impl Kubelet {
    /// Rotates logs until `stop`.
    pub async fn rotate_logs(self: Arc<Self>, stop: Stop) {
        let max = Quantity::parse(&self.config.container_log_max_size).map_or(10 << 20, |q| q.value());
        let Ok(max) = u64::try_from(max) else { return };
        let files = usize::try_from(self.config.container_log_max_files).unwrap_or(5).max(2);
        loop {
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(INTERVAL) => {} }
            // Nothing has grown large where no container runs.
            if self.running_pods().is_empty() {
                continue;
            }
            for c in self.cri.list_containers(None).await.unwrap_or_default() {
                if State::from(c.state) != State::Running {
                    continue;
                }
                let label = |k: &str| c.labels.get(k).map(String::as_str).unwrap_or("");
                let restarts = u32::try_from(info(&c.annotations).restart_count).unwrap_or(0);
                let log = self.config.container_log(
                    label(POD_NAMESPACE),
                    label(POD_NAME),
                    label(POD_UID),
                    label(CONTAINER_NAME),
                    restarts,
                );
                if std::fs::metadata(&log).is_ok_and(|m| m.len() > max)
                    && let Err(e) = self.rotate(&c.id, &log, files).await
                {
                    tracing::warn!("log {} not rotated: {e}", log.display());
                }
            }
        }
    }

    async fn rotate(&self, id: &str, log: &Path, files: usize) -> Result<(), String> {
        // The log itself and the one that is now moved aside count too.
        for old in rotated(log).iter().rev().skip(files - 2) {
            let _ = std::fs::remove_file(old);
        }
        let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let aside = PathBuf::from(format!("{}.{stamp}", log.display()));
        std::fs::rename(log, &aside).map_err(|e| e.to_string())?;
        if let Err(e) = self.cri.reopen_log(id).await {
            // The runtime still writes to the old file: it is the log again.
            let _ = std::fs::rename(&aside, log);
            return Err(e.to_string());
        }
        Ok(())
    }
}

/// What a log was rotated to, the oldest first.
fn rotated(log: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut out: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
        .collect();
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_logs_are_found_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for n in ["0.log", "0.log.20200102-000000", "0.log.20200101-000000", "10.log.20200101-000000"] {
            std::fs::write(dir.path().join(n), "").unwrap();
        }
        let names: Vec<String> = rotated(&dir.path().join("0.log"))
            .iter()
            .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["0.log.20200101-000000", "0.log.20200102-000000"]);
    }
}
