//! Defaults that the types themselves state: `protocol: TCP` and the like. Those that need code are in the kinds.

use std::sync::OnceLock;

use pilothouse_apimachinery::json::{Map, Text, Value};
use pilothouse_apimachinery::version::Release;

use crate::catalogue::{Catalogue, Element, Field, Shape, TypeId};
use crate::schema::Schema;

/// Sets the defaults of all fields that have one and no value. What has them already is left as it is, shared or not.
pub fn apply(schema: Schema, object: &mut Value) {
    let table = Table::of(schema.catalogue);
    if let Some(filled) = table.fill(schema.type_.id, object) {
        *object = filled;
    }
}

/// By type, the fields that state a default, or hold a type that does.
struct Table(Vec<Vec<&'static Field>>);

impl Table {
    fn of(catalogue: &'static Catalogue) -> &'static Table {
        static V1_20: OnceLock<Table> = OnceLock::new();
        static NEWEST: OnceLock<Table> = OnceLock::new();
        let cell = if catalogue.release() == Release::V1_20 { &V1_20 } else { &NEWEST };
        cell.get_or_init(|| Table::build(catalogue))
    }

    fn build(catalogue: &'static Catalogue) -> Table {
        let types = catalogue.types();
        let mut found: Vec<bool> = types.iter().map(|t| t.fields.iter().any(states_default)).collect();
        let leads = |found: &[bool], field: &Field| below(field.shape).is_some_and(|id| found[id.index()]);
        // Until no further type is found to hold one of those found.
        loop {
            let more: Vec<bool> = types
                .iter()
                .zip(&found)
                .map(|(t, known)| *known || t.fields.iter().any(|f| leads(&found, f)))
                .collect();
            if more == found {
                break;
            }
            found = more;
        }
        let fields =
            types.iter().map(|t| t.fields.iter().filter(|f| states_default(f) || leads(&found, f)).collect());
        Table(fields.collect())
    }

    /// A struct with its defaults; `None` where it has them.
    fn fill(&self, id: TypeId, v: &Value) -> Option<Value> {
        let object = v.as_object()?;
        let mut changed: Option<Map> = None;
        for field in &self.0[id.index()] {
            let found = object.get(field.json);
            let absent = match found {
                None | Some(Value::Null) => true,
                Some(Value::String(s)) => s.is_empty() && !field.pointer,
                Some(_) => false,
            };
            let value = match (&field.default, found) {
                (Some(default), _) if absent && states_default(field) => Some(default.clone()),
                (_, Some(v)) => self.fill_below(field.shape, v),
                _ => None,
            };
            if let Some(value) = value {
                changed.get_or_insert_with(|| object.clone()).insert(Text::const_new(field.json), value);
            }
        }
        changed.map(Value::Object)
    }

    fn fill_below(&self, shape: Shape, v: &Value) -> Option<Value> {
        let id = below(shape)?;
        match shape {
            Shape::Struct(_) => self.fill(id, v),
            _ => v.with_changed(|item| self.fill(id, item)),
        }
    }
}

/// A zero default of a field that is no pointer changes nothing.
fn states_default(field: &Field) -> bool {
    field.default.as_ref().is_some_and(|d| match d {
        Value::Null => false,
        _ if field.pointer => true,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        _ => true,
    })
}

fn below(shape: Shape) -> Option<TypeId> {
    match shape {
        Shape::Struct(id) | Shape::List(Element::Struct(id)) | Shape::Map(Element::Struct(id)) => Some(id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn fills_in() {
        let pod = Schema::of(Release::V1_20, "", "v1", "Pod").unwrap();
        let mut v = json!({"spec": {"containers": [{"ports": [{"containerPort": 1}, {"containerPort": 2, "protocol": "UDP"}]}],
            "volumes": [{"azureDisk": {"diskName": "d", "diskURI": "u"}}]}});
        apply(pod, &mut v);
        assert_eq!(
            v,
            json!({"spec": {"containers": [{"ports": [{"containerPort": 1, "protocol": "TCP"}, {"containerPort": 2, "protocol": "UDP"}]}],
                "volumes": [{"azureDisk": {"diskName": "d", "diskURI": "u", "cachingMode": "ReadWrite", "fsType": "ext4", "readOnly": false, "kind": "Shared"}}]}})
        );
    }

    #[test]
    fn what_has_no_default_is_left_alone() {
        let map = Schema::of(Release::V1_20, "", "v1", "ConfigMap").unwrap();
        let mut v = json!({"data": {"a": "b"}});
        apply(map, &mut v);
        assert_eq!(v, json!({"data": {"a": "b"}}));
    }
}
