//! What one cgroup uses, on cgroup v1 and v2.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroups::fs::Tree;

/// From here on a memory limit is none.
const NO_LIMIT: u64 = 1 << 62;

/// CPU, in nanoseconds since the cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All.
    pub total: u64,
    /// In programs.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// All, cached files too.
    pub usage: u64,
    /// Without cached files that were not used for long.
    pub working_set: u64,
    /// Anonymous.
    pub rss: u64,
    /// Cached files.
    pub cache: u64,
    /// Mapped files.
    pub mapped: u64,
    /// Swapped out.
    pub swap: u64,
    /// Most there ever was.
    pub max_usage: u64,
    /// How often the limit was hit.
    pub failures: u64,
    /// Page faults.
    pub faults: u64,
    /// Page faults that had to wait for a disk.
    pub major_faults: u64,
    /// The limit, where there is one.
    pub limit: Option<u64>,
    /// The limit with swap, where there is one.
    pub swap_limit: Option<u64>,
    /// The soft limit, where there is one.
    pub soft_limit: Option<u64>,
}

/// What a cgroup uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// CPU.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// CPU shares.
    pub shares: u64,
    /// Period of the CPU quota, in microseconds.
    pub period: u64,
    /// CPU quota in microseconds, where there is one.
    pub quota: Option<u64>,
    /// Threads.
    pub threads: u64,
    /// Most threads, where there is such a limit.
    pub threads_max: Option<u64>,
    /// Processes in the cgroup itself.
    pub processes: Vec<i32>,
    /// When it was made: seconds since 1970.
    pub created: i64,
}

fn number(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    // -1 and `max` are no limit.
    if text == "max" || text.starts_with('-') { None } else { text.parse().ok() }
}

/// The numbers of a file of `name value` lines.
fn table(path: &Path) -> impl Fn(&str) -> u64 + use<> {
    let text = fs::read_to_string(path).unwrap_or_default();
    move |name: &str| {
        let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
        value.unwrap_or(0)
    }
}

fn limit(path: &Path) -> Option<u64> {
    number(path).filter(|l| *l < NO_LIMIT)
}

/// Reads a cgroup by its path below the tree's root. What is not there counts as 0.
pub fn read(tree: &Tree, path: &str) -> Usage {
    let dir = |controller: &str| -> PathBuf {
        let base = tree.controller(controller).unwrap_or(Path::new("/nonexistent"));
        base.join(path.trim_start_matches('/'))
    };
    let mut usage = match tree {
        Tree::V1(_) => read_v1(&dir),
        Tree::V2(_) => read_v2(&dir("")),
    };
    let cpu = dir("cpu");
    usage.processes = fs::read_to_string(cpu.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.parse().ok())
        .filter(|p| *p > 0)
        .collect();
    let modified = fs::metadata(&cpu).and_then(|m| m.modified()).ok();
    let since = modified.and_then(|m| m.duration_since(std::time::UNIX_EPOCH).ok());
    usage.created = since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(0));
    usage
}

fn read_v1(dir: &dyn Fn(&str) -> PathBuf) -> Usage {
    let (acct, memory, cpu, pids) = (dir("cpuacct"), dir("memory"), dir("cpu"), dir("pids"));
    let ticks = table(&acct.join("cpuacct.stat"));
    // The clock runs at 100 Hz on every Linux we support.
    let nanos = |name: &str| ticks(name) * 10_000_000;
    let stat = table(&memory.join("memory.stat"));
    let used = number(&memory.join("memory.usage_in_bytes")).unwrap_or(0);
    let with_swap = number(&memory.join("memory.memsw.usage_in_bytes"));
    Usage {
        cpu: Cpu {
            total: number(&acct.join("cpuacct.usage")).unwrap_or(0),
            user: nanos("user"),
            system: nanos("system"),
        },
        memory: Memory {
            usage: used,
            working_set: used.saturating_sub(stat("total_inactive_file")),
            rss: stat("total_rss"),
            cache: stat("total_cache"),
            mapped: stat("total_mapped_file"),
            swap: with_swap.map_or(stat("total_swap"), |s| s.saturating_sub(used)),
            max_usage: number(&memory.join("memory.max_usage_in_bytes")).unwrap_or(0),
            failures: number(&memory.join("memory.failcnt")).unwrap_or(0),
            faults: stat("total_pgfault"),
            major_faults: stat("total_pgmajfault"),
            limit: limit(&memory.join("memory.limit_in_bytes")),
            swap_limit: limit(&memory.join("memory.memsw.limit_in_bytes")),
            soft_limit: limit(&memory.join("memory.soft_limit_in_bytes")),
        },
        shares: number(&cpu.join("cpu.shares")).unwrap_or(1024),
        period: number(&cpu.join("cpu.cfs_period_us")).unwrap_or(100_000),
        quota: number(&cpu.join("cpu.cfs_quota_us")),
        threads: number(&pids.join("pids.current")).unwrap_or(0),
        threads_max: number(&pids.join("pids.max")),
        ..Usage::default()
    }
}

fn read_v2(dir: &Path) -> Usage {
    let cpu = table(&dir.join("cpu.stat"));
    let stat = table(&dir.join("memory.stat"));
    let events = table(&dir.join("memory.events"));
    // The root cgroup has no such file; there it is what the kernel counts of it.
    let used =
        number(&dir.join("memory.current")).unwrap_or_else(|| stat("anon") + stat("file") + stat("kernel"));
    let max = fs::read_to_string(dir.join("cpu.max")).unwrap_or_default();
    let mut max = max.split_whitespace().map(|n| n.parse::<u64>().ok());
    let weight = number(&dir.join("cpu.weight")).unwrap_or(39).max(1);
    let memory_limit = limit(&dir.join("memory.max"));
    Usage {
        cpu: Cpu {
            total: cpu("usage_usec") * 1000,
            user: cpu("user_usec") * 1000,
            system: cpu("system_usec") * 1000,
        },
        memory: Memory {
            usage: used,
            working_set: used.saturating_sub(stat("inactive_file")),
            rss: stat("anon"),
            cache: stat("file"),
            mapped: stat("file_mapped"),
            swap: number(&dir.join("memory.swap.current")).unwrap_or(0),
            max_usage: number(&dir.join("memory.peak")).unwrap_or(0),
            failures: events("max"),
            faults: stat("pgfault"),
            major_faults: stat("pgmajfault"),
            limit: memory_limit,
            swap_limit: limit(&dir.join("memory.swap.max")),
            soft_limit: limit(&dir.join("memory.low")).filter(|l| *l > 0),
        },
        // v1's shares for v2's weight.
        shares: 2 + (weight - 1) * 262_142 / 9999,
        quota: max.next().flatten(),
        period: max.next().flatten().unwrap_or(100_000),
        threads: number(&dir.join("pids.current")).unwrap_or(0),
        threads_max: number(&dir.join("pids.max")),
        ..Usage::default()
    }
}

/// The paths of all cgroups, `/` first; at most so many levels down.
pub fn walk(tree: &Tree, levels: usize) -> Vec<String> {
    let mut all = vec!["/".to_string()];
    let mut level = vec![String::new()];
    for _ in 0..levels {
        let mut next = Vec::new();
        for path in level {
            next.extend(tree.children(&path).into_iter().map(|c| format!("{path}/{c}")));
        }
        all.extend(next.iter().cloned());
        level = next;
    }
    all
}

/// The id of the container that a cgroup's name stands for: `<id>`, or `cri-containerd-<id>.scope` with systemd.
pub fn container_id(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or("");
    let name = name.strip_suffix(".scope").unwrap_or(name);
    name.rsplit_once('-').map_or(name, |(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn reads_v1() {
        let dir = tempfile::tempdir().unwrap();
        let trees = [&["cpu", "cpuacct"][..], &["memory"], &["pids"]];
        let tree = Tree::V1(
            trees
                .iter()
                .map(|c| (c.iter().map(|s| s.to_string()).collect::<BTreeSet<_>>(), dir.path().join(c[0])))
                .collect(),
        );
        let put = |file: &str, text: &str| {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("cpu/k/p/cpuacct.usage", "1500\n");
        put("cpu/k/p/cpuacct.stat", "user 3\nsystem 4\n");
        put("cpu/k/p/cpu.cfs_quota_us", "-1");
        put("cpu/k/p/cgroup.procs", "7\n9\n");
        put("memory/k/p/memory.usage_in_bytes", "1000");
        put("memory/k/p/memory.limit_in_bytes", "9223372036854771712");
        put("memory/k/p/memory.stat", "rss 1\ntotal_rss 300\ntotal_inactive_file 400\ntotal_pgfault 5\n");
        put("pids/k/p/pids.max", "max");
        let u = read(&tree, "/k/p");
        assert_eq!((u.cpu.total, u.cpu.user, u.quota), (1500, 30_000_000, None));
        assert_eq!(
            (u.memory.working_set, u.memory.rss, u.memory.limit, u.memory.faults),
            (600, 300, None, 5)
        );
        assert_eq!((u.processes.as_slice(), u.threads_max), (&[7, 9][..], None));
        assert_eq!(walk(&tree, 5), ["/", "/k", "/k/p"]);
    }

    #[test]
    fn reads_v2() {
        let dir = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        put("cpu.stat", "usage_usec 5\nuser_usec 2\n");
        put("memory.stat", "anon 10\nfile 5\ninactive_file 3\n");
        put("memory.max", "max");
        put("cpu.max", "max 100000");
        let u = read(&Tree::V2(dir.path().into()), "/");
        assert_eq!((u.cpu.total, u.memory.working_set, u.memory.limit, u.quota), (5000, 12, None, None));
    }

    #[test]
    fn ids_in_names() {
        assert_eq!(container_id("/kubepods/podx/abc"), "abc");
        assert_eq!(container_id("/kubepods.slice/x.slice/cri-containerd-abc.scope"), "abc");
    }
}
