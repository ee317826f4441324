//! `ServiceAccount`.

use pilothouse_apimachinery::json::{Value, json, list_at, list_mut, str_at};

use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::{Kind, RowContext, Subresource, Version};
use crate::table::{age_cell, name_cell};

/// The kind.
pub static SERVICE_ACCOUNT: Kind = Kind {
    short_names: &["sa"],
    subresources: &[Subresource {
        name: "token",
        gvk: Some(("authentication.k8s.io", "v1", "TokenRequest")),
        verbs: &["create"],
    }],
    prepare_create: |object, _| only_names(object),
    prepare_update: |object, _, _| only_names(object),
    columns: &[
        NAME,
        text(
            "Secrets",
            "Secrets is the list of secrets allowed to be used by pods running using this ServiceAccount. More info: https://kubernetes.io/docs/concepts/configuration/secret",
        ),
        AGE,
    ],
    row: |object: &Value, context: &RowContext| {
        vec![name_cell(object), list_at(object, &["secrets"]).len().into(), age_cell(object, context)]
    },
    update_checks: (1, 1),
    ..Kind::new("ServiceAccount", "serviceaccounts", "serviceaccount", &[Version::always("", "v1")])
};

/// Of the references to secrets, only the names count.
fn only_names(object: &mut Value) {
    for reference in list_mut(object, &["secrets"]) {
        *reference = match str_at(reference, &["name"]) {
            "" => json!({}),
            name => json!({"name": name}),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_names() {
        let mut sa = json!({"secrets": [{"name": "s", "uid": "u", "kind": "Secret"}, {}]});
        only_names(&mut sa);
        assert_eq!(sa, json!({"secrets": [{"name": "s"}, {}]}));
    }
}
