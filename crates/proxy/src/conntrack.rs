//! Limits and timeouts of the kernel's connection tracking, which translated connections need.

use std::path::Path;
use std::time::Duration;

/// KubeProxyConntrackConfiguration; zero leaves the kernel's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Connections to keep for each processor.
    pub max_per_core: u64,
    /// … and at least so many.
    pub min: u64,
    /// Timeout of idle TCP connections.
    pub tcp_established: Duration,
    /// Timeout of those that one end has closed.
    pub tcp_close_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established: Duration::from_secs(24 * 3600),
            tcp_close_wait: Duration::from_secs(3600),
        }
    }
}

/// Settings below `net/netfilter` and their values. Nothing counts the connections where nothing is said of a processor.
pub fn wanted(options: &Options, processors: u64) -> Vec<(&'static str, u64)> {
    let max = match options.max_per_core {
        0 => 0,
        each => each.saturating_mul(processors).max(options.min),
    };
    let settings = [
        ("nf_conntrack_max", max),
        ("nf_conntrack_tcp_timeout_established", options.tcp_established.as_secs()),
        ("nf_conntrack_tcp_timeout_close_wait", options.tcp_close_wait.as_secs()),
    ];
    settings.into_iter().filter(|(_, value)| *value > 0).collect()
}

/// Sets those that differ in `root` (`/proc/sys/net/netfilter`). What is not there, or is another's to set (in a
/// container the number of connections is the machine's), is said and left.
pub fn set(root: &Path, settings: &[(&str, u64)]) {
    for (name, value) in settings {
        let path = root.join(name);
        let is = std::fs::read_to_string(&path).unwrap_or_default();
        if is.trim() == value.to_string() {
            continue;
        }
        match std::fs::write(&path, value.to_string()) {
            Ok(()) => tracing::info!("Set sysctl net/netfilter/{name} to {value}"),
            Err(e) => tracing::warn!("can't set sysctl net/netfilter/{name} to {value}: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_the_processors_need() {
        let options = Options::default();
        assert_eq!(wanted(&options, 2)[0], ("nf_conntrack_max", 131_072));
        assert_eq!(wanted(&options, 8)[0], ("nf_conntrack_max", 262_144));
        let absurd = Options { max_per_core: u64::MAX, ..Options::default() };
        assert_eq!(wanted(&absurd, 8)[0], ("nf_conntrack_max", u64::MAX));
        let zero = Options { max_per_core: 0, tcp_established: Duration::ZERO, ..options };
        assert_eq!(wanted(&zero, 8), [("nf_conntrack_tcp_timeout_close_wait", 3600)]);
    }

    #[test]
    fn sets_what_differs() {
        let dir = tempfile::tempdir().unwrap();
        let max = dir.path().join("nf_conntrack_max");
        std::fs::write(&max, "100\n").unwrap();
        set(dir.path(), &[("nf_conntrack_max", 200)]);
        assert_eq!(std::fs::read_to_string(&max).unwrap(), "200");
        // What cannot be set keeps nothing from the rest.
        std::fs::create_dir(dir.path().join("a")).unwrap();
        set(dir.path(), &[("a", 1), ("nf_conntrack_max", 300)]);
        assert_eq!(std::fs::read_to_string(&max).unwrap(), "300");
    }
}
