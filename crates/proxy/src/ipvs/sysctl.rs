//! Kernel settings that service addresses on a device need.

use std::path::Path;

/// Where settings are.
const ROOT: &str = "/proc/sys/net/ipv4";

/// Settings and the values they get, below `net/ipv4`. `kernel` is its version, major and minor.
pub fn wanted(strict_arp: bool, kernel: (u32, u32)) -> Vec<(&'static str, &'static str)> {
    // Masquerading works by connection tracking; it must know connections that IPVS translates.
    let mut wanted = vec![("vs/conntrack", "1")];
    // A client that takes a port again soon gets a new real server, but before 5.9 it also loses a second. Earlier than
    // 4.1 there is no such setting.
    if ((4, 1)..(5, 9)).contains(&kernel) {
        wanted.push(("vs/conn_reuse_mode", "0"));
    }
    // Connections and clients' affinity end with their real server.
    wanted.extend([
        ("vs/expire_nodest_conn", "1"),
        ("vs/expire_quiescent_template", "1"),
        ("ip_forward", "1"),
    ]);
    if strict_arp {
        // Nobody is told that the addresses of `kube-ipvs0` are here.
        wanted.extend([("conf/all/arp_ignore", "1"), ("conf/all/arp_announce", "2")]);
    }
    wanted
}

/// The running kernel's version, from its `uname -r`.
pub fn kernel() -> (u32, u32) {
    version(&std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default())
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Sets what is not as wanted already. The error names the setting.
pub fn set(wanted: &[(&str, &str)]) -> Result<(), String> {
    for (name, value) in wanted {
        let path = Path::new(ROOT).join(name);
        let is = std::fs::read_to_string(&path).unwrap_or_default();
        if is.trim() != *value {
            std::fs::write(&path, value)
                .map_err(|e| format!("can't set sysctl net/ipv4/{name} to {value}: {e}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_by_kernel_and_arp() {
        let names = |arp, kernel| wanted(arp, kernel).iter().map(|(n, _)| *n).collect::<Vec<_>>();
        assert!(names(false, (4, 19)).contains(&"vs/conn_reuse_mode"));
        assert!(!names(false, (5, 9)).contains(&"vs/conn_reuse_mode"));
        assert!(!names(false, (6, 1)).contains(&"conf/all/arp_ignore"));
        assert!(names(true, (6, 1)).contains(&"conf/all/arp_announce"));
        assert_eq!(version("6.1.0-56-cloud-amd64\n"), (6, 1));
        assert_eq!(version(""), (0, 0));
        assert!(set(&[("no/such", "1")]).unwrap_err().contains("net/ipv4/no/such"));
    }
}
