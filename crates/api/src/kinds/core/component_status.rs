//! `ComponentStatus`: whether scheduler, controller manager and etcd answer. Made on request, never stored.

use pilothouse_apimachinery::json::{Value, list_at, str_at};

use crate::kinds::columns::{NAME, text};
use crate::kinds::{Kind, RowContext, Version};
use crate::table::name_cell;

/// The kind.
pub static COMPONENT_STATUS: Kind = Kind {
    namespaced: false,
    short_names: &["cs"],
    verbs: &["get", "list"],
    columns: &[
        NAME,
        text("Status", "Status of the component conditions"),
        text("Message", "Message of the component conditions"),
        text("Error", "Error of the component conditions"),
    ],
    row,
    ..Kind::new("ComponentStatus", "componentstatuses", "componentstatus", &[Version::always("", "v1")])
};

fn row(object: &Value, _context: &RowContext) -> Vec<Value> {
    let healthy = list_at(object, &["conditions"]).iter().find(|c| str_at(c, &["type"]) == "Healthy");
    let (status, message, error) = match healthy {
        None => ("Unknown", "", ""),
        Some(c) => (
            if str_at(c, &["status"]) == "True" { "Healthy" } else { "Unhealthy" },
            str_at(c, &["message"]),
            str_at(c, &["error"]),
        ),
    };
    vec![name_cell(object), status.into(), message.into(), error.into()]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn rows() {
        let context = RowContext { now: 0 };
        let healthy = json!({"metadata": {"name": "etcd-0"}, "conditions": [
            {"type": "Healthy", "status": "True", "message": "{\"health\":\"true\"}"}]});
        assert_eq!(
            row(&healthy, &context)[..4],
            [json!("etcd-0"), json!("Healthy"), json!("{\"health\":\"true\"}"), json!("")]
        );
        assert_eq!(row(&json!({"metadata": {"name": "s"}}), &context)[1], json!("Unknown"));
    }
}
