//! Kinds of `admissionregistration.k8s.io`: admission webhooks and policies.

pub mod client_config;
pub mod expressions;
mod policy;
mod webhook;

use pilothouse_apimachinery::json::{Value, list_at};

use super::columns::{AGE, NAME, integer};
use super::{Column, Kind, RowContext, Version};
use crate::table::{age_cell, name_cell};

const GROUP: &str = "admissionregistration.k8s.io";

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[
    &policy::MUTATING_ADMISSION_POLICY_BINDING,
    &policy::MUTATING_ADMISSION_POLICY,
    &MUTATING_WEBHOOK_CONFIGURATION,
    &policy::VALIDATING_ADMISSION_POLICY_BINDING,
    &policy::VALIDATING_ADMISSION_POLICY,
    &VALIDATING_WEBHOOK_CONFIGURATION,
];

const COLUMNS: &[Column] = &[
    NAME,
    integer("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration"),
    AGE,
];

const BASE: Kind = Kind {
    namespaced: false,
    categories: &["api-extensions"],
    has_generation: true,
    allow_unconditional_update: false,
    storage_version: "admissionregistration.k8s.io/v1",
    columns: COLUMNS,
    row: |object: &Value, context: &RowContext| {
        vec![name_cell(object), list_at(object, &["webhooks"]).len().into(), age_cell(object, context)]
    },
    ..Kind::new("", "", "", &[Version::always(GROUP, "v1"), Version::always(GROUP, "v1beta1")])
};

/// `MutatingWebhookConfiguration`.
pub static MUTATING_WEBHOOK_CONFIGURATION: Kind = Kind {
    kind: "MutatingWebhookConfiguration",
    plural: "mutatingwebhookconfigurations",
    singular: "mutatingwebhookconfiguration",
    storage_prefix: "mutatingwebhookconfigurations",
    default: |object, context| webhook::default(object, true, context),
    validate: |object, context| webhook::faults(object, None, true, context),
    validate_update: |new, old, context| webhook::faults(new, Some(old), true, context),
    ..BASE
};

/// `ValidatingWebhookConfiguration`.
pub static VALIDATING_WEBHOOK_CONFIGURATION: Kind = Kind {
    kind: "ValidatingWebhookConfiguration",
    plural: "validatingwebhookconfigurations",
    singular: "validatingwebhookconfiguration",
    storage_prefix: "validatingwebhookconfigurations",
    default: |object, context| webhook::default(object, false, context),
    validate: |object, context| webhook::faults(object, None, false, context),
    validate_update: |new, old, context| webhook::faults(new, Some(old), false, context),
    ..BASE
};
