//! Reviews of `authorization.k8s.io`: who may do what? Only ever posted, never stored.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, get, has, list_at, map_at, str_at};

use super::{Kind, Version};

const GROUP: &str = "authorization.k8s.io";

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[
    &LOCAL_SUBJECT_ACCESS_REVIEW,
    &SELF_SUBJECT_ACCESS_REVIEW,
    &SELF_SUBJECT_RULES_REVIEW,
    &SUBJECT_ACCESS_REVIEW,
];

const PLAIN: &[Version] = &[Version::always(GROUP, "v1"), Version::always(GROUP, "v1beta1")];

/// The older version spells `groups` in the singular.
const GROUPS_RENAMED: &[Version] = &[
    Version::always(GROUP, "v1"),
    Version {
        to_hub: Some(|review| rename(review, "group", "groups")),
        from_hub: Some(|review| rename(review, "groups", "group")),
        ..Version::always(GROUP, "v1beta1")
    },
];

/// `SubjectAccessReview`.
pub static SUBJECT_ACCESS_REVIEW: Kind = Kind {
    namespaced: false,
    verbs: &["create"],
    validate: |review, _| [spec_faults(review, true), bare_metadata(review)].concat(),
    ..Kind::new("SubjectAccessReview", "subjectaccessreviews", "subjectaccessreview", GROUPS_RENAMED)
};

/// `LocalSubjectAccessReview`.
pub static LOCAL_SUBJECT_ACCESS_REVIEW: Kind = Kind {
    verbs: &["create"],
    validate: |review, _| local_faults(review),
    ..Kind::new(
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        GROUPS_RENAMED,
    )
};

/// `SelfSubjectAccessReview`.
pub static SELF_SUBJECT_ACCESS_REVIEW: Kind = Kind {
    namespaced: false,
    verbs: &["create"],
    validate: |review, _| [spec_faults(review, false), bare_metadata(review)].concat(),
    ..Kind::new("SelfSubjectAccessReview", "selfsubjectaccessreviews", "selfsubjectaccessreview", PLAIN)
};

/// `SelfSubjectRulesReview`.
pub static SELF_SUBJECT_RULES_REVIEW: Kind = Kind {
    namespaced: false,
    verbs: &["create"],
    ..Kind::new("SelfSubjectRulesReview", "selfsubjectrulesreviews", "selfsubjectrulesreview", PLAIN)
};

fn rename(review: &mut Value, from: &str, to: &str) {
    if let Some(spec) = review.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(value) = spec.remove(from)
    {
        spec.insert(to, value);
    }
}

fn spec_faults(review: &Value, with_user: bool) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let resource = has(review, &["spec", "resourceAttributes"]);
    let other = has(review, &["spec", "nonResourceAttributes"]);
    if resource && other {
        errs.push(field::invalid_shown(
            &path.child("nonResourceAttributes"),
            &shown_path_and_verb(get(review, &["spec", "nonResourceAttributes"])),
            "cannot be specified in combination with resourceAttributes",
        ));
    }
    if !resource && !other {
        errs.push(field::invalid(
            &path.child("resourceAttributes"),
            "null",
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    if with_user
        && str_at(review, &["spec", "user"]).is_empty()
        && list_at(review, &["spec", "groups"]).is_empty()
    {
        errs.push(field::invalid(&path.child("user"), "", "at least one of user or group must be specified"));
    }
    errs
}

fn shown_path_and_verb(attributes: &Value) -> String {
    use crate::go_print::{quoted, structure};
    structure(
        "authorization.NonResourceAttributes",
        &[("Path", quoted(str_at(attributes, &["path"]))), ("Verb", quoted(str_at(attributes, &["verb"])))],
    )
}

/// An error where `metadata` holds more than what the server itself puts there.
fn bare_metadata(review: &Value) -> ErrorList {
    metadata_faults(review, &[], "must be empty")
}

fn metadata_faults(review: &Value, allowed: &[&str], why: &str) -> ErrorList {
    let extra = map_at(review, &["metadata"]).into_iter().flatten().any(|(name, value)| {
        !["creationTimestamp", "managedFields", "uid"].contains(&name.as_str())
            && !allowed.contains(&name.as_str())
            && !value.is_null()
    });
    if extra {
        vec![field::invalid(&Path::new("metadata"), get(review, &["metadata"]).clone(), why)]
    } else {
        ErrorList::new()
    }
}

fn local_faults(review: &Value) -> ErrorList {
    let mut errs = spec_faults(review, true);
    errs.extend(metadata_faults(review, &["namespace"], "must be empty except for namespace"));
    let path = Path::new("spec");
    let namespace = str_at(review, &["spec", "resourceAttributes", "namespace"]);
    if has(review, &["spec", "resourceAttributes"]) && namespace != str_at(review, &["metadata", "namespace"])
    {
        errs.push(field::invalid(
            &path.child("resourceAttributes").child("namespace"),
            namespace,
            "must match metadata.namespace",
        ));
    }
    let other = get(review, &["spec", "nonResourceAttributes"]);
    if !other.is_null() {
        errs.push(field::invalid_shown(
            &path.child("nonResourceAttributes"),
            &shown_path_and_verb(other),
            "disallowed on this kind of request",
        ));
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn empty_review() {
        let texts: Vec<String> =
            spec_faults(&json!({"spec": {}}), true).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.resourceAttributes: Invalid value: \"null\": exactly one of nonResourceAttributes or resourceAttributes must be specified",
                "spec.user: Invalid value: \"\": at least one of user or group must be specified",
            ]
        );
    }

    #[test]
    fn local_namespace_must_match() {
        let review = json!({"metadata": {"namespace": "a"}, "spec": {"user": "u", "resourceAttributes": {"namespace": "b"}}});
        assert_eq!(local_faults(&review)[0].field, "spec.resourceAttributes.namespace");
    }

    #[test]
    fn groups_in_the_singular() {
        let mut review = json!({"spec": {"group": ["g"]}});
        rename(&mut review, "group", "groups");
        assert_eq!(review, json!({"spec": {"groups": ["g"]}}));
    }
}
