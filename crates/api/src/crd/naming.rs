//! The naming of custom resources: which names a CustomResourceDefinition gets, and the conditions that say so.
//!
//! Plain functions; the server runs them when definitions change.

use std::collections::BTreeSet;

use pilothouse_apimachinery::json::{self, Value, get, json, list_at, str_at};

/// Sets a condition: replaces the one of its type. The time of the last transition changes with the status only.
pub fn set_condition(crd: &mut Value, mut condition: Value, now: &str) {
    let conditions = json::ensure_list(crd, &["status", "conditions"]);
    let old = conditions.iter_mut().find(|c| c["type"] == condition["type"]);
    let same = old.as_ref().is_some_and(|o| o["status"] == condition["status"]);
    let time = old.as_ref().filter(|_| same).map(|o| o["lastTransitionTime"].clone());
    json::set(&mut condition, &["lastTransitionTime"], time.unwrap_or_else(|| Value::from(now)));
    match old {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
}

fn condition(type_: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": type_, "status": status, "reason": reason, "message": message})
}

fn find<'v>(crd: &'v Value, type_: &str) -> Option<&'v Value> {
    list_at(crd, &["status", "conditions"]).iter().find(|c| c["type"] == type_)
}

/// Whether a condition is true.
pub fn is_true(crd: &Value, type_: &str) -> bool {
    find(crd, type_).is_some_and(|c| c["status"] == "True")
}

/// Gives a definition the names it asks for, as far as no other definition of its group has them, with the conditions
/// `NamesAccepted` and `Established` (not yet true). `others` are all definitions, in any group, itself included or not.
/// `None` where nothing changes.
pub fn accept_names(crd: &Value, others: &[Value], now: &str) -> Option<Value> {
    let requested = get(crd, &["spec", "names"]);
    let accepted = get(crd, &["status", "acceptedNames"]);
    if requested == accepted {
        return None;
    }
    let name = str_at(crd, &["metadata", "name"]);
    let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for other in others.iter().filter(|o| get(o, &["spec", "group"]) == get(crd, &["spec", "group"])) {
        let names = get(
            if str_at(other, &["metadata", "name"]) == name { crd } else { other },
            &["status", "acceptedNames"],
        );
        resources.extend([str_at(names, &["plural"]), str_at(names, &["singular"])]);
        resources.extend(list_at(names, &["shortNames"]).iter().filter_map(Value::as_str));
        kinds.extend([str_at(names, &["kind"]), str_at(names, &["listKind"])]);
    }
    resources.remove("");
    kinds.remove("");

    let mut new = if accepted.is_object() { accepted.clone() } else { json!({}) };
    let mut conflict: Option<(&str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (field, used, reason) in [
        ("plural", &resources, "PluralConflict"),
        ("singular", &resources, "SingularConflict"),
        ("shortNames", &resources, "ShortNamesConflict"),
        ("kind", &kinds, "KindConflict"),
        ("listKind", &kinds, "ListKindConflict"),
    ] {
        if field == "shortNames" {
            let own = list_at(accepted, &[field]);
            let taken: Vec<String> = list_at(requested, &[field])
                .iter()
                .filter(|n| !own.contains(n))
                .filter_map(Value::as_str)
                .filter(|n| used.contains(n))
                .map(in_use)
                .collect();
            match taken.as_slice() {
                [] => json::copy(&mut new, requested, &[field]),
                [one] => conflict = Some((reason, one.clone())),
                many => conflict = Some((reason, format!("[{}]", many.join(", ")))),
            }
            continue;
        }
        let wanted = str_at(requested, &[field]);
        if wanted != str_at(accepted, &[field]) && used.contains(wanted) {
            conflict = Some((reason, in_use(wanted)));
        } else {
            json::copy(&mut new, requested, &[field]);
        }
    }
    json::copy(&mut new, requested, &["categories"]);

    let naming = match &conflict {
        Some((reason, message)) => condition("NamesAccepted", "False", reason, message),
        None => condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
    };
    let same = |c: &Value| ["status", "reason", "message"].iter().all(|f| c[*f] == naming[*f]);
    if &new == accepted && find(crd, "NamesAccepted").is_some_and(same) {
        return None;
    }
    let mut established = find(crd, "Established")
        .cloned()
        .unwrap_or_else(|| condition("Established", "False", "NotAccepted", "not all names are accepted"));
    if established["status"] != "True" && conflict.is_none() {
        let message = "the initial names have been accepted";
        established = condition("Established", "False", "Installing", message);
    }
    let mut out = crd.clone();
    json::set(&mut out, &["status", "acceptedNames"], new);
    set_condition(&mut out, naming, now);
    set_condition(&mut out, established, now);
    Some(out)
}

/// Says that a definition whose names are accepted is served from now on. `None` where nothing changes.
pub fn establish(crd: &Value, now: &str) -> Option<Value> {
    if !is_true(crd, "NamesAccepted") || is_true(crd, "Established") {
        return None;
    }
    let mut out = crd.clone();
    let message = "the initial names have been accepted";
    set_condition(&mut out, condition("Established", "True", "InitialNamesAccepted", message), now);
    Some(out)
}

/// Says that the definition's objects are about to be deleted, or how far that is.
pub fn terminating(crd: &Value, status: &str, reason: &str, message: &str, now: &str) -> Value {
    let mut out = crd.clone();
    set_condition(&mut out, condition("Terminating", status, reason, message), now);
    out
}

/// The condition `NonStructuralSchema`, from the faults of the schemas. `None` where nothing changes.
pub fn non_structural(crd: &Value, faults: &[String], now: &str) -> Option<Value> {
    let message = match faults {
        [] => String::new(),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    let old = find(crd, "NonStructuralSchema");
    if message.is_empty() {
        old?;
        let mut out = crd.clone();
        json::ensure_list(&mut out, &["status", "conditions"]).retain(|c| c["type"] != "NonStructuralSchema");
        return Some(out);
    }
    if old.is_some_and(|c| c["message"] == message.as_str() && c["status"] == "True") {
        return None;
    }
    let mut out = crd.clone();
    set_condition(&mut out, condition("NonStructuralSchema", "True", "Violations", &message), now);
    Some(out)
}
