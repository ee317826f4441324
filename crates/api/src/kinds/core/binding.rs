//! `Binding`: ties a pod to a node. It is only ever posted, never stored.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, str_at};

use crate::kinds::{Context, Kind, Version};

/// The kind.
pub static BINDING: Kind = Kind {
    verbs: &["create"],
    columns: &[],
    row: |_, _| Vec::new(),
    validate,
    ..Kind::new("Binding", "bindings", "binding", &[Version::always("", "v1")])
};

/// Faults of a binding: its target must be a node, by name.
pub fn validate(binding: &Value, _context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let kind = str_at(binding, &["target", "kind"]);
    if !kind.is_empty() && kind != "Node" {
        errs.push(field::not_supported(&Path::new("target.kind"), kind, &["Node", "<empty>"]));
    }
    if str_at(binding, &["target", "name"]).is_empty() {
        errs.push(field::required(&Path::new("target.name"), ""));
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::Release;

    use super::*;

    #[test]
    fn target() {
        let context = Context {
            release: Release::V1_20,
            subresource: "",
            api_version: "v1",
            allow_privileged: true,
            gates: &[],
        };
        assert!(validate(&json!({"target": {"name": "n1"}}), &context).is_empty());
        let texts: Vec<String> =
            validate(&json!({"target": {"kind": "Pod"}}), &context).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\"",
                "target.name: Required value",
            ]
        );
    }
}
