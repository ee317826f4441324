//! Rotates the logs of containers: a log over its size is moved aside, and the runtime told to begin a new one. What was
//! moved aside before is compressed then: the newest stays plain, because somebody may be reading it to its end.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use pilothouse_apimachinery::quantity::Quantity;
use pilothouse_component_base::signals::Stop;

use crate::kubelet::Kubelet;
use crate::runtime::labels::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID, info};
use crate::runtime::status::State;

const INTERVAL: Duration = Duration::from_secs(10);
const COMPRESSED: &str = ".gz";
const HALF_DONE: &str = ".tmp";

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
                if fs::metadata(&log).is_ok_and(|m| m.len() > max)
                    && let Err(e) = self.rotate(&c.id, &log, files).await
                {
                    tracing::warn!("log {} not rotated: {e}", log.display());
                }
            }
        }
    }

    async fn rotate(&self, id: &str, log: &Path, files: usize) -> Result<(), String> {
        let path = log.to_path_buf();
        // The log itself and the one that is now moved aside count too.
        let tidied = tokio::task::spawn_blocking(move || tidy(&path, files - 2)).await;
        tidied.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
        let aside = PathBuf::from(format!("{}.{stamp}", log.display()));
        fs::rename(log, &aside).map_err(|e| e.to_string())?;
        if let Err(e) = self.cri.reopen_log(id).await {
            // The runtime still writes to the old file: it is the log again.
            let _ = fs::rename(&aside, log);
            return Err(e.to_string());
        }
        Ok(())
    }
}

/// What a log was rotated to, the oldest first.
fn rotated(log: &Path) -> Vec<PathBuf> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name()) else { return Vec::new() };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut out: Vec<PathBuf> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
        .collect();
    out.sort();
    out
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// Leaves the newest `keep` of what a log was rotated to, each compressed, and nothing half done.
fn tidy(log: &Path, keep: usize) -> io::Result<()> {
    let all = rotated(log);
    // A file beside its compressed form is what a compression left that did not come to its end.
    let superfluous =
        |p: &&PathBuf| p.to_string_lossy().ends_with(HALF_DONE) || all.contains(&with_suffix(p, COMPRESSED));
    let (out, mut left): (Vec<&PathBuf>, Vec<&PathBuf>) = all.iter().partition(superfluous);
    let old = left.len().saturating_sub(keep);
    for p in out.into_iter().chain(left.drain(..old)) {
        fs::remove_file(p)?;
    }
    left.into_iter().filter(|p| !p.to_string_lossy().ends_with(COMPRESSED)).try_for_each(|p| compress(p))
}

/// Puts a compressed file in a file's place. The name says what is complete, whenever the machine stops.
fn compress(path: &Path) -> io::Result<()> {
    let half_done = with_suffix(path, HALF_DONE);
    let mut to = GzEncoder::new(File::create(&half_done)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut to)?;
    to.finish()?;
    fs::rename(&half_done, with_suffix(path, COMPRESSED))?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn names(dir: &Path) -> Vec<String> {
        let all = rotated(&dir.join("0.log"));
        all.iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn rotated_logs_are_found_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for n in ["0.log", "0.log.20200102-000000", "0.log.20200101-000000.gz", "10.log.20200101-000000"] {
            fs::write(dir.path().join(n), "").unwrap();
        }
        assert_eq!(names(dir.path()), ["0.log.20200101-000000.gz", "0.log.20200102-000000"]);
    }

    #[test]
    fn old_logs_are_compressed_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        for (n, text) in [
            ("0.log", "now"),
            ("0.log.20200101-000000.gz", "too old"),
            ("0.log.20200102-000000.gz", "whole"),
            ("0.log.20200102-000000", "whole"),
            ("0.log.20200103-000000", "some text\n"),
            ("0.log.20200104-000000.tmp", "half"),
        ] {
            fs::write(dir.path().join(n), text).unwrap();
        }
        tidy(&dir.path().join("0.log"), 2).unwrap();
        assert_eq!(names(dir.path()), ["0.log.20200102-000000.gz", "0.log.20200103-000000.gz"]);
        let file = File::open(dir.path().join("0.log.20200103-000000.gz")).unwrap();
        let mut text = String::new();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "some text\n");
        assert_eq!(fs::read_to_string(dir.path().join("0.log")).unwrap(), "now");
        tidy(&dir.path().join("0.log"), 0).unwrap();
        assert!(names(dir.path()).is_empty());
    }
}
