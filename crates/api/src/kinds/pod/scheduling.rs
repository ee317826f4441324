//! Validation of what a pod asks of the scheduler: affinity, tolerations, topology spread.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::selector::validate_label_selector;
use pilothouse_apimachinery::{go, names};

use super::Rules;
use crate::kinds::access::{items, number, part, present, text};
use crate::kinds::checks::{invalid_each, node_selector};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Faults of `affinity`.
pub(super) fn affinity(affinity: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let mut errs = ErrorList::new();
    if present(affinity, "nodeAffinity") {
        errs.extend(node_affinity(part(affinity, "nodeAffinity"), &path.child("nodeAffinity")));
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        errs.extend(pod_affinity(part(affinity, key), &path.child(key), rules));
    }
    errs
}

fn node_affinity(affinity: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if present(affinity, REQUIRED) {
        errs.extend(node_selector(part(affinity, REQUIRED), &path.child(REQUIRED)));
    }
    for (i, term) in items(affinity, PREFERRED).iter().enumerate() {
        let at = path.child(PREFERRED).index(i);
        errs.extend(weight(term, &at));
        // A preference is one term; the check of a selector names the list it would stand in.
        let selector = json!({ "nodeSelectorTerms": [part(term, "preference")] });
        let (marker, preference) = (Path::new("nodeSelectorTerms[0]"), at.child("preference"));
        for mut error in node_selector(&selector, &Path::default()) {
            error.field = error.field.replacen(&marker.to_string(), &preference.to_string(), 1);
            errs.push(error);
        }
    }
    errs
}

fn weight(term: &Value, path: &Path) -> Option<field::Error> {
    let weight = number(term, "weight");
    (!(1..=100).contains(&weight))
        .then(|| field::invalid(&path.child("weight"), weight, "must be in the range 1-100"))
}

fn pod_affinity(affinity: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, term) in items(affinity, REQUIRED).iter().enumerate() {
        errs.extend(pod_affinity_term(term, &path.child(REQUIRED).index(i), rules));
    }
    for (i, term) in items(affinity, PREFERRED).iter().enumerate() {
        let at = path.child(PREFERRED).index(i);
        errs.extend(weight(term, &at));
        errs.extend(pod_affinity_term(part(term, "podAffinityTerm"), &at.child("podAffinityTerm"), rules));
    }
    errs
}

fn pod_affinity_term(term: &Value, path: &Path, rules: &Rules) -> ErrorList {
    // v1.20 blames a field that is not there.
    let selector = if rules.today { "labelSelector" } else { "matchExpressions" };
    let mut errs = validate_label_selector(part(term, "labelSelector"), &path.child(selector));
    if rules.today {
        errs.extend(validate_label_selector(
            part(term, "namespaceSelector"),
            &path.child("namespaceSelector"),
        ));
    }
    for namespace in items(term, "namespaces") {
        let name = namespace.as_str().unwrap_or("");
        errs.extend(invalid_each(&path.child("namespace"), name, names::dns1123_label_name(name, false)));
    }
    let key = text(term, "topologyKey");
    if key.is_empty() {
        errs.push(field::required(&path.child("topologyKey"), "can not be empty"));
    }
    errs.extend(names::label_name(key, &path.child("topologyKey")));
    errs
}

/// Faults of tolerations.
pub(crate) fn tolerations(list: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, toleration) in list.iter().enumerate() {
        let at = path.index(i);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        let (value, effect) = (text(toleration, "value"), text(toleration, "effect"));
        if !key.is_empty() {
            errs.extend(names::label_name(key, &at.child("key")));
        }
        let at_operator = at.child("operator");
        if key.is_empty() && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errs.push(field::invalid(&at_operator, operator, detail));
        }
        if present(toleration, "tolerationSeconds") && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errs.push(field::invalid(&at.child("effect"), effect, detail));
        }
        match operator {
            "Equal" | "" => {
                let faults = names::label_value(value);
                if !faults.is_empty() {
                    errs.push(field::invalid(&at_operator, value, &faults.join(";")));
                }
            }
            "Exists" if value.is_empty() => {}
            "Exists" => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errs.push(field::invalid_shown(&at_operator, &show_toleration(toleration), detail));
            }
            other => errs.push(field::not_supported(&at_operator, other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() && !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            let supported = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
            errs.push(field::not_supported(&at.child("effect"), effect, supported));
        }
    }
    errs
}

fn show_toleration(toleration: &Value) -> String {
    let quoted = |key: &str| go::quote(text(toleration, key));
    let seconds = match part(toleration, "tolerationSeconds") {
        Value::Null => "(*int64)(nil)".to_string(),
        n => n.to_string(),
    };
    format!(
        "core.Toleration{{Key:{}, Operator:{}, Value:{}, Effect:{}, TolerationSeconds:{seconds}}}",
        quoted("key"),
        quoted("operator"),
        quoted("value"),
        quoted("effect")
    )
}

/// Faults of `topologySpreadConstraints`.
pub(super) fn topology_spread(list: &[Value], path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    for (i, constraint) in list.iter().enumerate() {
        let at = path.index(i);
        let skew = number(constraint, "maxSkew");
        if skew <= 0 {
            errs.push(field::invalid(&at.child("maxSkew"), skew, "must be greater than zero"));
        }
        let (key, action) = (text(constraint, "topologyKey"), text(constraint, "whenUnsatisfiable"));
        if key.is_empty() {
            errs.push(field::required(&at.child("topologyKey"), "can not be empty"));
        }
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action) {
            let supported = &["DoNotSchedule", "ScheduleAnyway"];
            errs.push(field::not_supported(&at.child("whenUnsatisfiable"), action, supported));
        }
        let repeated = list[i + 1..]
            .iter()
            .any(|c| text(c, "topologyKey") == key && text(c, "whenUnsatisfiable") == action);
        if repeated {
            let at = at.child("{topologyKey, whenUnsatisfiable}");
            errs.push(field::duplicate(&at, format!("{{{key}, {action}}}")));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules { allow_privileged: true, today: false };

    fn texts(errs: ErrorList) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn affinities() {
        let a = json!({
            "nodeAffinity": {PREFERRED: [{"weight": 0, "preference": {"matchExpressions": [{"key": "a", "operator": ""}]}}]},
            "podAntiAffinity": {REQUIRED: [{"labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}, "topologyKey": "zone"}]},
        });
        assert_eq!(
            texts(affinity(&a, &Path::new("a"), &RULES)),
            [
                format!("a.nodeAffinity.{PREFERRED}[0].weight: Invalid value: 0: must be in the range 1-100"),
                format!(
                    "a.nodeAffinity.{PREFERRED}[0].preference.matchExpressions[0].operator: Invalid value: \"\": not a valid selector operator"
                ),
                format!(
                    "a.podAntiAffinity.{REQUIRED}[0].matchExpressions.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"
                ),
            ]
        );
    }

    #[test]
    fn tolerations_of_all_sorts() {
        let list = [
            json!({"operator": "Exists"}),
            json!({"operator": "", "effect": "NoExecute", "tolerationSeconds": 3}),
            json!({"key": "k", "operator": "-x"}),
            json!({"key": "k", "operator": "Exists", "value": "v", "effect": "Never"}),
        ];
        assert_eq!(
            texts(tolerations(&list, &Path::new("t"))),
            [
                "t[1].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
                "t[2].operator: Unsupported value: \"-x\": supported values: \"Equal\", \"Exists\"",
                "t[3].operator: Invalid value: core.Toleration{Key:\"k\", Operator:\"Exists\", Value:\"v\", Effect:\"Never\", TolerationSeconds:(*int64)(nil)}: value must be empty when `operator` is 'Exists'",
                "t[3].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
            ]
        );
    }

    #[test]
    fn spread_constraints() {
        let c = json!({"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"});
        let errs = texts(topology_spread(&[c.clone(), c], &Path::new("s")));
        assert_eq!(
            errs[1],
            "s[0].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{zone, DoNotSchedule}\""
        );
    }
}
