//! `CertificateSigningRequest` of `certificates.k8s.io`, and the kinds for bundles and pods' certificates.

mod request;

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, copy, get, has, json, list_at, list_mut, remove, set, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::time::Timestamp;

use super::checks::strings;
use super::columns::{AGE, NAME, text};
use super::{Context, Kind, RowContext, STATUS, Subresource, Version};
use crate::go_print;
use crate::table::{age_cell, name_cell, or_none};

const GROUP: &str = "certificates.k8s.io";
/// The signer of requests that name none and that no signer of Kubernetes knows.
pub const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&CERTIFICATE_SIGNING_REQUEST, &CLUSTER_TRUST_BUNDLE, &POD_CERTIFICATE_REQUEST];

/// `CertificateSigningRequest`. Who asks (`spec.username` and the like) is filled in by the server.
pub static CERTIFICATE_SIGNING_REQUEST: Kind = Kind {
    namespaced: false,
    short_names: &["csr"],
    storage_version: "certificates.k8s.io/v1",
    subresources: &[Subresource { name: "approval", gvk: None, verbs: &["get", "patch", "update"] }, STATUS],
    name_fn: names::path_segment_name,
    default,
    prepare_create: |csr, _| {
        for name in ["username", "uid", "groups", "extra"] {
            remove(csr, &["spec", name]);
        }
        set(csr, &["status"], json!({}));
    },
    prepare_update,
    validate: |csr, context| faults(csr, Allow::on_create(csr, context)),
    validate_update,
    selectable_field_names: &["spec.signerName"],
    selectable_fields: |csr| vec![("spec.signerName", str_at(csr, &["spec", "signerName"]).to_string())],
    columns: &[
        NAME,
        AGE,
        text(
            "SignerName",
            "Requested signer for the request. It is a qualified name in the form: `scope-hostname.io/name`. If empty, it will be defaulted:\n 1. If it's a kubelet client certificate, it is assigned\n    \"kubernetes.io/kube-apiserver-client-kubelet\".\n 2. If it's a kubelet serving certificate, it is assigned\n    \"kubernetes.io/kubelet-serving\".\n 3. Otherwise, it is assigned \"kubernetes.io/legacy-unknown\".\nDistribution of trust for signers happens out of band. You can select on this field using `spec.signerName`.",
        ),
        text("Requestor", "Base64-encoded PKCS#10 CSR data"),
        text("Condition", "Conditions applied to the request, such as approval or denial."),
    ],
    row: |csr: &Value, context: &RowContext| {
        vec![
            name_cell(csr),
            age_cell(csr, context),
            or_none(str_at(csr, &["spec", "signerName"])),
            str_at(csr, &["spec", "username"]).into(),
            condition_text(csr).into(),
        ]
    },
    update_checks: (1, 1),
    ..Kind::new(
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
        &[Version::always(GROUP, "v1"), Version::always(GROUP, "v1beta1")],
    )
};

/// `ClusterTrustBundle`.
pub static CLUSTER_TRUST_BUNDLE: Kind = Kind {
    namespaced: false,
    selectable_field_names: &["spec.signerName"],
    selectable_fields: |b| vec![("spec.signerName", str_at(b, &["spec", "signerName"]).to_string())],
    columns: &[NAME, text("SignerName", "Signer that the trust bundle is associated with")],
    row: |b: &Value, _: &RowContext| vec![name_cell(b), or_none(str_at(b, &["spec", "signerName"]))],
    name_fn: names::path_segment_name,
    ..Kind::new(
        "ClusterTrustBundle",
        "clustertrustbundles",
        "clustertrustbundle",
        &[Version::newer(GROUP, "v1beta1")],
    )
};

/// `PodCertificateRequest`.
pub static POD_CERTIFICATE_REQUEST: Kind = Kind {
    subresources: &[STATUS],
    prepare_create: |request, _| set(request, &["status"], json!({})),
    prepare_update: |new, old, context| {
        copy(new, old, if context.subresource == "status" { &["spec"] } else { &["status"] });
    },
    selectable_field_names: &["spec.signerName", "spec.podName", "spec.nodeName"],
    selectable_fields: |r| {
        [("spec.signerName", "signerName"), ("spec.podName", "podName"), ("spec.nodeName", "nodeName")]
            .into_iter()
            .map(|(name, f)| (name, str_at(r, &["spec", f]).to_string()))
            .collect()
    },
    ..Kind::new(
        "PodCertificateRequest",
        "podcertificaterequests",
        "podcertificaterequest",
        &[Version::newer(GROUP, "v1beta1")],
    )
};

fn is_beta(context: &Context) -> bool {
    context.api_version == "certificates.k8s.io/v1beta1"
}

/// The bytes of the request: PEM.
pub fn request_bytes(csr: &Value) -> Vec<u8> {
    STANDARD.decode(str_at(csr, &["spec", "request"])).unwrap_or_default()
}

fn default(csr: &mut Value, context: &Context) {
    if !is_beta(context) {
        return;
    }
    if list_at(csr, &["spec", "usages"]).is_empty() {
        set(csr, &["spec", "usages"], json!(["digital signature", "key encipherment"]));
    }
    if str_at(csr, &["spec", "signerName"]).is_empty() {
        let usages: BTreeSet<&str> = strings(csr, &["spec", "usages"]).into_iter().collect();
        let signer = request::default_signer(&request_bytes(csr), &usages);
        set(csr, &["spec", "signerName"], signer);
    }
    for condition in list_mut(csr, &["status", "conditions"]) {
        if str_at(condition, &["status"]).is_empty() {
            set(condition, &["status"], "True");
        }
    }
}

fn prepare_update(new: &mut Value, old: &Value, context: &Context) {
    copy(new, old, &["spec"]);
    match context.subresource {
        "approval" => {
            let conditions = get(new, &["status", "conditions"]).clone();
            copy(new, old, &["status"]);
            set(new, &["status", "conditions"], conditions);
            date_conditions(new, old);
        }
        "status" => {
            let kept = keep_verdicts(new, old);
            if is_beta(context) && !kept {
                copy(new, old, &["status", "conditions"]);
            }
            date_conditions(new, old);
        }
        _ => copy(new, old, &["status"]),
    }
    if get(new, &["status", "conditions"]).is_null() {
        remove(new, &["status", "conditions"]);
    }
}

fn of_type<'a>(csr: &'a Value, type_: &str) -> Vec<&'a Value> {
    list_at(csr, &["status", "conditions"]).iter().filter(|c| str_at(c, &["type"]) == type_).collect()
}

/// An update of the status keeps approvals and denials as they are. Whether it does, in number.
fn keep_verdicts(new: &mut Value, old: &Value) -> bool {
    let mut kept = true;
    for type_ in ["Approved", "Denied"] {
        let before: Vec<Value> = of_type(old, type_).into_iter().cloned().collect();
        let now: Vec<&mut Value> = list_mut(new, &["status", "conditions"])
            .iter_mut()
            .filter(|c| str_at(c, &["type"]) == type_)
            .collect();
        kept &= before.len() == now.len();
        if before.len() == now.len() {
            for (condition, before) in now.into_iter().zip(before) {
                *condition = before;
            }
        }
    }
    kept
}

/// Conditions get the times that they lack.
fn date_conditions(new: &mut Value, old: &Value) {
    let now = Timestamp::now().rfc3339();
    for condition in list_mut(new, &["status", "conditions"]) {
        if str_at(condition, &["lastUpdateTime"]).is_empty() {
            set(condition, &["lastUpdateTime"], now.clone());
        }
        if str_at(condition, &["lastTransitionTime"]).is_empty() {
            let since = of_type(old, str_at(condition, &["type"]))
                .into_iter()
                .find(|c| str_at(c, &["status"]) == str_at(condition, &["status"]))
                .map(|c| str_at(c, &["lastTransitionTime"]).to_string())
                .filter(|t| !t.is_empty());
            set(condition, &["lastTransitionTime"], since.unwrap_or_else(|| now.clone()));
        }
    }
}

/// What the version of the request, the subresource and what is stored already let through.
#[derive(Debug, Clone, Copy, Default)]
struct Allow {
    legacy_signer: bool,
    duplicate_conditions: bool,
    empty_condition_type: bool,
    both_verdicts: bool,
    any_certificate: bool,
    duplicate_usages: bool,
    unknown_usages: bool,
    approval: bool,
    certificate: bool,
}

impl Allow {
    fn on_create(_csr: &Value, context: &Context) -> Allow {
        let beta = is_beta(context);
        Allow {
            legacy_signer: beta,
            duplicate_conditions: beta,
            empty_condition_type: beta,
            any_certificate: beta,
            duplicate_usages: beta,
            unknown_usages: beta,
            ..Allow::default()
        }
    }

    fn on_update(old: &Value, context: &Context) -> Allow {
        let create = Allow::on_create(old, context);
        let types: Vec<&str> =
            list_at(old, &["status", "conditions"]).iter().map(|c| str_at(c, &["type"])).collect();
        let usages = strings(old, &["spec", "usages"]);
        let distinct = |v: &[&str]| v.iter().collect::<BTreeSet<_>>().len() == v.len();
        Allow {
            legacy_signer: create.legacy_signer || str_at(old, &["spec", "signerName"]) == LEGACY_UNKNOWN,
            duplicate_conditions: create.duplicate_conditions || !distinct(&types),
            empty_condition_type: create.empty_condition_type || types.contains(&""),
            both_verdicts: types.contains(&"Approved") && types.contains(&"Denied"),
            any_certificate: create.any_certificate
                || request::certificate_fault(&certificate_bytes(old)).is_some(),
            duplicate_usages: create.duplicate_usages || !distinct(&usages),
            unknown_usages: create.unknown_usages || usages.iter().any(|u| !request::USAGES.contains(u)),
            approval: context.subresource == "approval",
            certificate: context.subresource == "status",
        }
    }
}

fn certificate_bytes(csr: &Value) -> Vec<u8> {
    STANDARD.decode(str_at(csr, &["status", "certificate"])).unwrap_or_default()
}

fn faults(csr: &Value, allow: Allow) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let bytes = request_bytes(csr);
    if let Some(fault) = request::fault(&bytes) {
        let given = get(csr, &["spec", "request"]).as_str().map(|_| bytes.as_slice());
        errs.push(field::invalid_shown(&path.child("request"), &go_print::bytes(given), &fault));
    }
    let usages = strings(csr, &["spec", "usages"]);
    let at = path.child("usages");
    if usages.is_empty() {
        errs.push(field::required(&at, "usages must be provided"));
    }
    let mut seen = BTreeSet::new();
    for (i, usage) in usages.into_iter().enumerate() {
        if !allow.unknown_usages && !request::USAGES.contains(&usage) {
            errs.push(field::not_supported(&at.index(i), usage, request::USAGES));
        }
        if !seen.insert(usage) && !allow.duplicate_usages {
            errs.push(field::duplicate(&at.index(i), usage));
        }
    }
    let signer = str_at(csr, &["spec", "signerName"]);
    let at = path.child("signerName");
    if signer == LEGACY_UNKNOWN && !allow.legacy_signer {
        errs.push(field::invalid(&at, signer, "the legacy signerName is not allowed via this API version"));
    } else {
        errs.extend(signer_name_faults(signer, &at));
    }
    errs.extend(condition_faults(csr, allow));
    if !allow.any_certificate
        && let Some(fault) = request::certificate_fault(&certificate_bytes(csr))
    {
        errs.push(field::invalid(&Path::new("status.certificate"), "<certificate data>", &fault));
    }
    errs
}

/// Faults of a signer's name: `<domain>/<path>`.
pub fn signer_name_faults(name: &str, path: &Path) -> ErrorList {
    if name.is_empty() {
        return vec![field::required(path, "signerName must be provided")];
    }
    let segments: Vec<&str> = name.split('/').collect();
    let [domain, rest] = segments[..] else {
        return vec![field::invalid(
            path,
            name,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        )];
    };
    let mut errs = ErrorList::new();
    if domain.len() > 253 {
        errs.push(field::too_long(path, 253));
    }
    let mut labels = |segment: &str, check: fn(&str) -> Vec<String>| {
        // Of several faulty labels the first is told.
        let faulty =
            segment.split('.').map(|label| (label, check(label))).find(|(_, faults)| !faults.is_empty());
        for (label, message) in
            faulty.into_iter().flat_map(|(l, faults)| faults.into_iter().map(move |m| (l, m)))
        {
            errs.push(field::invalid(path, segment, &format!("validating label {label:?}: {message}")));
        }
    };
    labels(domain, names::dns1123_label);
    let one_label = !domain.contains('.');
    labels(rest, names::dns1123_subdomain);
    if one_label {
        let why = "should be a domain with at least two segments separated by dots";
        errs.push(field::invalid(path, domain, why));
    }
    if name.len() > 253 + 253 + 63 + 2 {
        errs.push(field::too_long(path, 253 + 253 + 63 + 2));
    }
    errs
}

fn condition_faults(csr: &Value, allow: Allow) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (i, condition) in list_at(csr, &["status", "conditions"]).iter().enumerate() {
        let path = Path::new("status.conditions").index(i);
        let (type_, status) = (str_at(condition, &["type"]), str_at(condition, &["status"]));
        if type_.is_empty() && !allow.empty_condition_type {
            errs.push(field::required(&path.child("type"), ""));
        }
        let other = match type_ {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "\0",
        };
        if seen.contains(other) && !allow.both_verdicts {
            let why = "Approved and Denied conditions are mutually exclusive";
            errs.push(field::invalid(&path.child("type"), type_, why));
        }
        let known = ["Approved", "Denied", "Failed"].contains(&type_);
        let statuses: &[&str] = if known { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            errs.push(field::required(&path.child("status"), ""));
        } else if !statuses.contains(&status) {
            errs.push(field::not_supported(&path.child("status"), status, statuses));
        }
        if !seen.insert(type_) && !allow.duplicate_conditions {
            errs.push(field::duplicate(&path.child("type"), type_));
        }
    }
    errs
}

fn validate_update(new: &Value, old: &Value, context: &Context) -> ErrorList {
    let allow = Allow::on_update(old, context);
    let mut errs = faults(new, allow);
    let path = Path::new("status.conditions");
    for type_ in ["Approved", "Denied", "Failed"] {
        if of_type(new, type_).len() < of_type(old, type_).len() {
            let why = format!("updates may not remove a condition of type {type_:?}");
            errs.push(field::forbidden(&path, &why));
        }
    }
    for type_ in ["Approved", "Denied"].into_iter().filter(|_| !allow.approval) {
        let (before, after) = (of_type(old, type_), of_type(new, type_));
        if after.len() > before.len() {
            let why = format!("updates may not add a condition of type {type_:?}");
            errs.push(field::forbidden(&path, &why));
        } else if after.len() == before.len() && before != after {
            let why = format!("updates may not modify a condition of type {type_:?}");
            errs.push(field::forbidden(&path, &why));
        }
    }
    if get(new, &["status", "certificate"]) != get(old, &["status", "certificate"]) {
        let at = Path::new("status.certificate");
        if !allow.certificate {
            errs.push(field::forbidden(&at, "updates may not set certificate content"));
        } else if !is_beta(context) && has(old, &["status", "certificate"]) {
            errs.push(field::forbidden(&at, "updates may not modify existing certificate content"));
        }
    }
    errs
}

/// `Pending`, `Approved,Issued`, `Denied`, `Approved,Failed`.
pub fn condition_text(csr: &Value) -> String {
    let is = |type_| !of_type(csr, type_).is_empty();
    let mut text = if is("Denied") {
        "Denied"
    } else if is("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_string();
    if is("Failed") {
        text.push_str(",Failed");
    }
    if !str_at(csr, &["status", "certificate"]).is_empty() {
        text.push_str(",Issued");
    }
    text
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;

    fn context(api_version: &'static str, subresource: &'static str) -> Context {
        Context { release: Release::V1_20, subresource, api_version, allow_privileged: true, gates: &[] }
    }

    #[test]
    fn requests_are_pem() {
        let texts: Vec<String> =
            faults(&json!({"spec": {"request": null, "signerName": "a"}}), Allow::default())
                .iter()
                .map(ToString::to_string)
                .collect();
        assert_eq!(
            texts,
            [
                "spec.request: Invalid value: []byte(nil): PEM block type must be CERTIFICATE REQUEST",
                "spec.usages: Required value: usages must be provided",
                "spec.signerName: Invalid value: \"a\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ]
        );
        assert!(faults(&json!({"spec": {"request": ""}}), Allow::default())[0].body.contains("[]byte{}"));
    }

    #[test]
    fn signer_names() {
        let faults = |n: &str| signer_name_faults(n, &Path::new("s")).len();
        assert_eq!(faults("example.com/x"), 0);
        assert_eq!(faults("example/x"), 1);
        assert_eq!(faults("EXAMPLE.com/x"), 1);
        // Of two bad labels the first.
        assert_eq!(faults("A.B.com/x"), 1);
        assert_eq!(
            signer_name_faults("", &Path::new("s"))[0].to_string(),
            "s: Required value: signerName must be provided"
        );
    }

    #[test]
    fn a_beta_status_may_add_other_conditions() {
        let approved = json!({"type": "Approved", "status": "True", "reason": "r"});
        let failed = json!({"type": "Failed", "status": "True"});
        let old = json!({"spec": {}, "status": {"conditions": [approved]}});
        let beta = context("certificates.k8s.io/v1beta1", "status");
        let types = |conditions: Value| -> Vec<String> {
            let mut new = json!({"spec": {}, "status": {"conditions": conditions}});
            prepare_update(&mut new, &old, &beta);
            let of = |c: &Value| format!("{}{}", str_at(c, &["type"]), str_at(c, &["reason"]));
            list_at(&new, &["status", "conditions"]).iter().map(of).collect()
        };
        assert_eq!(types(json!([{"type": "Approved", "status": "True"}, failed])), ["Approvedr", "Failed"]);
        // Without the approval, nothing changes.
        assert_eq!(types(json!([failed])), ["Approvedr"]);
    }

    #[test]
    fn beta_defaults() {
        let mut csr = json!({"spec": {"request": ""}, "status": {"conditions": [{"type": "Approved"}]}});
        default(&mut csr, &context("certificates.k8s.io/v1beta1", ""));
        assert_eq!(csr["spec"]["signerName"], LEGACY_UNKNOWN);
        assert_eq!(csr["status"]["conditions"][0]["status"], "True");
    }

    #[test]
    fn verdicts_come_through_approval() {
        let old = json!({"spec": {"signerName": "a.b/c"}, "status": {}});
        let new = json!({"spec": {"signerName": "x"}, "status": {"conditions": [{"type": "Approved", "status": "True"}], "certificate": "eA=="}});
        let approval = context("certificates.k8s.io/v1", "approval");
        let mut approved = new.clone();
        prepare_update(&mut approved, &old, &approval);
        assert_eq!(approved["spec"], old["spec"]);
        assert!(!has(&approved, &["status", "certificate"]));
        assert!(has(&approved["status"]["conditions"][0], &["lastUpdateTime"]));
        let status = context("certificates.k8s.io/v1", "status");
        let errs = validate_update(&new, &old, &status);
        assert!(errs.iter().any(|e| e.body.contains("may not add a condition of type \"Approved\"")));
        assert_eq!(condition_text(&new), "Approved,Issued");
    }
}
