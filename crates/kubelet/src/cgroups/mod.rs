//! The cgroups of pods: `kubepods`, one below it for each quality of service but the best, one for each pod.
//!
//! [`Name`] is a cgroup's name as a list of parts, which the two drivers write differently; [`fs`] makes the folders
//! on cgroup v1 and v2; with the systemd driver, systemd makes them ([`systemd`]).

pub mod fs;
pub mod systemd;

use std::io;
use std::time::Instant;

use crate::config::{CgroupDriver, Config};
use crate::metrics::Metrics;
use crate::resources::{CgroupLimits, MIN_SHARES, Qos};

/// A cgroup's name: `["kubepods", "burstable", "pod…"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(pub Vec<String>);

impl Name {
    /// The cgroup above all pods.
    pub fn root() -> Name {
        Name(vec!["kubepods".into()])
    }

    /// The cgroup above the pods of a quality of service.
    pub fn of_qos(qos: Qos) -> Name {
        let mut parts = Name::root().0;
        match qos {
            Qos::Guaranteed => {}
            Qos::Burstable => parts.push("burstable".into()),
            Qos::BestEffort => parts.push("besteffort".into()),
        }
        Name(parts)
    }

    /// A pod's cgroup.
    pub fn of_pod(qos: Qos, uid: &str) -> Name {
        let mut name = Name::of_qos(qos);
        name.0.push(format!("pod{uid}"));
        name
    }

    /// `/kubepods/burstable/pod…`.
    pub fn cgroupfs(&self) -> String {
        format!("/{}", self.0.join("/"))
    }

    /// The slice's name: `kubepods-burstable-pod….slice`. Dashes within a part become underscores.
    pub fn slice(&self) -> String {
        let parts: Vec<String> = self.0.iter().map(|p| p.replace('-', "_")).collect();
        format!("{}.slice", parts.join("-"))
    }

    /// Where systemd puts that slice: `/kubepods.slice/kubepods-burstable.slice/…`.
    pub fn slice_path(&self) -> String {
        (1..=self.0.len()).map(|n| format!("/{}", Name(self.0[..n].to_vec()).slice())).collect()
    }
}

/// Makes, changes and removes cgroups.
pub struct Cgroups {
    driver: CgroupDriver,
    root: String,
    tree: fs::Tree,
    metrics: Metrics,
}

impl Cgroups {
    /// Finds out what this machine has. An error where it has no cgroups that hold CPU and memory.
    pub fn detect(config: &Config, metrics: Metrics) -> io::Result<Cgroups> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let tree = fs::Tree::from_mountinfo(&mounts)
            .ok_or_else(|| io::Error::other("no cgroup controllers for cpu and memory are mounted"))?;
        let root = config.cgroup_root.trim_end_matches('/').to_string();
        Ok(Cgroups { driver: config.cgroup_driver, root, tree, metrics })
    }

    fn path(&self, name: &Name) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("{}{}", self.root, name.cgroupfs()),
            CgroupDriver::Systemd => format!("{}{}", self.root, name.slice_path()),
        }
    }

    /// What the runtime is told as the parent of a pod's containers.
    pub fn parent(&self, name: &Name) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("{}{}", self.root, name.cgroupfs()),
            CgroupDriver::Systemd => name.slice(),
        }
    }

    /// Whether a cgroup is there.
    pub fn exists(&self, name: &Name) -> bool {
        self.tree.exists(&self.path(name))
    }

    /// Makes a cgroup, or brings an existing one to these limits.
    pub async fn ensure(&self, name: &Name, limits: &CgroupLimits) -> io::Result<()> {
        let started = Instant::now();
        let operation = if self.exists(name) { "update" } else { "create" };
        if self.driver == CgroupDriver::Systemd && operation == "create" {
            systemd::start(&name.slice()).await?;
        }
        // Also with systemd the limits are written straight into the files: it has no property for some of them.
        let result = self.tree.ensure(&self.path(name), limits);
        self.metrics.cgroup(operation, started.elapsed());
        result
    }

    /// Removes a cgroup with all below it; kills what is left in it. Nothing to do where it is gone.
    pub async fn remove(&self, name: &Name) -> io::Result<()> {
        let started = Instant::now();
        let path = self.path(name);
        self.tree.kill_all(&path)?;
        if self.driver == CgroupDriver::Systemd && self.exists(name) {
            systemd::stop(&name.slice()).await?;
        }
        let mut result = self.tree.remove(&path);
        // A killed process needs a moment to be gone.
        for _ in 0..50 {
            match &result {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    result = self.tree.remove(&path);
                }
                _ => break,
            }
        }
        self.metrics.cgroup("destroy", started.elapsed());
        result
    }

    /// Makes the cgroups above the pods. `memory` is what pods may use together, where that is enforced.
    pub async fn setup(&self, cpus: u64, memory: Option<i64>) -> io::Result<()> {
        let shares = Some(cpus * crate::resources::SHARES_PER_CPU);
        self.ensure(&Name::root(), &CgroupLimits { shares, memory, ..Default::default() }).await?;
        for qos in [Qos::Burstable, Qos::BestEffort] {
            let limits = CgroupLimits { shares: Some(MIN_SHARES), ..Default::default() };
            self.ensure(&Name::of_qos(qos), &limits).await?;
        }
        Ok(())
    }

    /// Gives the burstable pods together the CPU they ask for, in thousandths of a processor.
    pub async fn set_burstable_cpu(&self, milli: i64) -> io::Result<()> {
        let limits = CgroupLimits { shares: Some(crate::resources::shares(milli)), ..Default::default() };
        self.ensure(&Name::of_qos(Qos::Burstable), &limits).await
    }

    /// The uids of the pods that have cgroups, with their quality of service.
    pub fn pods(&self) -> Vec<(String, Qos)> {
        let mut out = Vec::new();
        for qos in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
            let name = Name::of_qos(qos);
            for child in self.tree.children(&self.path(&name)) {
                let uid = match self.driver {
                    CgroupDriver::Cgroupfs => child.strip_prefix("pod").map(String::from),
                    CgroupDriver::Systemd => {
                        let prefix = format!("{}-pod", name.slice().trim_end_matches(".slice"));
                        child.strip_prefix(&prefix).map(|u| u.trim_end_matches(".slice").replace('_', "-"))
                    }
                };
                out.extend(uid.map(|u| (u, qos)));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_drivers() {
        let n = Name::of_pod(Qos::Burstable, "12-34");
        assert_eq!(n.cgroupfs(), "/kubepods/burstable/pod12-34");
        assert_eq!(n.slice(), "kubepods-burstable-pod12_34.slice");
        assert_eq!(
            n.slice_path(),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_34.slice"
        );
        assert_eq!(Name::of_pod(Qos::Guaranteed, "u").cgroupfs(), "/kubepods/podu");
    }
}
