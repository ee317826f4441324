//! What the machine is: processors, memory, kernel, names. Read once from `/proc`, `/sys` and `/etc`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: i64,
    /// Huge pages by size (`2Mi`, `1Gi`), in bytes set aside.
    pub huge_pages: BTreeMap<String, i64>,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The firmware's id.
    pub system_uuid: String,
    /// New at each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// `Debian GNU/Linux 12 (bookworm)`.
    pub os_image: String,
    /// `amd64`, `arm64`, …
    pub arch: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_string()
}

/// Go's name of this machine's architecture.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        a => a,
    }
}

impl Machine {
    /// This machine.
    pub fn read() -> Machine {
        let kernel = read("/proc/sys/kernel/osrelease");
        let boot_id = read("/proc/sys/kernel/random/boot_id");
        let first = |list: &[&str]| list.iter().map(|p| read(p)).find(|s| !s.is_empty());
        let machine_id = first(&["/etc/machine-id", "/var/lib/dbus/machine-id"])
            .unwrap_or_else(|| boot_id.replace('-', ""));
        let system_uuid = first(&["/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid"])
            .unwrap_or_else(|| machine_id.clone());
        Machine {
            cpus: cpus(&read("/proc/cpuinfo")),
            memory: memory(&read("/proc/meminfo")),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
            machine_id,
            system_uuid,
            boot_id,
            kernel,
            os_image: os_image(&read("/etc/os-release")),
            arch: arch().into(),
        }
    }
}

fn cpus(cpuinfo: &str) -> u64 {
    let n = cpuinfo.lines().filter(|l| l.starts_with("processor")).count() as u64;
    if n > 0 { n } else { std::thread::available_parallelism().map_or(1, |n| n.get() as u64) }
}

fn memory(meminfo: &str) -> i64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<i64>().ok()).unwrap_or(0) * 1024
}

fn huge_pages(dir: &Path) -> BTreeMap<String, i64> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name
            .strip_prefix("hugepages-")
            .and_then(|s| s.strip_suffix("kB"))
            .and_then(|s| s.parse::<i64>().ok());
        let Some(kib) = size else { continue };
        let text = match kib {
            k if k % (1 << 20) == 0 => format!("{}Gi", k >> 20),
            k if k % (1 << 10) == 0 => format!("{}Mi", k >> 10),
            k => format!("{k}Ki"),
        };
        let count = fs::read_to_string(entry.path().join("nr_hugepages")).unwrap_or_default();
        out.insert(text, count.trim().parse::<i64>().unwrap_or(0) * kib * 1024);
    }
    out
}

fn os_image(os_release: &str) -> String {
    let line = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".into(), |l| l.trim_matches('"').to_string())
}

/// Size of the file system that a folder is on, in bytes.
pub fn filesystem_size(path: &Path) -> i64 {
    let at = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match nix::sys::statvfs::statvfs(at) {
        Ok(s) => i64::try_from(s.blocks()).unwrap_or(0) * i64::try_from(s.fragment_size()).unwrap_or(0),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_texts() {
        assert_eq!(memory("MemTotal:       24643812 kB\nMemFree: 1 kB"), 24_643_812 * 1024);
        assert_eq!(cpus("processor\t: 0\nx\nprocessor\t: 1\n"), 2);
        assert_eq!(
            os_image("A=1\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        let dir = tempfile::tempdir().unwrap();
        for (name, n) in [("hugepages-2048kB", "3"), ("hugepages-1048576kB", "0")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("nr_hugepages"), n).unwrap();
        }
        assert_eq!(huge_pages(dir.path()), [("1Gi".to_string(), 0), ("2Mi".to_string(), 6 << 20)].into());
        let m = Machine::read();
        assert!(m.cpus > 0 && m.memory > 0 && !m.boot_id.is_empty() && !m.machine_id.is_empty());
    }
}
