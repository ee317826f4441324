//! What policies say in annotations: seccomp and AppArmor profiles.

use pilothouse_apimachinery::field::{self, Error, Path};
use pilothouse_apimachinery::json::Value;

use crate::json::{get, str_at};

/// The pod's profile of seccomp.
pub(super) const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
/// A container's, with its name behind it.
const SECCOMP_OF: &str = "container.seccomp.security.alpha.kubernetes.io/";
/// A container's profile of AppArmor, with its name behind it.
const APPARMOR_OF: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) fn annotation<'a>(object: &'a Value, key: &str) -> &'a str {
    get(object, &["metadata", "annotations"]).get(key).and_then(Value::as_str).unwrap_or("")
}

/// What a `seccompProfile` says, in the older words of the annotation.
fn of_field(context: &Value) -> Option<String> {
    let profile = context.get("seccompProfile")?;
    Some(match str_at(profile, &["type"]) {
        "Unconfined" => "unconfined".into(),
        "RuntimeDefault" => "runtime/default".into(),
        "Localhost" => format!("localhost/{}", str_at(profile, &["localhostProfile"])),
        _ => return None,
    })
}

fn pod_context(pod: &Value) -> &Value {
    get(pod, &["spec", "securityContext"])
}

fn seccomp_of_pod(pod: &Value) -> String {
    match annotation(pod, SECCOMP) {
        "" => of_field(pod_context(pod)).unwrap_or_default(),
        profile => profile.to_string(),
    }
}

fn seccomp_of_container(pod: &Value, container: &Value) -> String {
    match annotation(pod, &format!("{SECCOMP_OF}{}", str_at(container, &["name"]))) {
        "" => of_field(get(container, &["securityContext"])).unwrap_or_else(|| seccomp_of_pod(pod)),
        profile => profile.to_string(),
    }
}

/// The profile that a policy gives to a pod that has none.
pub(super) fn default_seccomp<'a>(policy: &'a Value, pod: &Value) -> Option<&'a str> {
    let default = annotation(policy, "seccomp.security.alpha.kubernetes.io/defaultProfileName");
    let has = !annotation(pod, SECCOMP).is_empty() || pod_context(pod).get("seccompProfile").is_some();
    Some(default).filter(|d| !d.is_empty() && !has)
}

fn same(a: &str, b: &str) -> bool {
    let word = |p: &str| if p == "docker/default" { "runtime/default".to_string() } else { p.to_string() };
    word(a) == word(b)
}

fn seccomp(policy: &Value, path: &Path, profile: &str) -> Option<Error> {
    let allowed = annotation(policy, "seccomp.security.alpha.kubernetes.io/allowedProfileNames");
    let list: Vec<&str> = allowed.split(',').filter(|p| !p.is_empty()).collect();
    if list.contains(&"*") || (list.is_empty() && profile.is_empty()) {
        return None;
    }
    if list.is_empty() {
        return Some(field::forbidden(path, "seccomp may not be set"));
    }
    (!list.iter().any(|p| same(p, profile))).then(|| {
        let detail = format!("{profile} is not an allowed seccomp profile. Valid values are {allowed}");
        field::forbidden(path, &detail)
    })
}

fn path(key: &str) -> Path {
    Path::new("pod").child("metadata").child("annotations").key(key)
}

pub(super) fn validate_seccomp_of_pod(policy: &Value, pod: &Value) -> Option<Error> {
    seccomp(policy, &path(SECCOMP), &seccomp_of_pod(pod))
}

pub(super) fn validate_seccomp_of_container(policy: &Value, pod: &Value, container: &Value) -> Option<Error> {
    let key = format!("{SECCOMP_OF}{}", str_at(container, &["name"]));
    seccomp(policy, &path(&key), &seccomp_of_container(pod, container))
}

/// Annotation and profile of AppArmor that a policy gives to a container that has none.
pub(super) fn default_apparmor<'a>(
    policy: &'a Value,
    pod: &Value,
    container: &str,
) -> Option<(String, &'a str)> {
    let default = annotation(policy, "apparmor.security.beta.kubernetes.io/defaultProfileName");
    let key = format!("{APPARMOR_OF}{container}");
    (!default.is_empty() && annotation(pod, &key).is_empty()).then_some((key, default))
}

pub(super) fn validate_apparmor(policy: &Value, pod: &Value, container: &str) -> Option<Error> {
    let allowed = annotation(policy, "apparmor.security.beta.kubernetes.io/allowedProfileNames");
    if allowed.is_empty() || allowed == "*" {
        return None;
    }
    let key = format!("{APPARMOR_OF}{container}");
    match annotation(pod, &key) {
        "" => Some(field::forbidden(&path(&key), "AppArmor profile must be set")),
        profile if allowed.split(',').any(|p| p.trim() == profile) => None,
        profile => {
            let detail = format!("{profile} is not an allowed profile. Allowed values: {allowed:?}");
            Some(field::forbidden(&path(&key), &detail))
        }
    }
}
