//! Reading a log from where it is wanted, and following it while its container runs, also when it is rotated.

use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::line::Filter;
use super::options::Options;

const CHUNK: usize = 64 * 1024;
const BLOCK: usize = 4096;
/// How often a followed file is looked at. Looking is one `read`; watches on files (inotify) are scarce, and one per
/// reader would be used up by a few `kubectl logs -f` on a machine with many pods.
const LOOK: Duration = Duration::from_millis(100);
/// How often it is asked whether the container still runs.
const ASK: Duration = Duration::from_secs(1);

/// Where the last `n` lines of a file begin.
pub fn tail_start(file: &mut (impl Read + Seek), n: u64) -> io::Result<u64> {
    let size = file.seek(SeekFrom::End(0))?;
    let mut buffer = vec![0; BLOCK];
    let (mut right, mut ends) = (size, 0);
    while right > 0 {
        let left = right.saturating_sub(BLOCK as u64);
        let part = &mut buffer[..usize::try_from(right - left).unwrap_or(BLOCK)];
        file.seek(SeekFrom::Start(left))?;
        file.read_exact(part)?;
        for (i, _) in part.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            ends += 1;
            if ends > n {
                return Ok(left + i as u64 + 1);
            }
        }
        right = left;
    }
    Ok(0)
}

/// A log that is open at the place from which it is wanted.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    filter: Filter,
    follow: bool,
    rest: Vec<u8>,
}

impl Log {
    /// Opens a log. Errors are v1.20's texts.
    pub async fn open(path: &Path, options: &Options) -> Result<Log, String> {
        let shown = path.display().to_string();
        let path = tokio::fs::canonicalize(path)
            .await
            .map_err(|e| format!("failed to try resolving symlinks in path {shown:?}: {}", errno(&e)))?;
        let failed = |e: io::Error| format!("failed to open log file {:?}: {}", path.display(), errno(&e));
        let file = std::fs::File::open(&path).map_err(failed)?;
        let (tail, mut std_file) = (options.tail, file);
        let (file, start) = tokio::task::spawn_blocking(move || {
            let start = tail.map_or(Ok(0), |n| tail_start(&mut std_file, n));
            (std_file, start)
        })
        .await
        .map_err(|e| e.to_string())?;
        let start = start
            .map_err(|e| format!("failed to tail {} lines of log file {shown:?}: {e}", tail.unwrap_or(0)))?;
        let mut file = File::from_std(file);
        file.seek(SeekFrom::Start(start)).await.map_err(|e| e.to_string())?;
        let filter = Filter {
            since: options.since,
            timestamps: options.timestamps,
            bytes: options.limit,
            lines: options.tail.filter(|_| !options.follow),
            ..Default::default()
        };
        Ok(Log { path, file, filter, follow: options.follow, rest: Vec::new() })
    }

    /// Sends what is wanted until there is no more or nobody listens. `running` says whether the container still runs.
    pub async fn send<F: Future<Output = bool>>(mut self, out: Sender<Bytes>, running: impl Fn() -> F) {
        let mut asked = Instant::now();
        let mut last_round = false;
        while !self.filter.done() {
            match self.read_on(&out).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => {
                    tracing::debug!(log = %self.path.display(), "{e}");
                    return;
                }
            }
            if !self.follow || last_round {
                break;
            }
            if self.reopened().await {
                continue;
            }
            tokio::select! { _ = out.closed() => return, _ = tokio::time::sleep(LOOK) => {} }
            if asked.elapsed() >= ASK {
                asked = Instant::now();
                // What was written before it ended is read in one more round.
                last_round = !running().await;
            }
        }
        // A line that was never ended.
        if !self.rest.is_empty() {
            let mut text = Vec::new();
            self.filter.push(&std::mem::take(&mut self.rest), &mut text);
            let _ = out.send(text.into()).await;
        }
    }

    /// Sends all there is; `false` where nothing more is wanted.
    async fn read_on(&mut self, out: &Sender<Bytes>) -> io::Result<bool> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let n = self.file.read(&mut chunk).await?;
            if n == 0 {
                return Ok(true);
            }
            self.rest.extend_from_slice(&chunk[..n]);
            let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { continue };
            let incomplete = self.rest.split_off(end + 1);
            let lines = std::mem::replace(&mut self.rest, incomplete);
            let mut text = Vec::new();
            let more = lines.split_inclusive(|b| *b == b'\n').all(|l| self.filter.push(l, &mut text));
            if !text.is_empty() && out.send(text.into()).await.is_err() {
                return Ok(false);
            }
            if !more {
                self.rest.clear();
                return Ok(false);
            }
        }
    }

    /// Goes on to the new file where the log was rotated. Not before something stands in it: until then the runtime
    /// may still write into the old one. Of that, what came since it was last read is read first.
    async fn reopened(&mut self) -> bool {
        let (Ok(there), Ok(here)) = (tokio::fs::metadata(&self.path).await, self.file.metadata().await)
        else {
            return false;
        };
        if there.ino() == here.ino() && there.dev() == here.dev() {
            return false;
        }
        if there.len() == 0 {
            return false;
        }
        let Ok(position) = self.file.stream_position().await else { return false };
        if position < here.len() {
            return true;
        }
        match File::open(&self.path).await {
            Ok(f) => {
                self.file = f;
                true
            }
            Err(_) => false,
        }
    }
}

/// An operating system's error as Go prints it.
fn errno(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::mpsc;

    #[test]
    fn finds_the_last_lines() {
        let start = |text: &str, n| tail_start(&mut Cursor::new(text.as_bytes()), n).unwrap();
        assert_eq!(start("a\nb\nc\n", 2), 2);
        assert_eq!(start("a\nb\nc\n", 3), 0);
        assert_eq!(start("a\nb\nc\n", 9), 0);
        assert_eq!(start("a\nb\nc\n", 0), 6);
        assert_eq!(start("", 5), 0);
        let long = "0123456789\n".repeat(1000);
        assert_eq!(start(&long, 999), 11);
        assert_eq!(start(&long, 1), 11 * 999);
    }

    fn log(lines: std::ops::Range<u32>) -> String {
        lines.map(|i| format!("2020-01-01T00:00:00Z stdout F line {i}\n")).collect()
    }

    async fn all(path: &Path, options: Options) -> String {
        let (tx, mut rx) = mpsc::channel(1);
        let log = Log::open(path, &options).await.unwrap();
        tokio::spawn(log.send(tx, || async { false }));
        let mut text = Vec::new();
        while let Some(b) = rx.recv().await {
            text.extend_from_slice(&b);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn reads_tails_and_limits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, log(1..11) + "2020-01-01T00:00:00Z stdout F cut").unwrap();
        let o = Options::default();
        assert!(all(&path, o.clone()).await.ends_with("line 10\ncut"));
        assert_eq!(all(&path, Options { tail: Some(0), ..o.clone() }).await, "");
        assert_eq!(all(&path, Options { limit: Some(9), ..o.clone() }).await, "line 1\nli");
        assert_eq!(all(&path, Options { follow: true, tail: Some(1), ..o.clone() }).await, "line 10\ncut");
        let e = Log::open(&dir.path().join("no"), &o).await.unwrap_err();
        assert!(e.contains("no such file or directory"), "{e}");
    }

    #[tokio::test]
    async fn follows_across_a_rotation_without_loss() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, log(0..2)).unwrap();
        let running = Arc::new(AtomicBool::new(true));
        let (tx, mut rx) = mpsc::channel(1);
        let followed = Log::open(&path, &Options { follow: true, ..Default::default() }).await.unwrap();
        let alive = running.clone();
        let task = tokio::spawn(followed.send(tx, move || {
            let alive = alive.clone();
            async move { alive.load(Ordering::SeqCst) }
        }));
        assert_eq!(&rx.recv().await.unwrap()[..], b"line 0\nline 1\n");
        let rotated = dir.path().join("0.log.20200101-000000");
        std::fs::rename(&path, &rotated).unwrap();
        let mut old = std::fs::OpenOptions::new().append(true).open(&rotated).unwrap();
        io::Write::write_all(&mut old, log(2..3).as_bytes()).unwrap();
        std::fs::write(&path, log(3..4)).unwrap();
        assert_eq!(&rx.recv().await.unwrap()[..], b"line 2\n");
        assert_eq!(&rx.recv().await.unwrap()[..], b"line 3\n");
        running.store(false, Ordering::SeqCst);
        assert_eq!(rx.recv().await, None);
        task.await.unwrap();
    }
}
