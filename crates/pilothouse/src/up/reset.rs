//! `pilothouse reset`: takes away all that `up` left on this machine. What it removes is found by marks that only our
//! cluster makes, so that another container runtime's pods, rules and logs stay; and it goes on where something is
//! already gone, so that it can be run again after an interruption.

mod cni;
mod mounts;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use pilothouse_component_base::flags::{self, Flags};
use pilothouse_component_base::logs;
use pilothouse_kubelet::metrics::Metrics;
use pilothouse_kubelet::runtime::Cri;
use pilothouse_kubelet::runtime::grpc::GrpcCri;

use super::layout::Layout;
use super::{containerd, network};
use crate::components;

const FLAGS: &str = include_str!("reset-flags.tsv");
/// How long stopping or removing one sandbox may take.
const CALL: Duration = Duration::from_secs(60);
const POD_LOGS: &str = "/var/log/pods";
const LOG_LINKS: &str = "/var/log/containers";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Removes what `up` made. Fails where `up` still runs on the data directory.
pub fn main(args: &[String]) -> anyhow::Result<()> {
    let table = flags::table(FLAGS);
    let flags = Flags::parse(&table, args.iter().cloned())?;
    if flags.bool("help") {
        print!("{}", Flags::help("pilothouse reset", &table));
        return Ok(());
    }
    logs::init_with("pilothouse", flags.int("v"), None)?;
    let data_dir = PathBuf::from(flags.string("data-dir"));
    let data_dir = match fs::canonicalize(&data_dir) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            println!("{} does not exist: nothing to remove", data_dir.display());
            return Ok(());
        }
        Err(e) => return Err(e).with_context(|| data_dir.display().to_string()),
    };
    if !looks_like_ours(&data_dir) {
        bail!("{} is not a data directory of pilothouse", data_dir.display());
    }
    let endpoint = flags.opt("container-runtime-endpoint");
    components::runtime()?.block_on(reset(&data_dir, endpoint, flags.bool("keep-data")))
}

/// A wrong `--data-dir` must not cost anybody a folder.
fn looks_like_ours(dir: &Path) -> bool {
    let is_empty = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
    is_empty || ["pki", "store", "kubelet", "containerd"].iter().any(|d| dir.join(d).is_dir())
}

async fn reset(data_dir: &Path, endpoint: Option<String>, keep_data: bool) -> anyhow::Result<()> {
    let layout = Layout::at(data_dir);
    let _lock = layout.lock().context("stop `pilothouse up` first")?;

    let mut pods = pod_directories(&layout);
    pods.extend(remove_pods(&layout, endpoint).await);
    let namespaces = cni::leftover_namespaces();
    containerd::stop(&layout);
    mounts::unmount_below(data_dir)?;
    remove_cgroups(&pods);
    remove_logs(&pods);

    if let Err(e) = pilothouse_proxy::nft::remove().await {
        tracing::warn!("{e:#}");
    }
    if let Err(e) = pilothouse_proxy::ipvs::remove(&[]).await {
        tracing::warn!("{e:#}");
    }
    let cluster_cidr =
        setting(&layout, "kube-proxy.yaml", "clusterCIDR").unwrap_or_else(|| "10.244.0.0/16".into());
    let service_cidr = match setting(&layout, "kubelet.yaml", "clusterDNS") {
        Some(dns) => network::loopback_route_to(&dns).await,
        None => None,
    };
    network::unfence(service_cidr.as_deref().unwrap_or("10.0.0.0/24"), &cluster_cidr).await;
    cni::remove(&namespaces).await;

    if keep_data {
        println!("removed the cluster's pods and networks; kept {}", data_dir.display());
    } else {
        fs::remove_dir_all(data_dir).with_context(|| data_dir.display().to_string())?;
        println!("removed {} and the cluster's pods and networks", data_dir.display());
    }
    Ok(())
}

/// Uids of the pods that the kubelet kept folders for.
fn pod_directories(layout: &Layout) -> BTreeSet<String> {
    fs::read_dir(layout.path("kubelet/pods"))
        .map(|dir| dir.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default()
}

/// Stops and removes every sandbox of the runtime; the uids of their pods. A private containerd that does not run is
/// started for it: only it can take its pods' networks and root file systems down in order.
async fn remove_pods(layout: &Layout, endpoint: Option<String>) -> BTreeSet<String> {
    let endpoint = match endpoint {
        Some(e) => e,
        None if !layout.path("containerd/config.toml").exists() => return BTreeSet::new(),
        None => match containerd::start(layout).await {
            Ok(e) => e,
            Err(e) => {
                tracing::warn!("{e:#}");
                return BTreeSet::new();
            }
        },
    };
    let socket = endpoint.strip_prefix("unix://").unwrap_or(&endpoint);
    let runtime = GrpcCri::new(socket, socket, CALL, Metrics::new(&Default::default(), ""));
    let sandboxes = match runtime.list_sandboxes(None).await {
        Ok(s) => s,
        Err(e) => {
            tracing::warn!("{e}");
            return BTreeSet::new();
        }
    };
    let removals = sandboxes.iter().map(|sandbox| async {
        let result = match runtime.stop_sandbox(&sandbox.id).await {
            Ok(()) => runtime.remove_sandbox(&sandbox.id).await,
            e => e,
        };
        if let Err(e) = result {
            tracing::warn!(sandbox = sandbox.id, "{e}");
        }
    });
    futures::future::join_all(removals).await;
    sandboxes.into_iter().filter_map(|s| s.metadata).map(|m| m.uid).collect()
}

/// Removes the folders and links of these pods' logs, and what is empty then.
fn remove_logs(pods: &BTreeSet<String>) {
    let entries = |dir: &str| fs::read_dir(dir).map(|d| d.flatten().collect::<Vec<_>>()).unwrap_or_default();
    for entry in entries(POD_LOGS) {
        let name = entry.file_name();
        if name.to_string_lossy().rsplit('_').next().is_some_and(|uid| pods.contains(uid)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    for entry in entries(LOG_LINKS) {
        // A link to a log: `/var/log/pods/<namespace>_<name>_<uid>/…`.
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let Ok(rest) = target.strip_prefix(POD_LOGS) else { continue };
        let pod = rest.components().next().map(|c| c.as_os_str().to_string_lossy().into_owned());
        if pod.as_deref().and_then(|p| p.rsplit('_').next()).is_some_and(|uid| pods.contains(uid)) {
            let _ = fs::remove_file(entry.path());
        }
    }
    for dir in [POD_LOGS, LOG_LINKS] {
        // Only where nobody else's entries are left.
        let _ = fs::remove_dir(dir);
    }
}

/// Removes the pods' cgroups in every hierarchy, and `kubepods` above them where nobody else's pods are in it: a
/// cgroup with processes or children cannot be removed.
fn remove_cgroups(pods: &BTreeSet<String>) {
    let mut hierarchies = vec![PathBuf::from(CGROUPS)];
    hierarchies.extend(fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|e| e.path()));
    for hierarchy in hierarchies {
        for root in ["kubepods", "kubepods.slice"] {
            let root = hierarchy.join(root);
            if root.is_dir() {
                for pod in pod_cgroups(&root, pods) {
                    remove_tree(&pod);
                }
                remove_empty(&root);
            }
        }
    }
}

/// Folders of these pods: `pod<uid>`, or `kubepods-…-pod<uid with underscores>.slice`.
fn pod_cgroups(root: &Path, pods: &BTreeSet<String>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in directories(root) {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().replace('_', "-");
        let name = name.trim_end_matches(".slice");
        if name.rsplit_once("pod").is_some_and(|(_, uid)| pods.contains(uid)) {
            found.push(dir);
        } else if name.ends_with("burstable") || name.ends_with("besteffort") {
            found.extend(pod_cgroups(&dir, pods));
        }
    }
    found
}

fn remove_tree(dir: &Path) {
    for child in directories(dir) {
        remove_tree(&child);
    }
    let _ = fs::remove_dir(dir);
}

/// Removes the folders of the qualities of service, then their root, where they have no pods.
fn remove_empty(root: &Path) {
    for child in directories(root) {
        let _ = fs::remove_dir(child);
    }
    let _ = fs::remove_dir(root);
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// A setting of a configuration file that `up` wrote; the first one of a list.
fn setting(layout: &Layout, file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(layout.path(file)).ok()?;
    let value: serde_json::Value = serde_yaml_ng::from_str(&text).ok()?;
    let value = value.get(name)?;
    value.get(0).unwrap_or(value).as_str().map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_folders_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        assert!(looks_like_ours(dir.path()));
        fs::write(dir.path().join("letters"), "").unwrap();
        assert!(!looks_like_ours(dir.path()));
        fs::create_dir(dir.path().join("store")).unwrap();
        assert!(looks_like_ours(dir.path()));
    }

    #[test]
    fn cgroups_of_our_pods_only() {
        let dir = tempfile::tempdir().unwrap();
        let uids: BTreeSet<String> = ["1a-2b".to_string()].into();
        for d in [
            "pod1a-2b/c1",
            "podother",
            "burstable/pod1a-2b",
            "kubepods-besteffort.slice/kubepods-besteffort-pod1a_2b.slice",
        ] {
            fs::create_dir_all(dir.path().join(d)).unwrap();
        }
        let mut found: Vec<String> = pod_cgroups(dir.path(), &uids)
            .iter()
            .map(|p| p.strip_prefix(dir.path()).unwrap().display().to_string())
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                "burstable/pod1a-2b",
                "kubepods-besteffort.slice/kubepods-besteffort-pod1a_2b.slice",
                "pod1a-2b"
            ]
        );
    }

    #[test]
    fn settings_are_read_from_what_up_wrote() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("k.yaml"), "clusterDNS:\n- 10.0.0.10\nclusterCIDR: 10.244.0.0/16\n")
            .unwrap();
        let layout = Layout::at(dir.path());
        assert_eq!(setting(&layout, "k.yaml", "clusterDNS").as_deref(), Some("10.0.0.10"));
        assert_eq!(setting(&layout, "k.yaml", "clusterCIDR").as_deref(), Some("10.244.0.0/16"));
        assert_eq!(setting(&layout, "k.yaml", "other"), None);
        assert_eq!(setting(&layout, "missing", "other"), None);
    }
}
