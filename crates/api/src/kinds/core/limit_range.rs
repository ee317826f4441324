//! `LimitRange`.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Map, Value, ensure_object, get, list_at, list_mut, map_at, set, str_at};
use pilothouse_apimachinery::names;

use super::resources::{self, compare, text};
use crate::go_print;
use crate::kinds::checks::invalid_each;
use crate::kinds::{Context, Kind, Version};

/// The kind.
pub static LIMIT_RANGE: Kind = Kind {
    short_names: &["limits"],
    create_on_update: true,
    default,
    prepare_create: |object, _| {
        if str_at(object, &["metadata", "name"]).is_empty() {
            set(object, &["metadata", "name"], uuid::Uuid::new_v4().to_string());
        }
    },
    validate,
    validate_update: |new, _, context| validate(new, context),
    update_checks: (1, 0),
    ..Kind::new("LimitRange", "limitranges", "limitrange", &[Version::always("", "v1")])
};

/// For containers: limits default to the maximum, requests to the limit, or else to the minimum.
fn default(object: &mut Value, _context: &Context) {
    for item in list_mut(object, &["spec", "limits"]) {
        if str_at(item, &["type"]) != "Container" {
            continue;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let Some(source) = map_at(item, &[from]).filter(|m| !m.is_empty()).cloned() else { continue };
            let target: &mut Map = ensure_object(item, &[to]);
            for (name, quantity) in source {
                target.entry(name).or_insert(quantity);
            }
        }
    }
}

fn validate(object: &Value, _context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut seen = BTreeSet::new();
    for (i, item) in list_at(object, &["spec", "limits"]).iter().enumerate() {
        let path = Path::new("spec.limits").index(i);
        let type_ = str_at(item, &["type"]);
        errs.extend(type_faults(type_, &path.child("type")));
        if !seen.insert(type_) {
            errs.push(field::duplicate(&path.child("type"), type_));
        }
        errs.extend(item_faults(item, type_, &path));
    }
    errs
}

fn type_faults(type_: &str, path: &Path) -> ErrorList {
    let mut errs = invalid_each(path, type_, names::qualified_name(type_));
    if errs.is_empty()
        && !type_.contains('/')
        && !["Pod", "Container", "PersistentVolumeClaim"].contains(&type_)
    {
        errs.push(field::invalid(path, type_, "must be a standard limit type or fully qualified"));
    }
    errs
}

fn item_faults(item: &Value, type_: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut keys = BTreeSet::new();
    let mut add = |field_name: &str, errs: &mut ErrorList| {
        for key in map_at(item, &[field_name]).into_iter().flat_map(Map::keys) {
            let at = path.child(field_name).key(key);
            errs.extend(match type_ {
                "Pod" | "Container" => resources::container_name_faults(key, &at),
                _ => resources::name_faults(key, &at),
            });
            keys.insert(key.as_str());
        }
    };
    add("max", &mut errs);
    add("min", &mut errs);
    if type_ == "Pod" {
        for name in ["default", "defaultRequest"] {
            if map_at(item, &[name]).is_some_and(|m| !m.is_empty()) {
                errs.push(field::forbidden(&path.child(name), "may not be specified when `type` is 'Pod'"));
            }
        }
    } else {
        add("default", &mut errs);
        add("defaultRequest", &mut errs);
    }
    if type_ == "PersistentVolumeClaim"
        && get(item, &["min", "storage"]).is_null()
        && get(item, &["max", "storage"]).is_null()
    {
        errs.push(field::required(
            &path.child("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        ));
    }
    add("maxLimitRequestRatio", &mut errs);
    for key in keys {
        errs.extend(relations(item, key, type_, path));
    }
    errs
}

fn relations(item: &Value, key: &str, type_: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let at = |name: &str| Some(get(item, &[name, key])).filter(|v| !v.is_null());
    let (min, max, ratio) = (at("min"), at("max"), at("maxLimitRequestRatio"));
    let (limit, request) = if type_ == "Pod" { (None, None) } else { (at("default"), at("defaultRequest")) };
    let mut too_big = |low: Option<&Value>,
                       high: Option<&Value>,
                       name: &str,
                       show_low: bool,
                       what: (&str, &str)| {
        if let (Some(low), Some(high)) = (low, high)
            && compare(low, high) == Ordering::Greater
        {
            let value = if show_low { low } else { high };
            errs.push(field::invalid_shown(
                &path.child(name).key(key),
                &go_print::quantity(&text(value)),
                &format!("{} value {} is greater than {} value {}", what.0, text(low), what.1, text(high)),
            ));
        }
    };
    too_big(min, max, "min", true, ("min", "max"));
    too_big(min, request, "defaultRequest", false, ("min", "default request"));
    too_big(request, max, "defaultRequest", true, ("default request", "max"));
    too_big(request, limit, "defaultRequest", true, ("default request", "default limit"));
    too_big(min, limit, "default", true, ("min", "default"));
    too_big(limit, max, "default", false, ("default", "max"));
    if let Some(ratio) = ratio {
        let at = path.child("maxLimitRequestRatio").key(key);
        let shown = go_print::quantity(&text(ratio));
        if compare(ratio, &Value::from("1")) == Ordering::Less {
            errs.push(field::invalid_shown(&at, &shown, &format!("ratio {} is less than 1", text(ratio))));
        }
        if let (Some(min), Some(max)) = (min, max) {
            let milli = |v: &Value| resources::quantity(v).milli_value() as f64;
            let most = milli(max) / milli(min);
            if milli(ratio) / 1000.0 > most {
                let why = format!("ratio {} is greater than max/min = {most:.6}", text(ratio));
                errs.push(field::invalid_shown(&at, &shown, &why));
            }
        }
    }
    if let (Some(limit), Some(request)) = (limit, request)
        && !resources::is_overcommit_allowed(key)
        && compare(limit, request) != Ordering::Equal
    {
        errs.push(field::invalid_shown(
            &path.child("defaultRequest").key(key),
            &go_print::quantity(&text(request)),
            &format!(
                "default value {} must equal to defaultRequest value {} in {key}",
                text(limit),
                text(request)
            ),
        ));
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::Release;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "v1",
        allow_privileged: true,
        gates: &[],
    };

    #[test]
    fn defaults_for_containers() {
        let mut o = json!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}},
            {"type": "Pod", "max": {"cpu": "2"}}]}});
        default(&mut o, &CONTEXT);
        assert_eq!(o["spec"]["limits"][0]["default"], json!({"cpu": "2"}));
        assert_eq!(o["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
        assert_eq!(o["spec"]["limits"][1].get("default"), None);
    }

    #[test]
    fn relations_between_bounds() {
        let o = json!({"spec": {"limits": [{"type": "Container",
            "min": {"cpu": "500m"}, "max": {"cpu": "200m"}, "default": {"cpu": "300m"}, "defaultRequest": {"cpu": "400m"},
            "maxLimitRequestRatio": {"cpu": "500m"}}]}});
        let errs = validate(&o, &CONTEXT);
        let texts: Vec<&str> = errs.iter().map(|e| e.body.rsplit_once(": ").unwrap().1).collect();
        assert_eq!(
            texts,
            [
                "min value 500m is greater than max value 200m",
                "min value 500m is greater than default request value 400m",
                "default request value 400m is greater than max value 200m",
                "default request value 400m is greater than default limit value 300m",
                "min value 500m is greater than default value 300m",
                "default value 300m is greater than max value 200m",
                "ratio 500m is less than 1",
                "ratio 500m is greater than max/min = 0.400000",
            ]
        );
        assert!(errs[1].body.contains("s:\"400m\""));
        assert!(errs[5].body.contains("s:\"200m\""));
    }

    #[test]
    fn claims_need_storage() {
        let o = json!({"spec": {"limits": [{"type": "PersistentVolumeClaim", "max": {"cpu": "1"}}, {"type": "Odd"}, {"type": "Odd"}]}});
        let fields: Vec<String> = validate(&o, &CONTEXT).into_iter().map(|e| e.to_string()).collect();
        assert_eq!(
            fields[0],
            "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided"
        );
        assert_eq!(
            fields[1],
            "spec.limits[1].type: Invalid value: \"Odd\": must be a standard limit type or fully qualified"
        );
        assert_eq!(fields[3], "spec.limits[2].type: Duplicate value: \"Odd\"");
    }
}
