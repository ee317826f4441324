//! Security contexts: the pod's and the container's, as the runtime is told them.

use std::path::Path;

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, SELinuxOptions, SeccompProfile};

use crate::pod::PodExt;
use crate::runtime::cri;

const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY: [&str; 6] =
    ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

/// What holds for a container once the pod's and its own context are put together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effective {
    /// User id.
    pub run_as_user: Option<i64>,
    /// Group id.
    pub run_as_group: Option<i64>,
    /// Whether root is refused.
    pub run_as_non_root: bool,
    /// SELinux.
    pub selinux: Option<SELinuxOptions>,
    /// Capabilities.
    pub capabilities: Option<Capabilities>,
    /// All rights.
    pub privileged: bool,
    /// Root file system read only.
    pub read_only_root: bool,
    /// Whether a process may gain rights that its parent lacks.
    pub allow_privilege_escalation: Option<bool>,
    /// Whether `/proc` is left as the kernel makes it.
    pub unmasked_proc: bool,
}

/// Puts the two together: what the container says wins.
pub fn effective(pod: &Pod, container: &Container) -> Effective {
    let of_pod = pod.pod_spec().security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    Effective {
        run_as_user: own.run_as_user.or(of_pod.run_as_user),
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        run_as_non_root: own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false),
        selinux: own.se_linux_options.or(of_pod.se_linux_options),
        capabilities: own.capabilities,
        privileged: own.privileged.unwrap_or(false),
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        allow_privilege_escalation: own.allow_privilege_escalation,
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    }
}

/// Whom an image says to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// A number.
    Id(i64),
    /// A name that only the image's own files can resolve.
    Name(String),
}

/// An image's user; root where it names none.
pub fn image_user(image: Option<&cri::Image>) -> ImageUser {
    match image {
        Some(i) => match &i.uid {
            Some(uid) => ImageUser::Id(uid.value),
            None if !i.username.is_empty() => ImageUser::Name(i.username.clone()),
            None => ImageUser::Id(0),
        },
        None => ImageUser::Id(0),
    }
}

/// Refuses a container that would run as root though it must not.
pub fn verify_non_root(pod: &Pod, container: &Container, user: &ImageUser) -> Result<(), String> {
    let e = effective(pod, container);
    if !e.run_as_non_root {
        return Ok(());
    }
    let of = format!("(pod: \"{}\", container: {})", pod.described(), container.name);
    match (e.run_as_user, user) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {of}")),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Id(0)) => {
            Err(format!("container has runAsNonRoot and image will run as root {of}"))
        }
        (None, ImageUser::Name(n)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({n}), cannot verify user is non-root {of}"
        )),
        (None, ImageUser::Id(_)) => Ok(()),
    }
}

/// The namespaces a pod shares with its node, and its containers with each other.
pub fn namespaces(pod: &Pod) -> cri::NamespaceOption {
    use cri::NamespaceMode::{Container, Node, Pod};
    let spec = pod.pod_spec();
    cri::NamespaceOption {
        network: if pod.host_network() { Node } else { Pod } as i32,
        ipc: if spec.host_ipc == Some(true) { Node } else { Pod } as i32,
        pid: if spec.host_pid == Some(true) {
            Node
        } else if spec.share_process_namespace == Some(true) {
            Pod
        } else {
            Container
        } as i32,
        ..Default::default()
    }
}

/// Makes a container see the processes of another one of its pod.
pub fn join_processes(config: &mut cri::ContainerConfig, id: &str) {
    let context = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
    if let Some(n) = context.and_then(|c| c.namespace_options.as_mut()) {
        n.pid = cri::NamespaceMode::Target as i32;
        n.target_id = id.to_string();
    }
}

/// Groups that the pod's processes are in besides their own: fsGroup, supplementalGroups and those of volumes.
pub fn supplemental_groups(pod: &Pod, of_volumes: &[i64]) -> Vec<i64> {
    let sc = pod.pod_spec().security_context.as_ref();
    let mut groups: Vec<i64> = sc.and_then(|s| s.fs_group).into_iter().collect();
    groups.extend(of_volumes);
    groups.extend(sc.and_then(|s| s.supplemental_groups.as_ref()).into_iter().flatten());
    groups
}

fn int(v: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value: v })
}

fn selinux(o: &SELinuxOptions) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: o.user.clone().unwrap_or_default(),
        role: o.role.clone().unwrap_or_default(),
        r#type: o.type_.clone().unwrap_or_default(),
        level: o.level.clone().unwrap_or_default(),
    }
}

fn profile(kind: cri::security_profile::ProfileType, localhost: String) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind as i32, localhost_ref: localhost }
}

fn seccomp(pod: &Pod, container: &Container, root: &Path) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let of_field = |p: &SeccompProfile| match p.type_.as_str() {
        "RuntimeDefault" => profile(RuntimeDefault, String::new()),
        "Localhost" => {
            let file = root.join(p.localhost_profile.as_deref().unwrap_or(""));
            profile(Localhost, file.display().to_string())
        }
        _ => profile(Unconfined, String::new()),
    };
    let of_annotation = |text: &str| match text {
        "runtime/default" | "docker/default" => profile(RuntimeDefault, String::new()),
        t => match t.strip_prefix("localhost/") {
            Some(file) => profile(Localhost, root.join(file).display().to_string()),
            None => profile(Unconfined, String::new()),
        },
    };
    let own = container.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    if let Some(p) = own {
        return of_field(p);
    }
    if let Some(text) = pod.annotation(&format!("{SECCOMP_CONTAINER}{}", container.name)) {
        return of_annotation(text);
    }
    if let Some(p) = pod.pod_spec().security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref()) {
        return of_field(p);
    }
    pod.annotation(SECCOMP_POD).map_or_else(|| profile(Unconfined, String::new()), of_annotation)
}

/// A container's AppArmor profile, in the new form and in the old one; empty where none is asked for.
pub(super) fn apparmor(pod: &Pod, container: &Container) -> (Option<cri::SecurityProfile>, String) {
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let own = container.security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    let of_pod = pod.pod_spec().security_context.as_ref().and_then(|s| s.app_armor_profile.as_ref());
    if let Some(p) = own.or(of_pod) {
        let name = p.localhost_profile.clone().unwrap_or_default();
        return match p.type_.as_str() {
            "RuntimeDefault" => (Some(profile(RuntimeDefault, String::new())), "runtime/default".into()),
            "Localhost" => (Some(profile(Localhost, name.clone())), format!("localhost/{name}")),
            _ => (Some(profile(Unconfined, String::new())), "unconfined".into()),
        };
    }
    let text = pod.annotation(&format!("{APPARMOR_CONTAINER}{}", container.name)).unwrap_or("");
    let p = match text {
        "" => None,
        "runtime/default" => Some(profile(RuntimeDefault, String::new())),
        "unconfined" => Some(profile(Unconfined, String::new())),
        t => Some(profile(Localhost, t.trim_start_matches("localhost/").to_string())),
    };
    (p, text.to_string())
}

/// What the runtime is told of a container's rights. `groups` are the supplemental ones.
#[expect(deprecated, reason = "runtimes before CRI's security profiles read the old AppArmor field")]
pub fn container(
    pod: &Pod,
    container: &Container,
    user: &ImageUser,
    groups: Vec<i64>,
    seccomp_root: &Path,
) -> cri::LinuxContainerSecurityContext {
    let e = effective(pod, container);
    let (apparmor, apparmor_profile) = apparmor(pod, container);
    let (run_as_user, run_as_username) = match (e.run_as_user, user) {
        (Some(u), _) => (int(u), String::new()),
        (None, ImageUser::Id(u)) => (int(*u), String::new()),
        (None, ImageUser::Name(n)) => (None, n.clone()),
    };
    let list =
        |l: &[&str]| if e.unmasked_proc { Vec::new() } else { l.iter().map(|s| s.to_string()).collect() };
    cri::LinuxContainerSecurityContext {
        capabilities: e.capabilities.as_ref().map(|c| cri::Capability {
            add_capabilities: c.add.clone().unwrap_or_default(),
            drop_capabilities: c.drop.clone().unwrap_or_default(),
            ..Default::default()
        }),
        privileged: e.privileged,
        namespace_options: Some(namespaces(pod)),
        selinux_options: e.selinux.as_ref().map(selinux),
        run_as_user,
        run_as_group: e.run_as_group.and_then(int),
        run_as_username,
        readonly_rootfs: e.read_only_root,
        supplemental_groups: groups,
        no_new_privs: e.allow_privilege_escalation == Some(false),
        masked_paths: list(&MASKED),
        readonly_paths: list(&READONLY),
        seccomp: Some(seccomp(pod, container, seccomp_root)),
        apparmor,
        apparmor_profile,
        ..Default::default()
    }
}

/// What the runtime is told of a sandbox's rights.
pub fn sandbox(pod: &Pod, groups: Vec<i64>) -> cri::LinuxSandboxSecurityContext {
    let sc = pod.pod_spec().security_context.clone().unwrap_or_default();
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        selinux_options: sc.se_linux_options.as_ref().map(selinux),
        run_as_user: sc.run_as_user.and_then(int),
        run_as_group: sc.run_as_user.and(sc.run_as_group).and_then(int),
        supplemental_groups: groups,
        privileged: pod.has_privileged_container(),
        seccomp: Some(profile(cri::security_profile::ProfileType::RuntimeDefault, String::new())),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(of_pod: Value, own: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "securityContext": of_pod, "containers": [{"name": "c", "securityContext": own}]}}))
        .unwrap()
    }

    fn context(p: &Pod, user: ImageUser) -> cri::LinuxContainerSecurityContext {
        container(p, &p.pod_spec().containers[0], &user, supplemental_groups(p, &[9]), Path::new("/sec"))
    }

    #[test]
    fn the_container_wins_over_the_pod() {
        let p = pod(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4]}),
            json!({"runAsUser": 5}),
        );
        let c = context(&p, ImageUser::Id(0));
        assert_eq!(c.run_as_user.unwrap().value, 5);
        assert_eq!(c.run_as_group.unwrap().value, 2);
        assert_eq!(c.supplemental_groups, [3, 9, 4]);
        let unnamed = context(&pod(json!({}), json!({})), ImageUser::Name("www".into()));
        assert_eq!((unnamed.run_as_user, unnamed.run_as_username.as_str()), (None, "www"));
        assert!(!unnamed.no_new_privs && unnamed.masked_paths.len() == 9);
        assert!(
            context(&pod(json!({}), json!({"allowPrivilegeEscalation": false})), ImageUser::Id(0))
                .no_new_privs
        );
    }

    #[test]
    fn root_is_refused_where_it_must_be() {
        let check = |of_pod: Value, user: ImageUser| {
            let p = pod(of_pod, json!({}));
            verify_non_root(&p, &p.pod_spec().containers[0], &user)
        };
        let must = json!({"runAsNonRoot": true});
        assert_eq!(
            check(json!({"runAsNonRoot": true, "runAsUser": 0}), ImageUser::Id(7)).unwrap_err(),
            "container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: c)"
        );
        assert_eq!(
            check(must.clone(), ImageUser::Id(0)).unwrap_err(),
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
        assert!(
            check(must.clone(), ImageUser::Name("a".into())).unwrap_err().contains("non-numeric user (a)")
        );
        assert!(check(must, ImageUser::Id(3)).is_ok());
        assert!(check(json!({}), ImageUser::Id(0)).is_ok());
    }

    #[test]
    fn seccomp_profiles() {
        use cri::security_profile::ProfileType;
        let of = |p: &Pod| context(p, ImageUser::Id(0)).seccomp.unwrap();
        assert_eq!(of(&pod(json!({}), json!({}))).profile_type, ProfileType::Unconfined as i32);
        let local = of(&pod(
            json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}}),
            json!({}),
        ));
        assert_eq!(local.localhost_ref, "/sec/a.json");
        let own = of(&pod(
            json!({"seccompProfile": {"type": "Unconfined"}}),
            json!({"seccompProfile": {"type": "RuntimeDefault"}}),
        ));
        assert_eq!(own.profile_type, ProfileType::RuntimeDefault as i32);
    }

    #[test]
    fn namespaces_are_the_pods_unless_shared() {
        let p: Pod =
            serde_json::from_value(json!({"spec": {"hostPID": true, "hostNetwork": true, "containers": []}}))
                .unwrap();
        let n = namespaces(&p);
        assert_eq!((n.network, n.pid, n.ipc), (2, 2, 0));
        assert_eq!(namespaces(&pod(json!({}), json!({}))).pid, 1);
    }
}
