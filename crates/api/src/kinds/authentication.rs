//! Reviews of `authentication.k8s.io`: who is this? Only ever posted, never stored.

use pilothouse_apimachinery::json::{json, set_default};

use super::{Kind, Version};

const GROUP: &str = "authentication.k8s.io";

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&TOKEN_REVIEW, &SELF_SUBJECT_REVIEW];

/// `TokenReview`.
pub static TOKEN_REVIEW: Kind = Kind {
    namespaced: false,
    verbs: &["create"],
    default: |review, _| set_default(review, &["status"], json!({})),
    ..Kind::new(
        "TokenReview",
        "tokenreviews",
        "tokenreview",
        &[Version::always(GROUP, "v1"), Version::always(GROUP, "v1beta1")],
    )
};

/// `SelfSubjectReview`.
pub static SELF_SUBJECT_REVIEW: Kind = Kind {
    namespaced: false,
    verbs: &["create"],
    ..Kind::new(
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
        &[Version::newer(GROUP, "v1"), Version::newer(GROUP, "v1beta1")],
    )
};
