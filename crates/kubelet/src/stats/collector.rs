//! Puts together what is used, pod by pod.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use pilothouse_component_base::signals::Stop;
use tokio::sync::watch;

use super::cgroup::{self, Usage};
use super::filesystem::{self, Counted, Space, Used};
use super::machine::{self, Interface};
use crate::cgroups::fs::Tree;
use crate::kubelet::Kubelet;
use crate::pod::PodExt;
use crate::resources;
use crate::runtime::cri;
use crate::runtime::labels::{CONTAINER_NAME, POD_UID};
use crate::runtime::status::State;

/// How often all is looked at.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Rates are taken over at least this long.
const SHORTEST: i64 = 500_000_000;
/// Containers' cgroups lie no deeper than this: `/kubepods.slice/….slice/….slice/….scope`, and a root above them.
const LEVELS: usize = 6;

/// A cgroup with what it uses.
#[derive(Debug, Clone, Default)]
pub struct Group {
    /// Its path.
    pub path: String,
    /// What it uses.
    pub usage: Usage,
    /// Nanoseconds of CPU a second, where it was seen before.
    pub rate: Option<u64>,
    /// When that was: nanoseconds since 1970.
    pub at: i64,
}

/// A container.
#[derive(Debug, Clone, Default)]
pub struct ContainerUsage {
    /// Its name in the pod.
    pub name: String,
    /// The runtime's id.
    pub id: String,
    /// Image.
    pub image: String,
    /// When it was made: nanoseconds since 1970.
    pub created: i64,
    /// CPU and memory.
    pub group: Group,
    /// What it wrote over its image.
    pub rootfs: Used,
    /// Its logs.
    pub logs: Used,
}

/// A volume that lies on the node.
#[derive(Debug, Clone, Default)]
pub struct VolumeUsage {
    /// Name in the pod.
    pub name: String,
    /// How much lies in it.
    pub used: Used,
    /// Its file system.
    pub space: Space,
    /// Whether it counts as the pod's ephemeral storage.
    pub ephemeral: bool,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct PodUsage {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its cgroup; the sum of its containers where it has none.
    pub group: Group,
    /// Its sandbox: id, image and cgroup.
    pub sandbox: ContainerUsage,
    /// Its containers that run.
    pub containers: Vec<ContainerUsage>,
    /// Its network; none for one in the node's.
    pub network: Vec<Interface>,
    /// Its volumes.
    pub volumes: Vec<VolumeUsage>,
}

impl PodUsage {
    /// What it has on the node's disk, of what goes with it.
    pub fn ephemeral(&self) -> Used {
        let mut total = Used::default();
        for c in &self.containers {
            total += c.rootfs;
            total += c.logs;
        }
        for v in self.volumes.iter().filter(|v| v.ephemeral) {
            total += v.used;
        }
        total
    }

    /// Processes in it.
    pub fn processes(&self) -> usize {
        let of = |c: &ContainerUsage| c.group.usage.processes.len();
        self.containers.iter().map(of).sum::<usize>() + of(&self.sandbox)
    }
}

/// All that is used at one moment.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// When: nanoseconds since 1970.
    pub at: i64,
    /// The whole node.
    pub node: Group,
    /// The cgroup above all pods.
    pub kubepods: Option<Group>,
    /// Every cgroup that is neither a pod's nor a container's.
    pub others: Vec<Group>,
    /// The pods.
    pub pods: Vec<PodUsage>,
    /// The machine.
    pub machine: machine::Machine,
    /// The node's interfaces.
    pub network: Vec<Interface>,
    /// The file system of `/var/lib/kubelet`.
    pub node_fs: Space,
    /// The file system of the images.
    pub image_fs: Space,
    /// What images take of it.
    pub images: u64,
    /// Whether both are the same file system.
    pub one_fs: bool,
    /// Most processes, and how many there are.
    pub processes: (u64, u64),
}

/// See the module.
pub struct Stats {
    kubelet: Arc<Kubelet>,
    tree: Option<Tree>,
    rates: Mutex<HashMap<String, (i64, u64, Option<u64>)>>,
    counted: Counted,
    volume_age: Duration,
    latest: watch::Sender<Arc<Sample>>,
}

/// What the runtime says, by which cgroups are known.
struct Known {
    containers: Vec<cri::Container>,
    sandboxes: Vec<cri::PodSandbox>,
    written: HashMap<String, Used>,
}

impl Stats {
    /// Statistics of a kubelet's node.
    pub fn new(kubelet: Arc<Kubelet>) -> Arc<Stats> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let volume_age =
            kubelet.config.kubelet.duration("volumeStatsAggPeriod").unwrap_or(Duration::from_secs(60));
        Arc::new(Stats {
            tree: Tree::from_mountinfo(&mounts),
            rates: Mutex::default(),
            counted: Counted::default(),
            volume_age,
            latest: watch::Sender::new(Arc::default()),
            kubelet,
        })
    }

    /// Looks now and then until `stop`.
    pub async fn run(self: Arc<Self>, stop: Stop) {
        loop {
            let sample = self.sample().await;
            self.latest.send_replace(sample);
            let me = self.clone();
            let _ = tokio::task::spawn_blocking(move || me.counted.tidy()).await;
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(INTERVAL) => {} }
        }
    }

    /// Samples as they are taken by [`Stats::run`].
    pub fn watch(&self) -> watch::Receiver<Arc<Sample>> {
        self.latest.subscribe()
    }

    /// Looks now.
    pub async fn sample(self: &Arc<Self>) -> Arc<Sample> {
        let cri = &self.kubelet.cri;
        let (containers, sandboxes, written, images) = tokio::join!(
            cri.list_containers(None),
            cri.list_sandboxes(None),
            cri.container_stats(),
            cri.image_fs()
        );
        let written = written.unwrap_or_default().into_iter().filter_map(|s| {
            let layer = s.writable_layer?;
            let used = Used {
                bytes: layer.used_bytes.map_or(0, |v| v.value),
                inodes: layer.inodes_used.map_or(0, |v| v.value),
            };
            Some((s.attributes?.id, used))
        });
        let known = Known {
            containers: containers.unwrap_or_default(),
            sandboxes: sandboxes.unwrap_or_default(),
            written: written.collect(),
        };
        let images = images.unwrap_or_default();
        let me = self.clone();
        let made = tokio::task::spawn_blocking(move || me.put_together(&known, &images)).await;
        Arc::new(made.unwrap_or_default())
    }

    fn put_together(&self, known: &Known, images: &[cri::FilesystemUsage]) -> Sample {
        let at = crate::clock::nanos();
        let config = &self.kubelet.config;
        let image_path = images.iter().find_map(|f| f.fs_id.as_ref()).map(|i| PathBuf::from(&i.mountpoint));
        let node_fs = filesystem::space(&config.root_dir).or_else(|_| filesystem::space(Path::new("/")));
        let node_fs = node_fs.unwrap_or_default();
        let image_fs = image_path.as_deref().and_then(|p| filesystem::space(p).ok()).unwrap_or(node_fs);
        let mut s = Sample {
            at,
            machine: machine::machine(),
            network: machine::own_interfaces(),
            node_fs,
            image_fs,
            images: images.iter().filter_map(|f| f.used_bytes.as_ref()).map(|v| v.value).sum(),
            one_fs: image_path.as_deref().is_none_or(|p| same_device(p, &config.root_dir)),
            processes: machine::processes(),
            ..Sample::default()
        };
        let groups = self.groups(at);
        self.forget_rates(&groups);
        s.node = groups.get("/").cloned().unwrap_or_default();
        if s.node.usage.memory.limit.is_none() {
            s.node.usage.memory.limit = Some(s.machine.memory);
        }
        let by_id: HashMap<&str, &Group> =
            groups.values().map(|g| (cgroup::container_id(&g.path), g)).collect();
        let mut taken: Vec<String> = vec!["/".into()];
        for pod in self.kubelet.registry.list() {
            let Some(usage) = self.pod_usage(&pod, known, &groups, &by_id, node_fs) else { continue };
            taken.push(usage.group.path.clone());
            taken.extend(usage.containers.iter().chain([&usage.sandbox]).map(|c| c.group.path.clone()));
            s.pods.push(usage);
        }
        s.pods.sort_by_key(|p| (p.pod.namespace().to_string(), p.pod.name().to_string()));
        s.kubepods = groups
            .values()
            .find(|g| g.path.ends_with("/kubepods") || g.path.ends_with("/kubepods.slice"))
            .cloned();
        s.others = groups.into_values().filter(|g| !taken.contains(&g.path)).collect();
        s
    }

    /// All cgroups, by path.
    fn groups(&self, at: i64) -> BTreeMap<String, Group> {
        let Some(tree) = &self.tree else { return BTreeMap::new() };
        let paths = cgroup::walk(tree, LEVELS);
        paths.into_iter().map(|path| (path.clone(), self.group(tree, path, at))).collect()
    }

    fn group(&self, tree: &Tree, path: String, at: i64) -> Group {
        let usage = cgroup::read(tree, &path);
        let rate = self.rate(&path, at, usage.cpu.total);
        Group { path, usage, rate, at }
    }

    fn rate(&self, path: &str, at: i64, total: u64) -> Option<u64> {
        let mut rates = self.rates.lock();
        let Some((then, before, last)) = rates.get(path).copied() else {
            rates.insert(path.to_string(), (at, total, None));
            return None;
        };
        let apart = at - then;
        if apart < SHORTEST {
            return last;
        }
        let used = u128::from(total.saturating_sub(before)) * 1_000_000_000;
        let rate = u128::try_from(apart).ok().and_then(|d| u64::try_from(used / d).ok());
        rates.insert(path.to_string(), (at, total, rate));
        rate
    }

    fn forget_rates(&self, groups: &BTreeMap<String, Group>) {
        self.rates.lock().retain(|path, _| groups.contains_key(path));
    }

    /// What a pod uses; `None` where nothing of it runs.
    fn pod_usage(
        &self,
        pod: &Arc<Pod>,
        known: &Known,
        groups: &BTreeMap<String, Group>,
        by_id: &HashMap<&str, &Group>,
        space: Space,
    ) -> Option<PodUsage> {
        let uid = pod.uid();
        let of_pod = |labels: &HashMap<String, String>| labels.get(POD_UID).is_some_and(|u| u == uid);
        let ready = cri::PodSandboxState::SandboxReady as i32;
        let sandbox = known
            .sandboxes
            .iter()
            .filter(|s| s.state == ready && of_pod(&s.labels))
            .max_by_key(|s| s.created_at)?;
        let group_of = |id: &str| by_id.get(id).map(|g| (*g).clone()).unwrap_or_default();
        let mut newest: BTreeMap<String, &cri::Container> = BTreeMap::new();
        for c in
            known.containers.iter().filter(|c| State::from(c.state) == State::Running && of_pod(&c.labels))
        {
            let name = c.labels.get(CONTAINER_NAME).cloned().unwrap_or_default();
            let slot = newest.entry(name).or_insert(c);
            if slot.created_at < c.created_at {
                *slot = c;
            }
        }
        let logs = self.kubelet.config.pod_log_dir(pod.namespace(), pod.name(), uid);
        let containers: Vec<ContainerUsage> = newest
            .into_iter()
            .map(|(name, c)| ContainerUsage {
                id: c.id.clone(),
                image: c.image.as_ref().map(|i| i.image.clone()).unwrap_or_default(),
                created: c.created_at,
                group: group_of(&c.id),
                rootfs: known.written.get(&c.id).copied().unwrap_or_default(),
                logs: filesystem::used(&logs.join(&name)),
                name,
            })
            .collect();
        let sandbox = ContainerUsage {
            name: "POD".into(),
            id: sandbox.id.clone(),
            image: self.kubelet.config.infra_image.clone(),
            created: sandbox.created_at,
            group: group_of(&sandbox.id),
            ..Default::default()
        };
        let parent =
            containers.iter().chain([&sandbox]).find_map(|c| c.group.path.rsplit_once('/')).map(|(p, _)| p);
        let marks = [format!("pod{uid}"), format!("pod{}.slice", uid.replace('-', "_"))];
        let own =
            parent.filter(|p| marks.iter().any(|m| p.ends_with(m.as_str()))).and_then(|p| groups.get(p));
        let group = own.cloned().unwrap_or_else(|| sum(containers.iter().chain([&sandbox])));
        let pid = sandbox
            .group
            .usage
            .processes
            .first()
            .or_else(|| containers.iter().find_map(|c| c.group.usage.processes.first()));
        let network = match pid {
            Some(pid) if !pod.host_network() => machine::interfaces_of(*pid),
            _ => Vec::new(),
        };
        let volumes = self.volumes(pod, space);
        Some(PodUsage { pod: pod.clone(), group, sandbox, containers, network, volumes })
    }

    fn volumes(&self, pod: &Pod, node: Space) -> Vec<VolumeUsage> {
        // Where a limit must be kept, it is counted each time.
        let limited = resources::pod_limits(pod).contains_key("ephemeral-storage")
            || pod
                .pod_spec()
                .volumes
                .iter()
                .flatten()
                .any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()));
        let age = if limited { INTERVAL / 2 } else { self.volume_age };
        let base = self.kubelet.config.volumes_dir(pod.uid());
        let volumes = pod.pod_spec().volumes.iter().flatten().filter_map(|v| {
            let (plugin, ephemeral) = if let Some(e) = &v.empty_dir {
                ("empty-dir", e.medium.as_deref().unwrap_or("").is_empty())
            } else if v.config_map.is_some() {
                ("configmap", true)
            } else if v.secret.is_some() {
                ("secret", false)
            } else if v.projected.is_some() {
                ("projected", false)
            } else if v.downward_api.is_some() {
                ("downward-api", false)
            } else {
                return None;
            };
            let dir = base.join(format!("kubernetes.io~{plugin}")).join(&v.name);
            dir.is_dir().then(|| VolumeUsage {
                name: v.name.clone(),
                used: self.counted.used(&dir, age),
                space: filesystem::space(&dir).unwrap_or(node),
                ephemeral,
            })
        });
        volumes.collect()
    }
}

fn same_device(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(a), std::fs::metadata(b)) {
        (Ok(a), Ok(b)) => a.dev() == b.dev(),
        _ => true,
    }
}

/// The sum of containers, for a pod without a cgroup of its own.
fn sum<'a>(containers: impl Iterator<Item = &'a ContainerUsage>) -> Group {
    let mut total = Group::default();
    for c in containers {
        let (t, u) = (&mut total.usage, &c.group.usage);
        t.cpu.total += u.cpu.total;
        t.cpu.user += u.cpu.user;
        t.cpu.system += u.cpu.system;
        t.memory.usage += u.memory.usage;
        t.memory.working_set += u.memory.working_set;
        t.memory.rss += u.memory.rss;
        t.memory.faults += u.memory.faults;
        t.memory.major_faults += u.memory.major_faults;
        t.created = if t.created == 0 { u.created } else { t.created.min(u.created) };
        total.at = total.at.max(c.group.at);
        total.rate = match (total.rate, c.group.rate) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
    }
    total
}

/// A time from nanoseconds, as JSON shows it: whole seconds, UTC.
pub fn show_time(nanos: i64) -> String {
    Timestamp::from_second(nanos.div_euclid(1_000_000_000)).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}
