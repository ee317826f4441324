//! What the kernel says of the machine and of networks.

use std::fs;
use std::path::Path;

/// Counters of a network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// `eth0`
    pub name: String,
    /// Received: bytes, packets, errors, dropped.
    pub rx: [u64; 4],
    /// Sent: bytes, packets, errors, dropped.
    pub tx: [u64; 4],
}

/// The interfaces in the text of `/proc/<pid>/net/dev`, but for loopback and the near ends of containers' links.
pub fn interfaces(text: &str) -> Vec<Interface> {
    let four = |n: &[u64]| [n[0], n[1], n[2], n[3]];
    text.lines()
        .filter_map(|l| {
            let (name, numbers) = l.split_once(':')?;
            let name = name.trim();
            let n: Vec<u64> = numbers.split_whitespace().filter_map(|v| v.parse().ok()).collect();
            let ignored = ["lo", "veth", "docker"].iter().any(|p| name.starts_with(p));
            (!ignored && n.len() >= 12).then(|| Interface {
                name: name.into(),
                rx: four(&n[0..4]),
                tx: four(&n[8..12]),
            })
        })
        .collect()
}

/// The interfaces that a process sees.
pub fn interfaces_of(pid: i32) -> Vec<Interface> {
    interfaces(&fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

/// The interfaces of the node itself.
pub fn own_interfaces() -> Vec<Interface> {
    interfaces(&fs::read_to_string("/proc/self/net/dev").unwrap_or_default())
}

/// What the machine has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Logical processors.
    pub cores: usize,
    /// Cores.
    pub physical_cores: usize,
    /// Sockets.
    pub sockets: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of memory that can still be had.
    pub memory_available: u64,
    /// `/etc/machine-id`
    pub machine_id: String,
    /// The board's id.
    pub system_uuid: String,
    /// The id of this boot.
    pub boot_id: String,
    /// `6.1.0-18-amd64`
    pub kernel: String,
    /// `Debian GNU/Linux 12 (bookworm)`
    pub os: String,
    /// When it was started: seconds since 1970.
    pub boot_time: i64,
}

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

/// Looks at the machine.
pub fn machine() -> Machine {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let (cores, physical_cores, sockets) = processors(&cpus);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let l = memory.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        l.and_then(|v| v.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = os
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"')
        .to_string();
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse().ok());
    Machine {
        cores,
        physical_cores,
        sockets,
        memory: kib("MemTotal"),
        memory_available: kib("MemAvailable"),
        machine_id: line("/etc/machine-id"),
        system_uuid: line("/sys/class/dmi/id/product_uuid"),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        kernel: line("/proc/sys/kernel/osrelease"),
        os: pretty,
        boot_time: boot.unwrap_or(0),
    }
}

/// Logical processors, cores and sockets, by the text of `/proc/cpuinfo`.
fn processors(cpuinfo: &str) -> (usize, usize, usize) {
    use std::collections::BTreeSet;
    let (mut logical, mut cores, mut sockets) = (0, BTreeSet::new(), BTreeSet::new());
    for block in cpuinfo.split("\n\n") {
        let field = |name: &str| {
            block.lines().find_map(|l| {
                let (k, v) = l.split_once(':')?;
                (k.trim() == name).then(|| v.trim().to_string())
            })
        };
        if field("processor").is_none() {
            continue;
        }
        logical += 1;
        let socket = field("physical id").unwrap_or_else(|| "0".into());
        let core = field("core id").unwrap_or_else(|| format!("p{logical}"));
        cores.insert((socket.clone(), core));
        sockets.insert(socket);
    }
    if logical == 0 {
        let n = std::thread::available_parallelism().map_or(1, usize::from);
        return (n, n, 1);
    }
    (logical, cores.len(), sockets.len())
}

/// Most processes, and how many there are.
pub fn processes() -> (u64, u64) {
    let max = line("/proc/sys/kernel/pid_max").parse().unwrap_or(32_768);
    let threads_max: u64 = line("/proc/sys/kernel/threads-max").parse().unwrap_or(u64::MAX);
    // `0.20 0.18 0.12 1/80 11206`: the fourth is runnable and all threads.
    let load = line("/proc/loadavg");
    let all = load.split(' ').nth(3).and_then(|f| f.split_once('/')).and_then(|(_, n)| n.parse().ok());
    (threads_max.min(max), all.unwrap_or(0))
}

/// Open files and sockets of processes.
pub fn descriptors(pids: &[i32]) -> (u64, u64) {
    let (mut files, mut sockets) = (0, 0);
    for pid in pids {
        for e in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            files += 1;
            if fs::read_link(e.path()).is_ok_and(|l| l.to_string_lossy().starts_with("socket:")) {
                sockets += 1;
            }
        }
    }
    (files, sockets)
}

/// The soft limit of open files of a process; -1 for none.
pub fn open_files_limit(pid: i32) -> Option<i64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let l = limits.lines().find_map(|l| l.strip_prefix("Max open files"))?;
    let soft = l.split_whitespace().next()?;
    if soft == "unlimited" { Some(-1) } else { soft.parse().ok() }
}

/// The device below a path, by the text of `/proc/self/mountinfo`: name and number.
pub fn device_of(mountinfo: &str, path: &Path) -> Option<(String, String)> {
    let mounts = mountinfo.lines().filter_map(|l| {
        let (left, right) = l.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let number = left.next()?;
        let point = left.nth(1)?;
        let source = right.split(' ').nth(1)?;
        path.starts_with(point).then(|| (point.len(), source.to_string(), number.to_string()))
    });
    mounts.max_by_key(|(n, _, _)| *n).map(|(_, source, number)| (source, number))
}

/// The counters of a disk, by its number, in the order of `/proc/diskstats`.
pub fn disk_counters(number: &str) -> Vec<u64> {
    let (major, minor) = number.split_once(':').unwrap_or(("", ""));
    let text = fs::read_to_string("/proc/diskstats").unwrap_or_default();
    let of = |l: &&str| {
        let mut f = l.split_whitespace();
        f.next() == Some(major) && f.next() == Some(minor)
    };
    let found = text.lines().find(of).unwrap_or("");
    found.split_whitespace().skip(3).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_but_for_loopback() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\n veth1: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
        let i = interfaces(text);
        assert_eq!(i.len(), 1);
        assert_eq!((i[0].name.as_str(), i[0].rx, i[0].tx), ("eth0", [10, 2, 3, 4], [20, 5, 6, 7]));
    }

    #[test]
    fn processors_and_devices() {
        let cpu = |n: u32, core: u32| format!("processor\t: {n}\nphysical id\t: 0\ncore id\t: {core}\n");
        let text = [cpu(0, 0), cpu(1, 0), cpu(2, 1)].join("\n");
        assert_eq!(processors(&text), (3, 2, 1));
        let info = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n21 20 0:5 / /proc rw - proc proc rw\n22 20 8:2 / /var/lib rw - ext4 /dev/sda2 rw";
        assert_eq!(device_of(info, Path::new("/var/lib/kubelet")), Some(("/dev/sda2".into(), "8:2".into())));
        assert_eq!(device_of(info, Path::new("/var/x")), Some(("/dev/sda1".into(), "8:1".into())));
    }
}
