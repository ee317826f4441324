//! Checks of numbers, and of numbers or percentages, that workloads share.

use pilothouse_apimachinery::field::{self, Error, ErrorList, Path};
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::{go, names};

use super::access::{number, optional};

/// Text of the error of a negative number.
pub(crate) const NEGATIVE: &str = "must be greater than or equal to 0";

/// An error where a number field is negative.
pub(crate) fn nonnegative(v: &Value, key: &str, parent: &Path) -> Option<Error> {
    let n = optional(v, key)?;
    (n < 0).then(|| field::invalid(&parent.child(key), n, NEGATIVE))
}

/// An error for each of the fields that is negative, in the order given.
pub(crate) fn all_nonnegative(v: &Value, keys: &[&str], parent: &Path) -> ErrorList {
    keys.iter().filter_map(|key| nonnegative(v, key, parent)).collect()
}

/// An error for each pair whose first number is greater than the second, blamed on the first.
pub(crate) fn not_greater(v: &Value, pairs: &[(&str, &str, &str)], parent: &Path) -> ErrorList {
    pairs
        .iter()
        .filter(|(key, limit, _)| number(v, key) > number(v, limit))
        .map(|(key, _, message)| field::invalid(&parent.child(key), number(v, key), message))
        .collect()
}

/// `status.collisionCount` may only rise.
pub(crate) fn collision_count_rises(new: &Value, old: &Value, status: &Path) -> Option<Error> {
    let (new, old) = (optional(new, "collisionCount"), optional(old, "collisionCount")?);
    let value = new.unwrap_or(0);
    (new.is_none() || value < old)
        .then(|| field::invalid(&status.child("collisionCount"), value, "cannot be decremented"))
}

/// Faults of an `IntOrString` that is a number from 0 or a percentage.
pub(crate) fn int_or_percent(v: &Value, path: &Path) -> ErrorList {
    match v {
        Value::String(s) => {
            names::percent(s).iter().map(|m| field::invalid_shown(path, &go::int_or_string(v), m)).collect()
        }
        other => {
            let n = other.as_i64().unwrap_or(0);
            if n < 0 { vec![field::invalid(path, n, NEGATIVE)] } else { ErrorList::new() }
        }
    }
}

/// The number, or the number of percents; 0 for text that is neither.
pub(crate) fn int_or_percent_value(v: &Value) -> i64 {
    match v {
        Value::String(s) => s.strip_suffix('%').unwrap_or(s).parse().unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    }
}

/// An error where a percentage is over 100.
pub(crate) fn at_most_100_percent(v: &Value, path: &Path) -> Option<Error> {
    let s = v.as_str()?;
    let over = names::percent(s).is_empty() && int_or_percent_value(v) > 100;
    over.then(|| field::invalid_shown(path, &go::int_or_string(v), "must not be greater than 100%"))
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn percentages() {
        let p = Path::new("m");
        assert!(int_or_percent(&json!("25%"), &p).is_empty());
        let texts: Vec<String> = int_or_percent(&json!(""), &p).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "m: Invalid value: intstr.IntOrString{Type:1, IntVal:0, StrVal:\"\"}: a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
            ]
        );
        assert_eq!(
            int_or_percent(&json!(-1), &p)[0].to_string(),
            "m: Invalid value: -1: must be greater than or equal to 0"
        );
        assert!(at_most_100_percent(&json!("101%"), &p).is_some());
        assert!(at_most_100_percent(&json!(101), &p).is_none());
    }

    #[test]
    fn collisions_never_fall() {
        let p = Path::new("status");
        assert!(
            collision_count_rises(&json!({"collisionCount": 2}), &json!({"collisionCount": 1}), &p).is_none()
        );
        assert!(collision_count_rises(&json!({}), &json!({"collisionCount": 1}), &p).is_some());
    }
}
