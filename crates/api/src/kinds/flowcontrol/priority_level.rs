//! `PriorityLevelConfiguration`: how many requests of a level run at once, and how the others wait.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Value, copy, get, get_i64, get_mut, has, i64_at, json, remove, set, set_default, str_at,
};

use super::GROUP;
use super::flow_schema::condition_faults;
use crate::kinds::checks::metadata_for_status;
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::{Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell};

const OLD_SHARES: &[&str] = &["spec", "limited", "assuredConcurrencyShares"];
const NEW_SHARES: &[&str] = &["spec", "limited", "nominalConcurrencyShares"];

/// A version in which the shares have their newer name.
const fn renamed(version: &'static str) -> Version {
    Version {
        to_hub: Some(|level| rename(level, NEW_SHARES, OLD_SHARES)),
        from_hub: Some(|level| rename(level, OLD_SHARES, NEW_SHARES)),
        ..Version::newer(GROUP, version)
    }
}

/// The kind.
pub static PRIORITY_LEVEL_CONFIGURATION: Kind = Kind {
    namespaced: false,
    has_generation: true,
    storage_version: "flowcontrol.apiserver.k8s.io/v1beta1",
    subresources: &[STATUS],
    default,
    prepare_create: |level, _| set(level, &["status"], json!({})),
    prepare_update: |new, old, context| {
        if context.subresource == "status" {
            copy(new, old, &["spec"]);
            metadata_for_status(new, old);
        } else {
            copy(new, old, &["status"]);
        }
    },
    validate: |level, context| [spec_faults(level, context), condition_faults(level)].concat(),
    validate_update: |new, _, context| match context.subresource {
        "status" => condition_faults(new),
        _ => [spec_faults(new, context), condition_faults(new)].concat(),
    },
    columns: &[
        NAME,
        text(
            "Type",
            "`type` indicates whether this priority level is subject to limitation on request execution.  A value of `\"Exempt\"` means that requests of this priority level are not subject to a limit (and thus are never queued) and do not detract from the capacity made available to other priority levels.  A value of `\"Limited\"` means that (a) requests of this priority level _are_ subject to limits and (b) some of the server's limited capacity is made available exclusively to this priority level. Required.",
        ),
        text(
            "AssuredConcurrencyShares",
            "`assuredConcurrencyShares` (ACS) configures the execution limit, which is a limit on the number of requests of this priority level that may be exeucting at a given time.  ACS must be a positive number. The server's concurrency limit (SCL) is divided among the concurrency-controlled priority levels in proportion to their assured concurrency shares. This produces the assured concurrency value (ACV) ",
        ),
        text(
            "Queues",
            "`queues` is the number of queues for this priority level. The queues exist independently at each apiserver. The value must be positive.  Setting it to 1 effectively precludes shufflesharding and thus makes the distinguisher method of associated flow schemas irrelevant.  This field has a default value of 64.",
        ),
        text(
            "HandSize",
            "`handSize` is a small positive number that configures the shuffle sharding of requests into queues.  When enqueuing a request at this priority level the request's flow identifier (a string pair) is hashed and the hash value is used to shuffle the list of queues and deal a hand of the size specified here.  The request is put into one of the shortest queues in that hand. `handSize` must be no larger than `queues`, and should be significantly smaller (so that a few heavy flows do not saturate most of the queues).  See the user-facing documentation for more extensive guidance on setting this field.  This field has a default value of 8.",
        ),
        text(
            "QueueLengthLimit",
            "`queueLengthLimit` is the maximum number of requests allowed to be waiting in a given queue of this priority level at a time; excess requests are rejected.  This value must be positive.  If not specified, it will be defaulted to 50.",
        ),
        AGE,
    ],
    row,
    update_checks: (1, 0),
    ..Kind::new(
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration",
        &[
            Version::always(GROUP, "v1beta1"),
            renamed("v1"),
            renamed("v1beta3"),
            Version::newer(GROUP, "v1beta2"),
        ],
    )
};

fn rename(level: &mut Value, from: &[&str], to: &[&str]) {
    if let Some(value) = remove(level, from) {
        set(level, to, value);
    }
}

/// Whether the request's version has the newer name of the shares; there, 0 is a value of its own.
fn is_renamed(context: &Context) -> bool {
    context.api_version.ends_with("/v1") || context.api_version.ends_with("/v1beta3")
}

fn default(level: &mut Value, context: &Context) {
    let Some(limited) = get_mut(level, &["spec", "limited"]).filter(|l| l.is_object()) else { return };
    let shares = i64_at(limited, &["assuredConcurrencyShares"]);
    if shares.is_none() || (shares == Some(0) && !is_renamed(context)) {
        set(limited, &["assuredConcurrencyShares"], 30);
    }
    if let Some(queuing) = get_mut(limited, &["limitResponse", "queuing"]).filter(|q| q.is_object()) {
        for (name, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            if get_i64(queuing, &[name]) == 0 {
                set(queuing, &[name], value);
            }
        }
    }
    if context.release > pilothouse_apimachinery::version::Release::V1_20 {
        set_default(limited, &["lendablePercent"], 0);
    }
}

fn spec_faults(level: &Value, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let (name, type_) = (str_at(level, &["metadata", "name"]), str_at(level, &["spec", "type"]));
    if (name == "exempt") != (type_ == "Exempt") {
        let why = "type must be 'Exempt' if and only if name is 'exempt'";
        errs.push(field::invalid(&path.child("type"), type_, why));
    }
    let limited = get(level, &["spec", "limited"]);
    let at = path.child("limited");
    match type_ {
        "Exempt" => {
            if !limited.is_null() {
                errs.push(field::forbidden(&at, "must be nil if the type is not Limited"));
            }
        }
        "Limited" => {
            if limited.is_null() {
                errs.push(field::required(&at, "must not be empty when type is Limited"));
            } else {
                errs.extend(limited_faults(limited, &at, context));
            }
        }
        _ => errs.push(field::not_supported(&path.child("type"), type_, &["Exempt", "Limited"])),
    }
    errs
}

fn limited_faults(limited: &Value, path: &Path, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let shares = get_i64(limited, &["assuredConcurrencyShares"]);
    if is_renamed(context) {
        if shares < 0 {
            let at = path.child("nominalConcurrencyShares");
            errs.push(field::invalid(&at, shares, "must be a non-negative integer"));
        }
    } else if shares <= 0 {
        errs.push(field::invalid(&path.child("assuredConcurrencyShares"), shares, "must be positive"));
    }
    let path = path.child("limitResponse");
    let response = get(limited, &["limitResponse"]);
    let queuing = get(response, &["queuing"]);
    match str_at(response, &["type"]) {
        "Reject" => {
            if !queuing.is_null() {
                let why = "must be nil if limited.limitResponse.type is not Limited";
                errs.push(field::forbidden(&path.child("queuing"), why));
            }
        }
        "Queue" => {
            if has(response, &["queuing"]) {
                errs.extend(queuing_faults(queuing, &path.child("queuing")));
            } else {
                let why = "must not be empty if limited.limitResponse.type is Limited";
                errs.push(field::required(&path.child("queuing"), why));
            }
        }
        other => errs.push(field::not_supported(&path.child("type"), other, &["Queue", "Reject"])),
    }
    errs
}

fn queuing_faults(queuing: &Value, path: &Path) -> ErrorList {
    const MOST_QUEUES: i64 = 10_000_000;
    const HASH_BITS: i64 = 60;
    let mut errs = ErrorList::new();
    let number = |name: &str| get_i64(queuing, &[name]);
    let (queues, hand, length) = (number("queues"), number("handSize"), number("queueLengthLimit"));
    if queues <= 0 {
        errs.push(field::invalid(&path.child("queues"), queues, "must be positive"));
    }
    if queues > MOST_QUEUES {
        let why = format!("must not be greater than {MOST_QUEUES}");
        errs.push(field::invalid(&path.child("queues"), queues, &why));
    }
    if length <= 0 {
        errs.push(field::invalid(&path.child("queueLengthLimit"), length, "must be positive"));
    }
    let at = path.child("handSize");
    if hand <= 0 {
        errs.push(field::invalid(&at, hand, "must be positive"));
    } else if hand > queues {
        errs.push(field::invalid(&at, hand, &format!("should not be greater than queues ({queues})")));
    } else {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "small numbers")]
        let bits = ((queues as f64).log2() * hand as f64).ceil() as i64;
        if bits > HASH_BITS {
            let why = format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
            );
            errs.push(field::invalid(&at, hand, &why));
        }
    }
    errs
}

fn row(level: &Value, context: &RowContext) -> Vec<Value> {
    let or_none = |path: &[&str]| i64_at(level, path).map_or_else(|| "<none>".into(), Value::from);
    let queuing = |name: &str| or_none(&["spec", "limited", "limitResponse", "queuing", name]);
    vec![
        name_cell(level),
        str_at(level, &["spec", "type"]).into(),
        or_none(OLD_SHARES),
        queuing("queues"),
        queuing("handSize"),
        queuing("queueLengthLimit"),
        age_cell(level, context),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;

    fn context(api_version: &'static str) -> Context {
        Context { release: Release::V1_20, subresource: "", api_version, allow_privileged: true, gates: &[] }
    }

    #[test]
    fn defaults() {
        let mut level = json!({"spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}});
        default(&mut level, &context("flowcontrol.apiserver.k8s.io/v1beta1"));
        assert_eq!(
            level["spec"]["limited"],
            json!({"assuredConcurrencyShares": 30,
            "limitResponse": {"type": "Queue", "queuing": {"handSize": 8, "queues": 64, "queueLengthLimit": 50}}})
        );
        let cells = row(&level, &RowContext { now: 0 });
        assert_eq!(cells[1..6], [json!("Limited"), json!(30), json!(64), json!(8), json!(50)]);
    }

    #[test]
    fn level_faults() {
        let beta = context("flowcontrol.apiserver.k8s.io/v1beta1");
        let texts = |level: Value| -> Vec<String> {
            spec_faults(&level, &beta).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            texts(json!({"metadata": {"name": "a"}, "spec": {"type": "Exempt"}})),
            ["spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'"]
        );
        assert_eq!(
            texts(
                json!({"metadata": {"name": "a"}, "spec": {"type": "Limited", "limited": {"assuredConcurrencyShares": 1,
            "limitResponse": {"type": "Queue", "queuing": {"queues": 512, "handSize": 8, "queueLengthLimit": 0}}}}})
            ),
            [
                "spec.limited.limitResponse.queuing.queueLengthLimit: Invalid value: 0: must be positive",
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60",
            ]
        );
    }

    #[test]
    fn shares_have_two_names() {
        let mut level = json!({"spec": {"limited": {"nominalConcurrencyShares": 0}}});
        rename(&mut level, NEW_SHARES, OLD_SHARES);
        default(&mut level, &context("flowcontrol.apiserver.k8s.io/v1"));
        assert_eq!(level["spec"]["limited"]["assuredConcurrencyShares"], 0);
    }
}
