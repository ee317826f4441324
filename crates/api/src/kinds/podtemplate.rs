//! `PodTemplate`: a template by itself.

use pilothouse_apimachinery::field::Path;
use pilothouse_apimachinery::json::Value;

use super::access::part;
use super::columns::{NAME, text as column};
use super::pod::{Rules, defaults, is_today, spec};
use super::workloads::template::{CONTAINERS, IMAGES, container_cells};
use super::{Column, Context, Kind, RowContext, Version};
use crate::table::{labels_cell, name_cell};

const COLUMNS: &[Column] = &[
    NAME,
    column("Containers", CONTAINERS),
    column("Images", IMAGES),
    column("Pod Labels", "The labels for the pod template."),
];

pub(super) static POD_TEMPLATE: Kind = Kind {
    storage_version: "v1",
    has_generation: true,
    generation_since: 22,
    default: |object, context| {
        if let Some(template) = object.get_mut("template") {
            defaults::pod_template(template, is_today(context));
        }
    },
    prepare_create: |object, context| drop_disabled(object, &Value::Null, context),
    prepare_update: drop_disabled,
    validate: |object, context| {
        spec::pod_template(part(object, "template"), &Path::new("template"), &Rules::of(context))
    },
    validate_update: |object, _, context| {
        spec::pod_template(part(object, "template"), &Path::new("template"), &Rules::of(context))
    },
    columns: COLUMNS,
    row,
    ..Kind::new("PodTemplate", "podtemplates", "podtemplate", &[Version::always("", "v1")])
};

fn drop_disabled(object: &mut Value, old: &Value, context: &Context) {
    if let Some(spec) = object.get_mut("template").and_then(|t| t.get_mut("spec")) {
        defaults::drop_disabled(spec, part(part(old, "template"), "spec"), is_today(context));
    }
}

fn row(object: &Value, _context: &RowContext) -> Vec<Value> {
    let template = part(object, "template");
    let [containers, images] = container_cells(template);
    vec![name_cell(object), containers, images, labels_cell(part(part(template, "metadata"), "labels"))]
}
