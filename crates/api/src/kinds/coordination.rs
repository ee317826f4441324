//! `Lease`, by which leaders and nodes show that they are alive, and `LeaseCandidate`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, i64_at, str_at};
use pilothouse_apimachinery::version::Release;

use super::columns::{AGE, NAME, text};
use super::{Context, Kind, RowContext, Version};
use crate::table::{age_cell, name_cell};

const GROUP: &str = "coordination.k8s.io";

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&LEASE, &LEASE_CANDIDATE];

/// `Lease`.
pub static LEASE: Kind = Kind {
    create_on_update: true,
    allow_unconditional_update: false,
    storage_version: "coordination.k8s.io/v1",
    validate: faults,
    validate_update: |new, _, context| faults(new, context),
    columns: &[
        NAME,
        text("Holder", "holderIdentity contains the identity of the holder of a current lease."),
        AGE,
    ],
    row: |lease: &Value, context: &RowContext| {
        vec![name_cell(lease), str_at(lease, &["spec", "holderIdentity"]).into(), age_cell(lease, context)]
    },
    ..Kind::new(
        "Lease",
        "leases",
        "lease",
        &[Version::always(GROUP, "v1"), Version::always(GROUP, "v1beta1")],
    )
};

/// `LeaseCandidate`.
pub static LEASE_CANDIDATE: Kind = Kind {
    create_on_update: true,
    allow_unconditional_update: false,
    storage_version: "coordination.k8s.io/v1beta1",
    validate: candidate_faults,
    validate_update: |new, _, context| candidate_faults(new, context),
    ..Kind::new("LeaseCandidate", "leasecandidates", "leasecandidate", &[Version::newer(GROUP, "v1beta1")])
};

fn faults(lease: &Value, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    if let Some(seconds) = i64_at(lease, &["spec", "leaseDurationSeconds"]).filter(|s| *s <= 0) {
        errs.push(field::invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0"));
    }
    if let Some(n) = i64_at(lease, &["spec", "leaseTransitions"]).filter(|n| *n < 0) {
        let word = if context.release == Release::V1_20 { "to" } else { "be" };
        let why = format!("must {word} greater or equal than 0");
        errs.push(field::invalid(&path.child("leaseTransitions"), n, &why));
    }
    errs
}

fn candidate_faults(candidate: &Value, _context: &Context) -> ErrorList {
    ["leaseName", "binaryVersion", "strategy"]
        .iter()
        .filter(|name| str_at(candidate, &["spec", name]).is_empty())
        .map(|name| field::required(&Path::new("spec").child(name), ""))
        .collect()
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;

    #[test]
    fn lease_faults() {
        let texts = |release| -> Vec<String> {
            let context = Context {
                release,
                subresource: "",
                api_version: "coordination.k8s.io/v1",
                allow_privileged: true,
                gates: &[],
            };
            let lease = json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}});
            faults(&lease, &context).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            texts(NEWEST),
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater or equal than 0",
            ]
        );
        assert!(texts(Release::V1_20)[1].ends_with("must to greater or equal than 0"));
    }
}
