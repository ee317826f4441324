//! cgroups as folders: version 1, one tree per controller, and version 2, one tree for all.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::resources::CgroupLimits;

/// Where the kernel shows its cgroups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// Folders by controllers.
    V1(Vec<(BTreeSet<String>, PathBuf)>),
    /// The one folder.
    V2(PathBuf),
}

/// Controllers that children of a v2 cgroup get.
const V2_CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

impl Tree {
    /// From the text of `/proc/self/mountinfo`.
    pub fn from_mountinfo(text: &str) -> Option<Tree> {
        let mut v1: Vec<(BTreeSet<String>, PathBuf)> = Vec::new();
        let mut v2 = None;
        for line in text.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mount_point = PathBuf::from(left.split(' ').nth(4)?);
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or("");
                    let controllers = options
                        .split(',')
                        .filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "clone_children"))
                        .map(String::from)
                        .collect();
                    if !v1.iter().any(|(c, _)| *c == controllers) {
                        v1.push((controllers, mount_point));
                    }
                }
                Some("cgroup2") => v2 = v2.or(Some(mount_point)),
                _ => {}
            }
        }
        let has = |c: &str| v1.iter().any(|(set, _)| set.contains(c));
        if has("cpu") && has("memory") {
            // The empty v2 tree beside v1: runtimes make folders in it too.
            v1.extend(v2.map(|p| (BTreeSet::from(["unified".to_string()]), p)));
            Some(Tree::V1(v1))
        } else {
            v2.map(Tree::V2)
        }
    }

    /// The folder of a v1 controller, or that of v2.
    pub fn controller(&self, controller: &str) -> Option<&Path> {
        match self {
            Tree::V1(trees) => trees.iter().find(|(c, _)| c.contains(controller)).map(|(_, p)| p.as_path()),
            Tree::V2(p) => Some(p),
        }
    }

    /// The folders of a cgroup.
    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        let below = |base: &Path| base.join(path.trim_start_matches('/'));
        match self {
            Tree::V1(trees) => trees.iter().map(|(_, p)| below(p)).collect(),
            Tree::V2(p) => vec![below(p)],
        }
    }

    fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        self.controller(controller).map(|p| p.join(path.trim_start_matches('/'))).filter(|p| p.is_dir())
    }

    /// Whether all of a cgroup is there. Named v1 trees (systemd's own) don't count: others may tidy them up.
    pub fn exists(&self, path: &str) -> bool {
        ["cpu", "memory"].iter().all(|c| self.dir(c, path).is_some())
    }

    /// Names of the cgroups right below.
    pub fn children(&self, path: &str) -> Vec<String> {
        let Some(entries) = self.dir("cpu", path).and_then(|d| fs::read_dir(d).ok()) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Makes a cgroup with those above it, and sets its limits.
    pub fn ensure(&self, path: &str, limits: &CgroupLimits) -> io::Result<()> {
        match self {
            Tree::V1(trees) => {
                for (controllers, base) in trees {
                    let dir = base.join(path.trim_start_matches('/'));
                    match fs::create_dir_all(&dir) {
                        Ok(()) => {}
                        // Trees without limits of ours may be read only.
                        Err(_) if !["cpu", "memory", "pids"].iter().any(|c| controllers.contains(*c)) => {
                            continue;
                        }
                        Err(e) => return Err(named(e, &dir)),
                    }
                    if controllers.contains("cpuset") {
                        inherit_cpuset(base, path)?;
                    }
                }
            }
            Tree::V2(base) => {
                let mut dir = base.clone();
                for part in path.split('/').filter(|p| !p.is_empty()) {
                    enable_controllers(&dir);
                    dir.push(part);
                    if !dir.is_dir() {
                        fs::create_dir(&dir).map_err(|e| named(e, &dir))?;
                    }
                }
                enable_controllers(&dir);
            }
        }
        self.set(path, limits)
    }

    fn set(&self, path: &str, limits: &CgroupLimits) -> io::Result<()> {
        let v2 = matches!(self, Tree::V2(_));
        let put = |controller: &str, file: &str, value: String| match self.dir(controller, path) {
            Some(dir) if dir.join(file).exists() => {
                let file = dir.join(file);
                fs::write(&file, value).map_err(|e| named(e, &file))
            }
            // A kernel without this limit, or a controller that is not there.
            _ => Ok(()),
        };
        if let Some(shares) = limits.shares {
            match v2 {
                true => put("cpu", "cpu.weight", weight(shares).to_string())?,
                false => put("cpu", "cpu.shares", shares.to_string())?,
            }
        }
        if let Some((quota, period)) = limits.quota {
            if v2 {
                let quota = if quota < 0 { "max".to_string() } else { quota.to_string() };
                put("cpu", "cpu.max", format!("{quota} {period}"))?;
            } else {
                put("cpu", "cpu.cfs_period_us", period.to_string())?;
                put("cpu", "cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        if let Some(memory) = limits.memory.filter(|m| *m > 0) {
            put("memory", if v2 { "memory.max" } else { "memory.limit_in_bytes" }, memory.to_string())?;
        }
        if let Some(pids) = limits.pids {
            put("pids", "pids.max", pids.to_string())?;
        }
        Ok(())
    }

    /// Kills every process in a cgroup and below it.
    pub fn kill_all(&self, path: &str) -> io::Result<()> {
        for dir in self.dirs(path) {
            for d in depth_first(&dir) {
                let Ok(text) = fs::read_to_string(d.join("cgroup.procs")) else { continue };
                for pid in text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 1) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        Ok(())
    }

    /// Removes a cgroup with all below it.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        for dir in self.dirs(path) {
            for d in depth_first(&dir) {
                match fs::remove_dir(&d) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(named(e, &d)),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn named(e: io::Error, path: &Path) -> io::Error {
    match e.raw_os_error() {
        // The number is looked at by the caller.
        Some(n @ libc::EBUSY) => io::Error::from_raw_os_error(n),
        _ => io::Error::new(e.kind(), format!("{}: {e}", path.display())),
    }
}

/// A folder's folders, the deepest first, itself last; nothing where it is not there.
fn depth_first(dir: &Path) -> Vec<PathBuf> {
    if !dir.is_dir() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for e in fs::read_dir(dir).into_iter().flatten().flatten() {
        if e.file_type().is_ok_and(|t| t.is_dir()) {
            out.extend(depth_first(&e.path()));
        }
    }
    out.push(dir.to_path_buf());
    out
}

/// A new v1 cpuset is empty, and nothing can run in it: it takes what the one above has.
fn inherit_cpuset(base: &Path, path: &str) -> io::Result<()> {
    let mut dir = base.to_path_buf();
    for part in path.split('/').filter(|p| !p.is_empty()) {
        let above = dir.clone();
        dir.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = fs::read_to_string(dir.join(file)).unwrap_or_default();
            if own.trim().is_empty()
                && let Ok(value) = fs::read_to_string(above.join(file))
            {
                fs::write(dir.join(file), value.trim()).map_err(|e| named(e, &dir))?;
            }
        }
    }
    Ok(())
}

fn enable_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let wanted: Vec<String> = available
        .split_whitespace()
        .filter(|c| V2_CONTROLLERS.contains(c))
        .map(|c| format!("+{c}"))
        .collect();
    // One by one: a kernel may refuse one of them and not the others.
    for c in wanted {
        let _ = fs::write(dir.join("cgroup.subtree_control"), c);
    }
}

/// v2's weight (1 to 10,000) for v1's shares (2 to 262,144).
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 20 0:1 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 20 0:2 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 20 0:3 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 20 0:4 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
";

    #[test]
    fn finds_the_trees() {
        let t = Tree::from_mountinfo(V1).unwrap();
        assert_eq!(t.controller("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(t.dirs("/kubepods/x").len(), 4);
        let v2 = Tree::from_mountinfo("30 20 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw").unwrap();
        assert_eq!(v2, Tree::V2("/sys/fs/cgroup".into()));
        assert_eq!(Tree::from_mountinfo(""), None);
    }

    #[test]
    fn writes_limits_into_the_files_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let tree =
            Tree::V1(["cpu", "memory"].map(|c| (BTreeSet::from([c.to_string()]), dir.path().join(c))).into());
        tree.ensure("/kubepods/podu", &CgroupLimits::default()).unwrap();
        let cpu = dir.path().join("cpu/kubepods/podu");
        for f in ["cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"] {
            fs::write(cpu.join(f), "").unwrap();
        }
        let limits =
            CgroupLimits { shares: Some(102), quota: Some((-1, 100_000)), memory: Some(5), pids: Some(1) };
        tree.ensure("/kubepods/podu", &limits).unwrap();
        assert_eq!(fs::read_to_string(cpu.join("cpu.shares")).unwrap(), "102");
        assert_eq!(fs::read_to_string(cpu.join("cpu.cfs_quota_us")).unwrap(), "-1");
        assert_eq!(tree.children("/kubepods"), ["podu"]);
        assert!(tree.exists("/kubepods/podu"));
        for f in ["cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"] {
            fs::remove_file(cpu.join(f)).unwrap();
        }
        tree.remove("/kubepods").unwrap();
        assert!(!tree.exists("/kubepods"));
        tree.remove("/kubepods").unwrap();
    }

    #[test]
    fn weights() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }
}
