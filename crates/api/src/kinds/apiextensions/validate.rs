//! The rules of CustomResourceDefinitions. Errors name the fields of Kubernetes' internal form (see [`super::convert`]).

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{self, Value, bool_at, get, list_at, str_at};
use pilothouse_apimachinery::version::Release;
use pilothouse_apimachinery::{go, names};

use super::super::Context;
use super::convert;
use crate::crd::structural::{self, Rules};

const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] =
    &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
const APPROVAL: &str = "api-approved.kubernetes.io";

fn is_v1beta1(context: &Context) -> bool {
    context.api_version.ends_with("/v1beta1")
}

/// All schemas of a definition.
fn schemas(crd: &Value) -> impl Iterator<Item = &Value> {
    list_at(crd, &["spec", "versions"])
        .iter()
        .map(|v| get(v, &["schema", "openAPIV3Schema"]))
        .filter(|s| s.is_object())
}

fn internal(crd: &Value) -> Value {
    let mut out = crd.clone();
    convert::to_v1beta1(&mut out);
    out
}

/// What else is asked of a definition, beside [`Rules`].
struct Demands {
    rules: Rules,
    /// Every version has a schema.
    schemas: bool,
    /// A webhook speaks a version that this server does.
    known_reviews: bool,
}

impl Demands {
    fn of(context: &Context, old: Option<&Value>) -> Demands {
        let old_api = is_v1beta1(context);
        let was = |test: fn(&Value) -> bool| old.is_some_and(|old| schemas(old).any(test));
        let no_defaults = (old_api && !was(structural::has_defaults)).then(|| {
            "(cannot set default values in apiextensions.k8s.io/v1beta1 CRDs, must use apiextensions.k8s.io/v1)".into()
        });
        let complete = |crd: &Value| {
            let with_schema = schemas(crd).count();
            with_schema == list_at(crd, &["spec", "versions"]).len()
        };
        Demands {
            rules: Rules {
                no_defaults,
                valid_types: !old_api && !was(structural::has_invalid_types),
                structural: !old_api && !was(|s| !structural::violations(s, &Path::default()).is_empty()),
                pruned_defaults: !was(structural::has_unpruned_defaults),
                atomic_sets: !was(structural::has_open_sets),
                required_map_keys: !was(structural::has_loose_map_keys),
                validations: context.release != Release::V1_20,
            },
            schemas: !old_api && old.is_none_or(complete),
            known_reviews: old.is_none_or(|old| {
                let reviews = get(old, &["spec", "conversion", "webhook", "conversionReviewVersions"]);
                let list = reviews.as_array().map(Vec::as_slice).unwrap_or_default();
                list.is_empty() || list.iter().any(|v| v == "v1" || v == "v1beta1")
            }),
        }
    }
}

/// Faults of a new definition.
pub(super) fn create(crd: &Value, context: &Context) -> ErrorList {
    let mut errors = ErrorList::new();
    let name = str_at(crd, &["metadata", "name"]);
    let wanted = format!("{}.{}", str_at(crd, &["spec", "names", "plural"]), str_at(crd, &["spec", "group"]));
    if !name.is_empty() && name != wanted {
        let at = Path::new("metadata").child("name");
        errors.push(field::invalid(&at, name, "must be spec.names.plural+\".\"+spec.group"));
    }
    errors.extend(definition(crd, None, context));
    errors
}

/// Faults of an update.
pub(super) fn update(new: &Value, old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        return names_of(get(new, &["status", "acceptedNames"]), &Path::new("status").child("acceptedNames"));
    }
    let mut errors = definition(new, Some(old), context);
    let established = list_at(old, &["status", "conditions"])
        .iter()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    let mut fixed: Vec<&[&str]> = Vec::new();
    if established {
        fixed.extend([&["spec", "scope"] as &[&str], &["spec", "names", "kind"]]);
    }
    fixed.extend([&["spec", "group"] as &[&str], &["spec", "names", "plural"]]);
    for path in fixed {
        if get(new, path) != get(old, path) {
            let at = path.iter().fold(Path::default(), |at, name| at.child(name));
            errors.push(field::invalid(&at, get(new, path).clone(), "field is immutable"));
        }
    }
    errors
}

fn definition(hub: &Value, old: Option<&Value>, context: &Context) -> ErrorList {
    let crd = internal(hub);
    let demands = Demands::of(context, old);
    let mut errors = spec(get(&crd, &["spec"]), hub, &demands);
    let status = Path::new("status");
    errors.extend(names_of(get(&crd, &["status", "acceptedNames"]), &status.child("acceptedNames")));
    errors.extend(stored_versions(&crd, &status.child("storedVersions")));
    if !is_v1beta1(context) {
        errors.extend(approval(&crd, old));
        let preserved_before = old.is_some_and(|old| bool_at(old, &["spec", "preserveUnknownFields"]));
        if bool_at(&crd, &["spec", "preserveUnknownFields"]) && !preserved_before {
            let at = Path::new("spec").child("preserveUnknownFields");
            let text = "cannot set to true, set x-preserve-unknown-fields to true in spec.versions[*].schema instead";
            errors.push(field::invalid(&at, true, text));
        }
    }
    errors
}

fn spec(spec: &Value, hub: &Value, demands: &Demands) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = ErrorList::new();
    let group = str_at(spec, &["group"]);
    if group.is_empty() {
        errors.push(field::required(&path.child("group"), ""));
    } else {
        let faults = names::dns1123_subdomain(group);
        if !faults.is_empty() {
            errors.push(field::invalid(&path.child("group"), group, &faults.join(",")));
        } else if !group.contains('.') {
            let text = "should be a domain with at least one dot";
            errors.push(field::invalid(&path.child("group"), group, text));
        }
    }
    one_of(&path.child("scope"), str_at(spec, &["scope"]), &["Cluster", "Namespaced"], &mut errors);

    let mut rules = demands.rules.clone();
    let preserve = bool_at(spec, &["preserveUnknownFields"]);
    let versions = list_at(spec, &["versions"]);
    let top_schema = get(spec, &["validation", "openAPIV3Schema"]);
    rules.structural |= !preserve;
    if !top_schema.is_object() && (demands.schemas || !preserve) {
        for (i, version) in versions.iter().enumerate() {
            if get(version, &["schema", "openAPIV3Schema"]).is_object() {
                continue;
            }
            let at = path.child("versions").index(i).child("schema").child("openAPIV3Schema");
            if demands.schemas {
                errors.push(field::required(&at, "schemas are required"));
            } else if bool_at(version, &["served"]) {
                errors.push(field::required(&at, "because otherwise all fields are pruned"));
            }
        }
    }
    if rules.no_defaults.is_none() && schemas(hub).any(structural::has_defaults) {
        rules.structural = true;
        if preserve {
            let text = "must be false in order to use defaults in the schema";
            errors.push(field::invalid(&path.child("preserveUnknownFields"), true, text));
        }
    }
    rules.structural |= schemas(hub).any(structural::has_extensions);

    let own_subresources = versions.iter().any(|v| json::has(v, &["subresources"]));
    for (i, version) in versions.iter().enumerate() {
        let at = path.child("versions").index(i);
        let name = str_at(version, &["name"]);
        let faults = names::dns1035_label(name);
        if !faults.is_empty() {
            errors.push(field::invalid(&at.child("name"), name, &faults.join(",")));
        }
        let subresources = get(if own_subresources { version } else { spec }, &["subresources"]);
        errors.extend(deprecation(version, &at));
        let schema = get(version, &["schema", "openAPIV3Schema"]);
        let has_status = json::has(subresources, &["status"]);
        errors.extend(structural::validate_schema(schema, has_status, &rules, &at.child("schema")));
        errors.extend(scale(get(version, &["subresources", "scale"]), &at.child("subresources")));
        errors.extend(columns(version, &at));
    }
    let unique =
        versions.iter().enumerate().all(|(i, v)| !versions[..i].iter().any(|o| o["name"] == v["name"]));
    let shown =
        || format!("[]{VERSION}{}", if versions.is_empty() { "(nil)".into() } else { show_all(versions) });
    if !unique {
        let text = "must contain unique version names";
        errors.push(field::invalid_shown(&path.child("versions"), &shown(), text));
    }
    if versions.iter().filter(|v| bool_at(v, &["storage"])).count() != 1 {
        let text = "must have exactly one version marked as storage version";
        errors.push(field::invalid_shown(&path.child("versions"), &shown(), text));
    }
    let version = str_at(spec, &["version"]);
    if !version.is_empty() {
        let faults = names::dns1035_label(version);
        if !faults.is_empty() {
            errors.push(field::invalid(&path.child("version"), version, &faults.join(",")));
        }
    }
    for name in ["plural", "singular", "kind", "listKind"] {
        if str_at(spec, &["names", name]).is_empty() {
            errors.push(field::required(&path.child("names").child(name), ""));
        }
    }
    errors.extend(names_of(get(spec, &["names"]), &path.child("names")));
    let any_status = json::has(spec, &["subresources", "status"])
        || versions.iter().any(|v| json::has(v, &["subresources", "status"]));
    errors.extend(structural::validate_schema(top_schema, any_status, &rules, &path.child("validation")));
    errors.extend(scale(get(spec, &["subresources", "scale"]), &path.child("subresources")));
    errors.extend(columns(spec, &path));
    errors.extend(conversion(spec, preserve, demands, &path.child("conversion")));
    errors
}

const VERSION: &str = "apiextensions.CustomResourceDefinitionVersion";

/// A version as Go prints it. What is behind a pointer is its address there, which nobody can know.
fn show_version(v: &Value) -> String {
    let pointer = |name: &str, type_: &str| {
        let target = if json::has(v, &[name]) { "0xc000000000" } else { "nil" };
        format!("(*{type_})({target})")
    };
    let columns = if list_at(v, &["additionalPrinterColumns"]).is_empty() { "(nil)" } else { "{…}" };
    format!(
        "{VERSION}{{Name:{}, Served:{}, Storage:{}, Deprecated:{}, DeprecationWarning:{}, Schema:{}, Subresources:{}, AdditionalPrinterColumns:[]apiextensions.CustomResourceColumnDefinition{columns}}}",
        go::quote(str_at(v, &["name"])),
        bool_at(v, &["served"]),
        bool_at(v, &["storage"]),
        bool_at(v, &["deprecated"]),
        pointer("deprecationWarning", "string"),
        pointer("schema", "apiextensions.CustomResourceValidation"),
        pointer("subresources", "apiextensions.CustomResourceSubresources"),
    )
}

fn show_all(versions: &[Value]) -> String {
    format!("{{{}}}", versions.iter().map(show_version).collect::<Vec<_>>().join(", "))
}

fn one_of(path: &Path, value: &str, allowed: &[&str], errors: &mut ErrorList) {
    if value.is_empty() {
        errors.push(field::required(path, ""));
    } else if !allowed.contains(&value) {
        errors.push(field::not_supported(path, value, allowed));
    }
}

fn deprecation(version: &Value, path: &Path) -> ErrorList {
    let at = path.child("deprecationWarning");
    let Some(warning) = get(version, &["deprecationWarning"]).as_str() else { return ErrorList::new() };
    let fault = |text: &str| field::invalid(&at, warning, text);
    if !bool_at(version, &["deprecated"]) {
        return vec![fault("can only be set for deprecated versions")];
    }
    let mut errors = ErrorList::new();
    if warning.len() > 256 {
        errors.push(fault("must be <= 256 characters long"));
    }
    if warning.is_empty() {
        errors.push(fault("must not be an empty string"));
    }
    if let Some((i, _)) =
        warning.char_indices().find(|(_, c)| c.is_control() || (c.is_whitespace() && *c != ' '))
    {
        let text = format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        );
        errors.push(fault(&text));
    }
    errors
}

fn names_of(value: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut label = |at: Path, name: &str, mixed: bool| {
        let faults = names::dns1035_label(&if mixed { name.to_lowercase() } else { name.to_string() });
        if !faults.is_empty() {
            let prefix = if mixed { "may have mixed case, but should otherwise match: " } else { "" };
            errors.push(field::invalid(&at, name, &format!("{prefix}{}", faults.join(","))));
        }
    };
    for (name, mixed) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let text = str_at(value, &[name]);
        if !text.is_empty() {
            label(path.child(name), text, mixed);
        }
    }
    for (i, name) in list_at(value, &["shortNames"]).iter().enumerate() {
        label(path.child("shortNames").index(i), name.as_str().unwrap_or(""), false);
    }
    let kind = str_at(value, &["kind"]);
    if !kind.is_empty() && kind == str_at(value, &["listKind"]) {
        errors.push(field::invalid(&path.child("listKind"), kind, "kind and listKind may not be the same"));
    }
    for (i, name) in list_at(value, &["categories"]).iter().enumerate() {
        let text = name.as_str().unwrap_or("");
        let faults = names::dns1035_label(text);
        if !faults.is_empty() {
            errors.push(field::invalid(&path.child("categories").index(i), text, &faults.join(",")));
        }
    }
    errors
}

fn stored_versions(crd: &Value, path: &Path) -> ErrorList {
    let stored = list_at(crd, &["status", "storedVersions"]);
    if stored.is_empty() {
        let text = "must have at least one stored version";
        return vec![field::invalid_shown(path, "[]string(nil)", text)];
    }
    let versions = list_at(crd, &["spec", "versions"]);
    let mut errors = ErrorList::new();
    let mut seen: Vec<&Value> = Vec::new();
    for version in versions {
        // A name counts once: the second version of that name finds it gone.
        let found = stored.contains(&version["name"]) && !seen.contains(&&version["name"]);
        if bool_at(version, &["storage"]) && !found {
            let text = format!("must have the storage version {}", str_at(version, &["name"]));
            errors.push(field::invalid_shown(path, &show_version(version), &text));
        }
        seen.push(&version["name"]);
    }
    for (i, name) in stored.iter().enumerate() {
        if !versions.iter().any(|v| v["name"] == *name) {
            errors.push(field::invalid(&path.index(i), name.clone(), "must appear in spec.versions"));
        }
    }
    errors
}

fn simple_json_path(path: &Path, text: &str) -> Option<field::Error> {
    (!text.starts_with('.')).then(|| field::invalid(path, text, "must be a simple json path starting with ."))
}

fn scale(scale: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if !scale.is_object() {
        return errors;
    }
    for (name, prefix, below) in [
        ("specReplicasPath", ".spec.", "should be a json path under .spec"),
        ("statusReplicasPath", ".status.", "should be a json path under .status"),
    ] {
        let at = path.child(&format!("scale.{name}"));
        let text = str_at(scale, &[name]);
        if text.is_empty() {
            errors.push(field::required(&at, ""));
        } else if let Some(error) = simple_json_path(&at, text) {
            errors.push(error);
        } else if !text.starts_with(prefix) {
            errors.push(field::invalid(&at, text, below));
        }
    }
    let text = str_at(scale, &["labelSelectorPath"]);
    if !text.is_empty() {
        let at = path.child("scale.labelSelectorPath");
        if let Some(error) = simple_json_path(&at, text) {
            errors.push(error);
        } else if !text.starts_with(".spec.") && !text.starts_with(".status.") {
            errors.push(field::invalid(&at, text, "should be a json path under either .spec or .status"));
        }
    }
    errors
}

fn columns(holder: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, column) in list_at(holder, &["additionalPrinterColumns"]).iter().enumerate() {
        let at = path.child("additionalPrinterColumns").index(i);
        if str_at(column, &["name"]).is_empty() {
            errors.push(field::required(&at.child("name"), ""));
        }
        let type_ = str_at(column, &["type"]);
        let types = format!("must be one of {}", COLUMN_TYPES.join(","));
        if type_.is_empty() {
            errors.push(field::required(&at.child("type"), &types));
        } else if !COLUMN_TYPES.contains(&type_) {
            errors.push(field::invalid(&at.child("type"), type_, &types));
        }
        let format = str_at(column, &["format"]);
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let text = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.push(field::invalid(&at.child("format"), format, &text));
        }
        let json_path = str_at(column, &["JSONPath"]);
        if json_path.is_empty() {
            errors.push(field::required(&at.child("JSONPath"), ""));
        } else {
            errors.extend(simple_json_path(&at.child("JSONPath"), json_path));
        }
    }
    errors
}

fn conversion(spec: &Value, preserve: bool, demands: &Demands, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let conversion = get(spec, &["conversion"]);
    if !conversion.is_object() {
        return errors;
    }
    let strategy = str_at(conversion, &["strategy"]);
    if strategy != "None" && preserve {
        let text = "must be None if spec.preserveUnknownFields is true";
        errors.push(field::invalid(&path.child("strategy"), strategy, text));
    }
    one_of(&path.child("strategy"), strategy, &["None", "Webhook"], &mut errors);
    let config = get(conversion, &["webhookClientConfig"]);
    let reviews = list_at(conversion, &["conversionReviewVersions"]);
    let config_at = path.child("webhookClientConfig");
    let reviews_at = path.child("conversionReviewVersions");
    if strategy != "Webhook" {
        let text = "should not be set when strategy is not set to Webhook";
        if config.is_object() {
            errors.push(field::forbidden(&config_at, text));
        }
        if !reviews.is_empty() {
            errors.push(field::forbidden(&reviews_at, text));
        }
        return errors;
    }
    if !config.is_object() {
        errors.push(field::required(&config_at, "required when strategy is set to Webhook"));
    } else if json::has(config, &["url"]) == json::has(config, &["service"]) {
        errors.push(field::required(&config_at, "exactly one of url or service is required"));
    } else if let Some(url) = get(config, &["url"]).as_str() {
        errors.extend(webhook_url(url, &config_at.child("url")));
    } else {
        errors.extend(webhook_service(get(config, &["service"]), &config_at.child("service")));
    }
    if reviews.is_empty() {
        errors.push(field::required(&reviews_at, ""));
        return errors;
    }
    for (i, review) in reviews.iter().enumerate() {
        let text = review.as_str().unwrap_or("");
        if reviews[..i].contains(review) {
            errors.push(field::invalid(&reviews_at.index(i), text, "duplicate version"));
            continue;
        }
        for fault in names::dns1035_label(text) {
            errors.push(field::invalid(&reviews_at.index(i), text, &fault));
        }
    }
    if demands.known_reviews && !reviews.iter().any(|r| r == "v1" || r == "v1beta1") {
        let shown = go::string_slice(&Value::Array(reviews.to_vec().into()));
        errors.push(field::invalid_shown(&reviews_at, &shown, "must include at least one of v1, v1beta1"));
    }
    errors
}

fn webhook_url(url: &str, path: &Path) -> ErrorList {
    const FORM: &str = "; desired format: https://host[/path]";
    let mut errors = ErrorList::new();
    let mut fault =
        |shown: &str, text: &str| errors.push(field::invalid(path, shown, &format!("{text}{FORM}")));
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if scheme != "https" {
        fault(scheme, "'https' is the only allowed URL scheme");
    }
    if authority.is_empty() {
        fault(authority, "host must be provided");
    }
    if let Some((user, _)) = authority.rsplit_once('@') {
        fault(user, "user information is not permitted in the URL");
    }
    if let Some((_, fragment)) = tail.split_once('#') {
        fault(fragment, "fragments are not permitted in the URL");
    }
    if let Some((_, query)) = tail.split('#').next().unwrap_or("").split_once('?') {
        fault(query, "query parameters are not permitted in the URL");
    }
    errors
}

fn webhook_service(service: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    // Kubernetes takes the one for the other.
    if str_at(service, &["namespace"]).is_empty() {
        errors.push(field::required(&path.child("name"), "service name is required"));
    }
    if str_at(service, &["name"]).is_empty() {
        errors.push(field::required(&path.child("namespace"), "service namespace is required"));
    }
    if let Some(port) = json::i64_at(service, &["port"]) {
        for fault in names::port_number(port) {
            let text = format!("port is not valid: {fault}");
            errors.push(field::invalid(&path.child("port"), port, &text));
        }
    }
    let Some(url_path) = get(service, &["path"]).as_str() else { return errors };
    let at = path.child("path");
    if url_path == "/" {
        return errors;
    }
    if url_path == "//" {
        errors.push(field::invalid(&at, url_path, "segment[0] may not be empty"));
        return errors;
    }
    if !url_path.starts_with('/') {
        errors.push(field::invalid(&at, url_path, "must start with a '/'"));
    }
    let trimmed = url_path.strip_suffix('/').unwrap_or(url_path);
    for (i, step) in trimmed.split('/').skip(1).enumerate() {
        if step.is_empty() {
            errors.push(field::invalid(&at, url_path, &format!("segment[{i}] may not be empty")));
            continue;
        }
        for fault in names::dns1123_subdomain(step) {
            errors.push(field::invalid(&at, url_path, &format!("segment[{i}]: {fault}")));
        }
    }
    errors
}

/// Groups of `k8s.io` and `kubernetes.io` are the community's: definitions in them say who approved them.
fn approval(crd: &Value, old: Option<&Value>) -> ErrorList {
    let group = str_at(crd, &["spec", "group"]);
    let protected =
        ["k8s.io", "kubernetes.io"].iter().any(|d| group == *d || group.ends_with(&format!(".{d}")));
    if !protected {
        return ErrorList::new();
    }
    let state = |crd: &Value| {
        let text = get(crd, &["metadata", "annotations"])
            .get(APPROVAL)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_string();
        let is_url = text.split_once("://").is_some_and(|(scheme, rest)| {
            !scheme.is_empty() && rest.split('/').next().is_some_and(|host| !host.is_empty())
        });
        match text.as_str() {
            "" => ("missing", text),
            t if t.starts_with("unapproved") => ("bypassed", text),
            _ if is_url => ("approved", text),
            _ => ("invalid", text),
        }
    };
    let (new_state, text) = state(crd);
    if old.is_some_and(|old| state(old).0 == new_state) {
        return ErrorList::new();
    }
    let at = Path::new("metadata").child("annotations").key(APPROVAL);
    match new_state {
        "missing" => vec![field::required(
            &at,
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111",
        )],
        "invalid" => {
            let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111";
            vec![field::invalid(&at, text, why)]
        }
        _ => ErrorList::new(),
    }
}
