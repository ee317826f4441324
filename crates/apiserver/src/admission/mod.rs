//! Admission: plug-ins that change or refuse what is to be stored
//! (<https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>). One file each, or one for a few
//! that are of a kind. To add one: its file, its line in `PLUGINS`, its line in `make`.

pub mod certificates;
pub mod configuration;
pub mod event_rate_limit;
pub mod expressions;
pub mod image_policy;
pub mod ingress;
pub mod limit_ranger;
pub mod namespaces;
pub mod node_restriction;
pub mod owner_references;
pub mod pod_security;
pub mod pod_security_policy;
pub mod pod_tolerations;
pub mod pods;
pub mod policy;
pub mod priority;
pub mod reinvocation;
pub mod resource_quota;
pub mod runtime_class;
pub mod service_account;
pub mod steps;
pub mod storage;
pub mod tolerations;
pub mod webhook;

use std::sync::Arc;

use async_trait::async_trait;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use self::configuration::Configuration;
use self::steps::{Parts, Plugins, both, mutates, validates};
use crate::authorization::rbac::Rbac;
use crate::authorization::rbac::escalation::Escalation;
use crate::config::Config;
use crate::json::{list_at, str_at};
use crate::metrics::AdmissionMetrics;
use crate::request::{AdmissionRequest, Authorizer, Objects, Operation, Validation};
use crate::state::ServerState;

/// Whether a plug-in is on without a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByDefault {
    On,
    Off,
    /// On, in releases after 1.20; unknown in 1.20.
    OnInNewest,
    /// Unknown after 1.20.
    OffIn120,
}

/// All plug-ins in the order in which they act.
const PLUGINS: &[(&str, ByDefault)] = &[
    ("AlwaysAdmit", ByDefault::Off),
    ("NamespaceAutoProvision", ByDefault::Off),
    ("NamespaceLifecycle", ByDefault::On),
    ("NamespaceExists", ByDefault::Off),
    ("SecurityContextDeny", ByDefault::OffIn120),
    ("LimitPodHardAntiAffinityTopology", ByDefault::Off),
    ("LimitRanger", ByDefault::On),
    ("ServiceAccount", ByDefault::On),
    ("NodeRestriction", ByDefault::Off),
    ("TaintNodesByCondition", ByDefault::On),
    ("AlwaysPullImages", ByDefault::Off),
    ("ImagePolicyWebhook", ByDefault::Off),
    ("PodSecurity", ByDefault::OnInNewest),
    ("PodSecurityPolicy", ByDefault::OffIn120),
    ("PodNodeSelector", ByDefault::Off),
    ("Priority", ByDefault::On),
    ("DefaultTolerationSeconds", ByDefault::On),
    ("PodTolerationRestriction", ByDefault::Off),
    ("DenyEscalatingExec", ByDefault::OffIn120),
    ("DenyExecOnPrivileged", ByDefault::OffIn120),
    ("EventRateLimit", ByDefault::Off),
    ("ExtendedResourceToleration", ByDefault::Off),
    ("PersistentVolumeLabel", ByDefault::OffIn120),
    ("DefaultStorageClass", ByDefault::On),
    ("StorageObjectInUseProtection", ByDefault::On),
    ("OwnerReferencesPermissionEnforcement", ByDefault::Off),
    ("PersistentVolumeClaimResize", ByDefault::On),
    ("RuntimeClass", ByDefault::On),
    ("CertificateApproval", ByDefault::On),
    ("CertificateSigning", ByDefault::On),
    ("ClusterTrustBundleAttest", ByDefault::OnInNewest),
    ("CertificateSubjectRestriction", ByDefault::On),
    ("DefaultIngressClass", ByDefault::On),
    ("MutatingAdmissionPolicy", ByDefault::OnInNewest),
    ("MutatingAdmissionWebhook", ByDefault::On),
    ("ValidatingAdmissionPolicy", ByDefault::OnInNewest),
    ("ValidatingAdmissionWebhook", ByDefault::On),
    ("ResourceQuota", ByDefault::On),
    ("AlwaysDeny", ByDefault::Off),
];

fn known(by_default: ByDefault, release: Release) -> bool {
    match by_default {
        ByDefault::On | ByDefault::Off => true,
        ByDefault::OnInNewest => release > Release::V1_20,
        ByDefault::OffIn120 => release == Release::V1_20,
    }
}

/// The names of the plug-ins that the flags switch on, in order. Errors are those of v1.20.
fn enabled(release: Release, enable: &[String], disable: &[String]) -> Result<Vec<&'static str>, String> {
    let is_known = |n: &String| PLUGINS.iter().any(|(p, d)| p == n && known(*d, release));
    for (flag, names) in [("enable", enable), ("disable", disable)] {
        if let Some(bad) = names.iter().find(|n| !is_known(n)) {
            return Err(format!("{flag}-admission-plugins plugin {bad:?} is unknown"));
        }
    }
    let both: Vec<&String> = enable.iter().filter(|n| disable.contains(n)).collect();
    if !both.is_empty() {
        let names = both.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(" ");
        return Err(format!(
            "[{names}] in enable-admission-plugins and disable-admission-plugins overlapped"
        ));
    }
    Ok(PLUGINS
        .iter()
        .filter(|(n, d)| known(*d, release) && !disable.iter().any(|x| x == n))
        .filter(|(n, d)| matches!(d, ByDefault::On | ByDefault::OnInNewest) || enable.iter().any(|x| x == n))
        .map(|(n, _)| *n)
        .collect())
}

/// The plug-ins that the flags switch on, in order. Errors name the flag or file.
pub fn build(
    config: &Arc<Config>,
    objects: &Arc<dyn Objects>,
    authorizer: &Arc<dyn Authorizer>,
    metrics: AdmissionMetrics,
) -> Result<Plugins, String> {
    let mut out = Plugins::new(metrics.clone());
    let names = enabled(config.release, &config.enable_admission, &config.disable_admission)?;
    let hooks =
        Arc::new(webhook::Webhooks::new(objects.clone(), authorizer.clone(), config.release, metrics));
    let configuration = match &config.admission_config {
        Some(file) => Configuration::load(file)?,
        None => Configuration::default(),
    };
    let mut quota = None;
    for name in names {
        match make(name, config, &configuration, authorizer, &hooks)? {
            Some(plugin) if name == "ResourceQuota" => quota = Some(plugin),
            Some(plugin) => out.add(name, plugin),
            None if config.enable_admission.iter().any(|n| n == name) => {
                tracing::warn!("admission plugin {name} is accepted and has no effect yet");
            }
            None => {}
        }
    }
    // Not switched by a flag: Kubernetes' registry does these checks. After all changes, before validation.
    if config.authorization_modes.iter().any(|m| m == "RBAC") {
        let rbac = Arc::new(Rbac::new(objects.clone()));
        out.add("Escalation", mutates(Escalation { rbac, authorizer: authorizer.clone() }));
    }
    // Charges for the object, so it must be the last to have a say.
    if let Some(quota) = quota {
        out.add("ResourceQuota", quota);
    }
    Ok(out)
}

fn make(
    name: &'static str,
    config: &Arc<Config>,
    configuration: &Configuration,
    authorizer: &Arc<dyn Authorizer>,
    hooks: &Arc<webhook::Webhooks>,
) -> Result<Option<Parts>, String> {
    let newest = config.release > Release::V1_20;
    let policies = || {
        Arc::new(policy::Policies {
            webhooks: hooks.clone(),
            authorizer: authorizer.clone(),
            programs: expressions::Programs::default(),
        })
    };
    Ok(Some(match name {
        "AlwaysDeny" => validates(AlwaysDeny),
        "NamespaceAutoProvision" => mutates(namespaces::AutoProvision),
        "NamespaceLifecycle" => mutates(namespaces::Lifecycle),
        "NamespaceExists" => validates(namespaces::Exists),
        "SecurityContextDeny" => validates(pods::SecurityContextDeny),
        "LimitPodHardAntiAffinityTopology" => validates(pods::HardAntiAffinity),
        "LimitRanger" => both(limit_ranger::LimitRanger),
        "ServiceAccount" => both(service_account::ServiceAccount {
            bound_tokens: newest
                || config.feature_gates.get("BoundServiceAccountTokenVolume").is_some_and(|v| v == "true"),
        }),
        "NodeRestriction" => mutates(node_restriction::NodeRestriction { newest }),
        "TaintNodesByCondition" => mutates(pods::TaintNodes),
        "AlwaysPullImages" => mutates(pods::AlwaysPullImages),
        "PodSecurity" => validates(pod_security::PodSecurity),
        "PodSecurityPolicy" => both(pod_security_policy::PodSecurityPolicy(authorizer.clone())),
        "PodNodeSelector" => both(pods::NodeSelector::new(configuration)),
        "PodTolerationRestriction" => both(pod_tolerations::PodTolerations::new(configuration)),
        "EventRateLimit" => validates(event_rate_limit::EventRateLimit::new(configuration)?),
        "ImagePolicyWebhook" => validates(image_policy::ImagePolicy::new(configuration)?),
        "OwnerReferencesPermissionEnforcement" => validates(owner_references::OwnerReferences {
            authorizer: authorizer.clone(),
            release: config.release,
        }),
        "Priority" => both(priority::Priority),
        "DefaultTolerationSeconds" => mutates(tolerations::DefaultSeconds {
            not_ready: config.not_ready_toleration,
            unreachable: config.unreachable_toleration,
        }),
        "ExtendedResourceToleration" => mutates(tolerations::ExtendedResources),
        "DenyEscalatingExec" => validates(pods::DenyExec { escalating: true }),
        "DenyExecOnPrivileged" => validates(pods::DenyExec { escalating: false }),
        "DefaultStorageClass" => mutates(storage::DefaultClass { newest }),
        "StorageObjectInUseProtection" => mutates(storage::InUseProtection),
        "PersistentVolumeClaimResize" => validates(storage::Resize),
        "RuntimeClass" => both(runtime_class::RuntimeClass),
        "CertificateApproval" => validates(certificates::Approval(authorizer.clone())),
        "CertificateSigning" => validates(certificates::Signing(authorizer.clone())),
        "CertificateSubjectRestriction" => validates(certificates::SubjectRestriction),
        "DefaultIngressClass" => mutates(ingress::DefaultClass),
        "MutatingAdmissionWebhook" => mutates(webhook::Mutating(hooks.clone())),
        "ValidatingAdmissionWebhook" => validates(webhook::Validating(hooks.clone())),
        "MutatingAdmissionPolicy" => mutates(policy::mutating::Mutating(policies())),
        "ValidatingAdmissionPolicy" => validates(policy::validating::Validating(policies())),
        "ResourceQuota" => validates(resource_quota::ResourceQuota),
        _ => return Ok(None),
    }))
}

/// 403 of a plug-in: `pods "x" is forbidden: <why>`. Objects whose name is still to be generated are named by its
/// prefix, others without a name are `Unknown`.
pub fn forbidden(request: &AdmissionRequest, why: impl std::fmt::Display) -> Status {
    let candidates = [
        request.name.as_str(),
        str_at(&request.object, &["metadata", "name"]),
        str_at(&request.object, &["metadata", "generateName"]),
    ];
    let name = candidates.into_iter().find(|n| !n.is_empty()).unwrap_or("Unknown");
    Status::forbidden(&request.group, &request.resource, name, &why.to_string())
}

/// Whether a request is about this resource itself, not a subresource.
pub(crate) fn is_about(request: &AdmissionRequest, group: &str, resource: &str) -> bool {
    request.group == group && request.resource == resource && request.subresource.is_empty()
}

/// Whether a request creates a pod.
pub(crate) fn creates_pod(request: &AdmissionRequest) -> bool {
    is_about(request, "", "pods") && request.operation == Operation::Create
}

/// Whether a list under an object's `metadata` holds a text.
pub(crate) fn has_finalizer(object: &Value, name: &str) -> bool {
    list_at(object, &["metadata", "finalizers"]).iter().any(|f| f == name)
}

/// Runs all plug-ins over a request of a special handler: changes first, checks after.
pub async fn run(state: &ServerState, request: &mut AdmissionRequest) -> Result<(), Status> {
    state.admission.admit(request, &*state.objects).await?;
    state.admission.validate(request, &*state.objects).await
}

/// Refuses everything.
struct AlwaysDeny;

#[async_trait]
impl Validation for AlwaysDeny {
    async fn validate(&self, request: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        Err(forbidden(request, "admission control is denying all modifications"))
    }
}

/// A request for tests of plug-ins: a user creates an object.
#[cfg(test)]
pub(crate) fn test_create(group: &str, resource: &str, kind: &str, object: Value) -> AdmissionRequest {
    AdmissionRequest {
        user: crate::request::UserInfo { name: "u".into(), ..Default::default() },
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        kind: kind.into(),
        subresource: String::new(),
        namespace: str_at(&object, &["metadata", "namespace"]).into(),
        name: str_at(&object, &["metadata", "name"]).into(),
        operation: Operation::Create,
        object,
        old_object: Value::Null,
        options: Value::Null,
        dry_run: false,
        warnings: crate::request::Warnings::default(),
        reinvocation: reinvocation::Reinvocation::default(),
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;
    use pilothouse_apimachinery::version::NEWEST;

    fn list(s: &str) -> Vec<String> {
        s.split(',').filter(|s| !s.is_empty()).map(String::from).collect()
    }

    #[test]
    fn switches_plugins() {
        let on = enabled(Release::V1_20, &list("NodeRestriction"), &list("ServiceAccount")).unwrap();
        assert_eq!(
            on,
            [
                "NamespaceLifecycle",
                "LimitRanger",
                "NodeRestriction",
                "TaintNodesByCondition",
                "Priority",
                "DefaultTolerationSeconds",
                "DefaultStorageClass",
                "StorageObjectInUseProtection",
                "PersistentVolumeClaimResize",
                "RuntimeClass",
                "CertificateApproval",
                "CertificateSigning",
                "CertificateSubjectRestriction",
                "DefaultIngressClass",
                "MutatingAdmissionWebhook",
                "ValidatingAdmissionWebhook",
                "ResourceQuota"
            ]
        );
        assert!(enabled(NEWEST, &[], &[]).unwrap().contains(&"PodSecurity"));
    }

    #[test]
    fn refuses_unknown_names() {
        let e = |en: &str, dis: &str| enabled(Release::V1_20, &list(en), &list(dis)).unwrap_err();
        assert_eq!(e("Nope", ""), "enable-admission-plugins plugin \"Nope\" is unknown");
        assert_eq!(e("", "PodSecurity"), "disable-admission-plugins plugin \"PodSecurity\" is unknown");
        assert_eq!(
            e("LimitRanger", "LimitRanger"),
            "[LimitRanger] in enable-admission-plugins and disable-admission-plugins overlapped"
        );
    }

    #[test]
    fn names_what_is_refused() {
        let r = |o: Value| forbidden(&test_create("", "pods", "Pod", o), "no").message;
        assert_eq!(r(json!({"metadata": {"name": "x"}})), "pods \"x\" is forbidden: no");
        assert_eq!(r(json!({"metadata": {"generateName": "x-"}})), "pods \"x-\" is forbidden: no");
        assert_eq!(r(Value::Null), "pods \"Unknown\" is forbidden: no");
    }
}
