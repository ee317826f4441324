//! Between v1, in which schemas, subresources and columns belong to versions, and v1beta1, in which they may stand once
//! for all of them. Kubernetes' internal form, whose field names its errors show, is v1beta1's.

use pilothouse_apimachinery::json::{self, Value, get, json, list_at, str_at};

/// What a version has and the definition as a whole may have: names in the version, and at the top.
const SHARED: [(&str, &str); 3] = [
    ("schema", "validation"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
];

fn is_set(value: &Value) -> bool {
    !value.is_null() && value.as_array().is_none_or(|a| !a.is_empty())
}

fn rename_columns(holder: &mut Value, from: &str, to: &str) {
    for column in json::list_mut(holder, &["additionalPrinterColumns"]) {
        if let Some(path) = json::remove(column, &[from]) {
            json::set(column, &[to], path);
        }
    }
}

/// v1beta1, with its defaults, to v1.
pub(super) fn from_v1beta1(crd: &mut Value) {
    let Some(spec) = json::get_mut(crd, &["spec"]) else { return };
    if str_at(spec, &["scope"]).is_empty() {
        json::set(spec, &["scope"], "Namespaced");
    }
    let version = json::remove(spec, &["version"]).filter(|v| v != "");
    if list_at(spec, &["versions"]).is_empty()
        && let Some(name) = version
    {
        json::set(spec, &["versions"], json!([{"name": name, "storage": true, "served": true}]));
    }
    json::set_default(spec, &["preserveUnknownFields"], true);
    // In v1 false is what is not written.
    if *get(spec, &["preserveUnknownFields"]) == false {
        json::remove(spec, &["preserveUnknownFields"]);
    }
    json::set_default(spec, &["conversion"], json!({"strategy": "None"}));
    rename_columns(spec, "JSONPath", "jsonPath");
    for (own, top) in SHARED {
        let Some(shared) = json::remove(spec, &[top]).filter(is_set) else { continue };
        for version in json::list_mut(spec, &["versions"]) {
            if !is_set(get(version, &[own])) {
                json::set(version, &[own], shared.clone());
            }
        }
    }
    for version in json::list_mut(spec, &["versions"]) {
        rename_columns(version, "JSONPath", "jsonPath");
    }
    let Some(conversion) = json::get_mut(spec, &["conversion"]) else { return };
    let client_config = json::remove(conversion, &["webhookClientConfig"]).filter(|c| !c.is_null());
    let mut reviews = json::remove(conversion, &["conversionReviewVersions"]).filter(is_set);
    if str_at(conversion, &["strategy"]) == "Webhook" && reviews.is_none() {
        reviews = Some(json!(["v1beta1"]));
    }
    if client_config.is_some() || reviews.is_some() {
        let mut webhook = json!({"conversionReviewVersions": reviews});
        if let Some(client_config) = client_config {
            json::set(&mut webhook, &["clientConfig"], client_config);
        }
        json::set(conversion, &["webhook"], webhook);
    }
}

/// v1 to v1beta1: what all versions have in common goes to the top.
pub(super) fn to_v1beta1(crd: &mut Value) {
    let Some(spec) = json::get_mut(crd, &["spec"]) else { return };
    if let Some(first) = list_at(spec, &["versions"]).first() {
        let name = get(first, &["name"]).clone();
        json::set(spec, &["version"], name);
    }
    json::set_default(spec, &["preserveUnknownFields"], false);
    for version in json::list_mut(spec, &["versions"]) {
        rename_columns(version, "jsonPath", "JSONPath");
    }
    for (own, top) in SHARED {
        let versions = list_at(spec, &["versions"]);
        let shared = versions.first().map(|v| get(v, &[own]).clone()).unwrap_or_default();
        if !is_set(&shared) || !versions.iter().all(|v| *get(v, &[own]) == shared) {
            continue;
        }
        for version in json::list_mut(spec, &["versions"]) {
            json::remove(version, &[own]);
        }
        json::set(spec, &[top], shared);
    }
    if let Some(webhook) = json::remove(spec, &["conversion", "webhook"]) {
        json::copy(
            spec,
            &json!({"conversion": {"webhookClientConfig": webhook["clientConfig"]}}),
            &["conversion", "webhookClientConfig"],
        );
        if is_set(&webhook["conversionReviewVersions"]) {
            json::set(
                spec,
                &["conversion", "conversionReviewVersions"],
                webhook["conversionReviewVersions"].clone(),
            );
        }
    }
}
