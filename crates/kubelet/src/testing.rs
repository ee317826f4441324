//! What several tests need.

use std::path::Path;

use pilothouse_component_base::flags::{Flags, table};

use crate::config::Config;

/// A configuration whose folders all lie below `root`.
pub fn config(root: &Path) -> Config {
    let flags =
        Flags::parse(&table(crate::FLAGS), ["--hostname-override=node01", "--cluster-domain=cluster.local"])
            .unwrap_or_else(|e| panic!("{e}"));
    let mut c = Config::from_flags(&flags).unwrap_or_else(|e| panic!("{e}"));
    c.root_dir = root.join("kubelet");
    c.pod_logs = root.join("log/pods");
    c.container_links = root.join("log/containers");
    c.cgroups_per_qos = false;
    c.node_ip = Some(std::net::IpAddr::from([20, 0, 0, 103]));
    c
}
