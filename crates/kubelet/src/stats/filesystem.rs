//! File systems: how full they are, and how much lies in a folder.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How full a file system is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes.
    pub capacity: u64,
    /// Bytes that can still be had.
    pub available: u64,
    /// Bytes in use.
    pub used: u64,
    /// Files that may be.
    pub inodes: u64,
    /// Files that may still be made.
    pub inodes_free: u64,
}

impl Space {
    /// Files there are.
    pub fn inodes_used(&self) -> u64 {
        self.inodes.saturating_sub(self.inodes_free)
    }
}

/// How full the file system below a path is.
pub fn space(path: &Path) -> io::Result<Space> {
    let s = statvfs(path)?;
    let block = s.fragment_size();
    Ok(Space {
        capacity: s.blocks() * block,
        available: s.blocks_available() * block,
        used: s.blocks().saturating_sub(s.blocks_free()) * block,
        inodes: s.files(),
        inodes_free: s.files_free(),
    })
}

/// How much lies in a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files and folders.
    pub inodes: u64,
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Used) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// Counts what lies in a folder, on its own file system only; a file with two names once.
pub fn used(dir: &Path) -> Used {
    let mut total = Used::default();
    let Ok(top) = std::fs::symlink_metadata(dir) else { return total };
    let mut linked = HashSet::new();
    let mut folders = vec![dir.to_path_buf()];
    let mut add = |m: &std::fs::Metadata, total: &mut Used| {
        if m.nlink() < 2 || m.is_dir() || linked.insert(m.ino()) {
            *total += Used { bytes: m.blocks() * 512, inodes: 1 };
        }
    };
    add(&top, &mut total);
    while let Some(folder) = folders.pop() {
        for e in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(m) = std::fs::symlink_metadata(e.path()) else { continue };
            if m.dev() != top.dev() {
                continue;
            }
            add(&m, &mut total);
            if m.is_dir() {
                folders.push(e.path());
            }
        }
    }
    total
}

/// Remembers how much lies in folders, because counting takes long.
#[derive(Default)]
pub struct Counted(Mutex<HashMap<PathBuf, (Instant, Used)>>);

impl Counted {
    /// How much lies in a folder, as counted no longer ago than that.
    pub fn used(&self, dir: &Path, max_age: Duration) -> Used {
        if let Some((at, used)) = self.0.lock().get(dir)
            && at.elapsed() < max_age
        {
            return *used;
        }
        let counted = used(dir);
        self.0.lock().insert(dir.to_path_buf(), (Instant::now(), counted));
        counted
    }

    /// Forgets folders that are gone.
    pub fn tidy(&self) {
        self.0.lock().retain(|dir, _| dir.exists());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_file_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/a"), vec![1; 10_000]).unwrap();
        std::fs::hard_link(dir.path().join("d/a"), dir.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        let u = used(dir.path());
        assert_eq!(u.inodes, 4);
        assert!(u.bytes >= 10_000 && u.bytes < 200_000, "{u:?}");
        assert_eq!(used(Path::new("/nonexistent")), Used::default());
        assert!(space(dir.path()).unwrap().capacity > 0);
    }
}
