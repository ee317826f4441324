//! The audit log's file: one line an event, a new file when it is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

/// Where lines go.
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A file that is rotated.
    File(Mutex<Rotating>),
}

/// A file with its limits.
pub struct Rotating {
    path: PathBuf,
    file: File,
    written: u64,
    max_bytes: u64,
    max_backups: usize,
    max_age: Option<Duration>,
}

/// Audit records hold what requests say, so only the owner reads them.
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl Sink {
    /// Opens the log. `max_mebibytes` 0 is 100, as in Kubernetes; other limits of 0 are none.
    pub fn open(path: &str, max_mebibytes: i64, max_backups: i64, max_age_days: i64) -> io::Result<Sink> {
        if path == "-" {
            return Ok(Sink::Stdout);
        }
        let path = PathBuf::from(path);
        let file = open(&path)?;
        let positive = |n: i64| u64::try_from(n).ok().filter(|n| *n > 0);
        Ok(Sink::File(Mutex::new(Rotating {
            written: file.metadata()?.len(),
            file,
            path,
            max_bytes: positive(max_mebibytes).unwrap_or(100) << 20,
            max_backups: positive(max_backups).and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX),
            max_age: positive(max_age_days).map(|d| Duration::from_secs(d * 86_400)),
        })))
    }

    /// Writes a line; it must end with a newline.
    pub fn write(&self, line: &str) -> io::Result<()> {
        match self {
            Sink::Stdout => io::stdout().write_all(line.as_bytes()),
            Sink::File(file) => file.lock().write(line),
        }
    }
}

impl Rotating {
    fn write(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64;
        if self.written > 0 && self.written + length > self.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(line.as_bytes())?;
        self.written += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let stamp = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.3f").to_string();
        let (stem, extension) = self.names();
        let backup = self.path.with_file_name(format!("{stem}-{stamp}{extension}"));
        std::fs::rename(&self.path, backup)?;
        self.file = open(&self.path)?;
        self.written = 0;
        self.prune()
    }

    fn names(&self) -> (String, String) {
        let text = |s: Option<&std::ffi::OsStr>| s.map(|s| s.to_string_lossy().into_owned());
        let extension = text(self.path.extension()).map(|e| format!(".{e}")).unwrap_or_default();
        (text(self.path.file_stem()).unwrap_or_default(), extension)
    }

    fn prune(&self) -> io::Result<()> {
        let (stem, extension) = self.names();
        let dir = self.path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut backups: Vec<PathBuf> = std::fs::read_dir(dir)?
            .flatten()
            .map(|e| e.path())
            .filter(|p| {
                let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                name.starts_with(&format!("{stem}-")) && name.ends_with(&extension)
            })
            .collect();
        backups.sort();
        let surplus = backups.len().saturating_sub(self.max_backups);
        let too_old = |p: &PathBuf| {
            let modified = p.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::now());
            self.max_age.is_some_and(|limit| modified.elapsed().unwrap_or_default() > limit)
        };
        for (i, path) in backups.iter().enumerate() {
            if i < surplus || too_old(path) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotates_and_prunes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/audit.log");
        let sink = Sink::open(path.to_str().unwrap(), 1, 1, 0).unwrap();
        let line = format!("{}\n", "x".repeat(600 * 1024));
        for _ in 0..4 {
            sink.write(&line).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(std::fs::read_dir(dir.path().join("logs")).unwrap().count(), 2);
        assert_eq!(path.metadata().unwrap().len(), line.len() as u64);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
