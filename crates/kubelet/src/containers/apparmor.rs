//! Can the AppArmor profiles that a pod asks for be enforced here? Where they cannot, the pod waits rather than run
//! without them. Texts are v1.20's.

use k8s_openapi::api::core::v1::Pod;

use super::security;
use crate::pod::PodExt;

/// The reason in the status of a pod that waits.
pub const REASON: &str = "AppArmor";

/// What the kernel says.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Whether it enforces profiles at all.
    pub enabled: bool,
    /// The profiles that are loaded.
    pub loaded: Vec<String>,
}

impl Host {
    /// Asks the kernel.
    pub fn read() -> Host {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        Host {
            enabled: read("/sys/module/apparmor/parameters/enabled").starts_with('Y'),
            loaded: profiles(&read("/sys/kernel/security/apparmor/profiles")),
        }
    }
}

/// The names in a list of lines `name (mode)`.
fn profiles(text: &str) -> Vec<String> {
    text.lines().filter_map(|l| l.rsplit_once(" (")).map(|(name, _)| name.to_string()).collect()
}

/// Why a pod's profiles cannot be enforced, as its status says so. `host` is asked only where there are any.
pub fn refusal(pod: &Pod, host: impl FnOnce() -> Host) -> Option<String> {
    let containers = pod.pod_spec().containers.iter().chain(pod.init_containers());
    let wanted: Vec<String> = containers
        .map(|c| security::apparmor(pod, c).1)
        .filter(|p| !p.is_empty() && p != "unconfined")
        .collect();
    if wanted.is_empty() {
        return None;
    }
    let host = host();
    let why = if !host.enabled {
        "AppArmor is not enabled on the host".to_string()
    } else {
        wanted.iter().find_map(|profile| match profile.strip_prefix("localhost/") {
            Some(name) if !host.loaded.iter().any(|l| l == name) => {
                Some(format!("profile {name:?} is not loaded"))
            }
            None if profile != "runtime/default" => {
                Some(format!("invalid AppArmor profile name: {profile:?}"))
            }
            _ => None,
        })?
    };
    Some(format!("Cannot enforce AppArmor: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(profile: &str, enabled: bool) -> Option<String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"annotations":
            {"container.apparmor.security.beta.kubernetes.io/c": profile}}, "spec": {"containers": [{"name": "c"}]}}))
        .unwrap();
        refusal(&pod, || Host { enabled, loaded: profiles("mine (enforce)\nyour s (complain)\n") })
    }

    #[test]
    fn what_cannot_be_enforced_is_refused() {
        let text = |t: &str| Some(format!("Cannot enforce AppArmor: {t}"));
        assert_eq!(refused("runtime/default", false), text("AppArmor is not enabled on the host"));
        assert_eq!(refused("runtime/default", true), None);
        assert_eq!(refused("unconfined", false), None);
        assert_eq!(refused("localhost/your s", true), None);
        assert_eq!(refused("localhost/other", true), text("profile \"other\" is not loaded"));
        assert_eq!(refused("other", true), text("invalid AppArmor profile name: \"other\""));
    }
}
