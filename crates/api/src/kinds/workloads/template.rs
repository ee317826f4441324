//! What workloads do with their pod templates: defaults, validation against the selector, columns.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::go;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::selector::{Selector, validate_label_selector};

use crate::kinds::access::{is_empty, items, part, present, put, text};
use crate::kinds::pod::{Rules, defaults, is_today, spec};
use crate::kinds::{Column, Context, columns};

/// Description of the column of containers.
pub(crate) const CONTAINERS: &str = "Names of each container in the template.";
/// Description of the column of images.
pub(crate) const IMAGES: &str = "Images referenced by each container in the template.";

/// The wide column of containers.
pub(crate) const CONTAINERS_COLUMN: Column = columns::wide("Containers", CONTAINERS);
/// The wide column of images.
pub(crate) const IMAGES_COLUMN: Column = columns::wide("Images", IMAGES);

/// The names and the images of a template's containers, as cells.
pub(crate) fn container_cells(template: &Value) -> [Value; 2] {
    let containers = items(part(template, "spec"), "containers");
    let joined = |key: &str| containers.iter().map(|c| text(c, key)).collect::<Vec<_>>().join(",");
    [Value::from(joined("name")), Value::from(joined("image"))]
}

/// Defaults of the template at `spec.template`.
pub(crate) fn default_template(object: &mut Value, context: &Context) {
    if let Some(template) =
        object.get_mut("spec").and_then(|s| s.get_mut("template")).filter(|t| t.is_object())
    {
        defaults::pod_template(template, is_today(context));
    }
}

/// Removes from the template at `spec.template` what the release does not have.
pub(crate) fn drop_disabled(object: &mut Value, old: &Value, context: &Context) {
    let old = part(part(part(old, "spec"), "template"), "spec");
    if let Some(spec) =
        object.get_mut("spec").and_then(|s| s.get_mut("template")).and_then(|t| t.get_mut("spec"))
    {
        defaults::drop_disabled(spec, old, is_today(context));
    }
}

/// The old versions of workloads take labels and selector from the template where the client gave none.
pub(crate) fn labels_from_template(object: &mut Value, selector: bool) {
    let labels = template_labels(object).clone();
    if labels.is_null() {
        return;
    }
    if selector && !present(part(object, "spec"), "selector") {
        put(&mut object["spec"], "selector", json!({ "matchLabels": labels }));
    }
    default_labels(object, labels);
}

/// Sets the object's own labels where it has none.
pub(crate) fn default_labels(object: &mut Value, labels: Value) {
    if is_empty(part(object, "metadata"), "labels") {
        pilothouse_apimachinery::json::set(object, &["metadata", "labels"], labels);
    }
}

/// The labels of the template at `spec.template`.
pub(crate) fn template_labels(object: &Value) -> &Value {
    part(part(part(part(object, "spec"), "template"), "metadata"), "labels")
}

/// Faults of the label selector at `spec.selector`, which must be there and not be empty.
pub(crate) fn required_selector(spec: &Value, whose: &str, path: &Path) -> ErrorList {
    let (selector, path) = (part(spec, "selector"), path.child("selector"));
    if selector.is_null() {
        return vec![field::required(&path, "")];
    }
    let mut errs = validate_label_selector(selector, &path);
    errs.extend(empty_selector(selector, whose, &path));
    errs
}

/// An error where a selector is empty.
pub(crate) fn empty_selector(selector: &Value, whose: &str, path: &Path) -> Option<field::Error> {
    (!selector.is_null() && is_empty(selector, "matchLabels") && is_empty(selector, "matchExpressions")).then(
        || {
            let detail = format!("empty selector is invalid for {whose}");
            field::invalid_shown(path, &go::label_selector(selector), &detail)
        },
    )
}

/// An error where a selector does not select the template's labels.
pub(crate) fn matches_template(selector: &Selector, template: &Value, path: &Path) -> Option<field::Error> {
    let labels = part(part(template, "metadata"), "labels");
    (!selector.is_everything() && !selector.matches(labels)).then(|| {
        field::invalid_shown(
            &path.child("metadata").child("labels"),
            &go::string_map(labels),
            "`selector` does not match template `labels`",
        )
    })
}

/// Faults of a template whose pods are to run for ever.
pub(crate) fn forever(template: &Value, whose: &str, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let (spec, path) = (part(template, "spec"), path.child("spec"));
    if text(spec, "restartPolicy") != "Always" {
        errs.push(field::not_supported(
            &path.child("restartPolicy"),
            text(spec, "restartPolicy"),
            &["Always"],
        ));
    }
    if present(spec, "activeDeadlineSeconds") {
        let detail = format!("activeDeadlineSeconds in {whose} is not Supported");
        errs.push(field::forbidden(&path.child("activeDeadlineSeconds"), &detail));
    }
    errs
}

/// Faults of the template of a ReplicaSet or Deployment, given what its selector is.
pub(crate) fn replicated(
    template: &Value,
    selector: &Selector,
    replicas: i64,
    whose: &str,
    path: &Path,
    rules: &Rules,
) -> ErrorList {
    let mut errs: ErrorList = matches_template(selector, template, path).into_iter().collect();
    errs.extend(spec::pod_template(template, path, rules));
    if replicas > 1 {
        errs.extend(spec::read_only_disks(template, path));
    }
    errs.extend(forever(template, whose, path));
    errs
}

/// An error where the label selector of a workload changed.
pub(crate) fn immutable_selector(new: &Value, old: &Value) -> Option<field::Error> {
    let (new, old) = (part(part(new, "spec"), "selector"), part(part(old, "spec"), "selector"));
    (!crate::kinds::access::same(new, old) || new.is_null() != old.is_null()).then(|| {
        let shown = if new.is_null() { "\"null\"".to_string() } else { go::label_selector(new) };
        field::invalid_shown(&Path::new("spec.selector"), &shown, crate::kinds::checks::IMMUTABLE)
    })
}
