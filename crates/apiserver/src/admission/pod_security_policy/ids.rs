//! The strategies about users, groups and SELinux.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::Value;

use crate::json::{get, i64_at, list_at, str_at};

/// Whether an id lies in one of a strategy's ranges.
fn in_ranges(strategy: &Value, id: i64) -> bool {
    list_at(strategy, &["ranges"])
        .iter()
        .any(|r| (i64_at(r, &["min"]).unwrap_or(0)..=i64_at(r, &["max"]).unwrap_or(0)).contains(&id))
}

/// Ranges as Go prints a list of structs: `[{1 65535}]`.
fn shown(strategy: &Value) -> String {
    let one =
        |r: &Value| format!("{{{} {}}}", i64_at(r, &["min"]).unwrap_or(0), i64_at(r, &["max"]).unwrap_or(0));
    format!("[{}]", list_at(strategy, &["ranges"]).iter().map(one).collect::<Vec<_>>().join(" "))
}

/// The id that a strategy gives where none is asked for.
pub(super) fn generated(strategy: &Value) -> Option<i64> {
    (str_at(strategy, &["rule"]) == "MustRunAs")
        .then(|| i64_at(list_at(strategy, &["ranges"]).first()?, &["min"]))?
}

/// Faults of a container's user; `path` is that of its security context.
pub(super) fn user(
    strategy: &Value,
    path: &Path,
    non_root: Option<bool>,
    user: Option<i64>,
) -> Option<field::Error> {
    match (str_at(strategy, &["rule"]), user) {
        ("MustRunAs", None) => Some(field::required(&path.child("runAsUser"), "")),
        ("MustRunAs", Some(id)) if !in_ranges(strategy, id) => {
            let detail = format!("must be in the ranges: {}", shown(strategy));
            Some(field::invalid(&path.child("runAsUser"), id, &detail))
        }
        ("MustRunAsNonRoot", None) if non_root.is_none() => {
            Some(field::required(&path.child("runAsNonRoot"), "must be true"))
        }
        ("MustRunAsNonRoot", _) if non_root == Some(false) => {
            Some(field::invalid(&path.child("runAsNonRoot"), false, "must be true"))
        }
        ("MustRunAsNonRoot", Some(0)) => {
            Some(field::invalid(&path.child("runAsUser"), 0, "running with the root UID is forbidden"))
        }
        _ => None,
    }
}

/// Faults of groups.
pub(super) fn groups(strategy: &Value, path: &Path, groups: &[i64]) -> ErrorList {
    let list: Vec<String> = groups.iter().map(ToString::to_string).collect();
    let go = if groups.is_empty() {
        "[]int64(nil)".to_string()
    } else {
        format!("[]int64{{{}}}", list.join(", "))
    };
    let rule = str_at(strategy, &["rule"]);
    if rule == "MustRunAs" && groups.is_empty() && !list_at(strategy, &["ranges"]).is_empty() {
        return vec![field::invalid_shown(
            path,
            &go,
            "unable to validate empty groups against required ranges",
        )];
    }
    if !matches!(rule, "MustRunAs" | "MayRunAs") {
        return ErrorList::new();
    }
    groups
        .iter()
        .filter(|g| !in_ranges(strategy, **g))
        .map(|g| {
            field::invalid_shown(path, &go, &format!("group {g} must be in the ranges: {}", shown(strategy)))
        })
        .collect()
}

/// The categories of a level of SELinux, in any order: `s0:c1,c0`.
fn level(text: &str) -> (String, Vec<String>) {
    let (sensitivity, categories) = text.split_once(':').unwrap_or((text, ""));
    let mut categories: Vec<String> = categories.split(',').map(String::from).collect();
    categories.sort();
    (sensitivity.to_string(), categories)
}

/// Faults of SELinux options; `path` is theirs.
pub(super) fn selinux(strategy: &Value, path: &Path, options: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if str_at(strategy, &["rule"]) != "MustRunAs" {
        return errors;
    }
    if !options.is_object() {
        errors.push(field::required(path, ""));
        return errors;
    }
    let wanted = get(strategy, &["seLinuxOptions"]);
    for key in ["level", "role", "type", "user"] {
        let (is, must) = (str_at(options, &[key]), str_at(wanted, &[key]));
        let same = if key == "level" { level(is) == level(must) } else { is == must };
        if !same {
            errors.push(field::invalid(&path.child(key), is, &format!("must be {must}")));
        }
    }
    errors
}
