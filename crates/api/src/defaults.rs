//! Defaults that the types themselves state: `protocol: TCP` and the like. Those that need code are in the kinds.

use std::collections::HashMap;
use std::sync::OnceLock;

use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::version::Release;

use crate::catalogue::{Catalogue, Element, Field, Shape, Type, TypeId};
use crate::schema::Schema;

/// Sets the defaults of all fields that have one and no value.
pub fn apply(schema: Schema, object: &mut Value) {
    let table = Table::of(schema.catalogue);
    if table.has(schema.type_.id) {
        walk(schema.catalogue, table, schema.type_, object);
    }
}

/// Which types state a default, or hold a type that does.
struct Table(HashMap<TypeId, ()>);

impl Table {
    fn of(catalogue: &'static Catalogue) -> &'static Table {
        static V1_20: OnceLock<Table> = OnceLock::new();
        static NEWEST: OnceLock<Table> = OnceLock::new();
        let cell = if catalogue.release() == Release::V1_20 { &V1_20 } else { &NEWEST };
        cell.get_or_init(|| Table::build(catalogue))
    }

    fn has(&self, id: TypeId) -> bool {
        self.0.contains_key(&id)
    }

    fn build(catalogue: &Catalogue) -> Table {
        let mut found: HashMap<TypeId, ()> = catalogue
            .types()
            .iter()
            .filter(|t| t.fields.iter().any(states_default))
            .map(|t| (t.id, ()))
            .collect();
        // Until no further type is found to hold one of those found.
        loop {
            let more: Vec<TypeId> = catalogue
                .types()
                .iter()
                .filter(|t| !found.contains_key(&t.id))
                .filter(|t| t.fields.iter().any(|f| below(f.shape).is_some_and(|id| found.contains_key(&id))))
                .map(|t| t.id)
                .collect();
            if more.is_empty() {
                return Table(found);
            }
            found.extend(more.into_iter().map(|id| (id, ())));
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

fn walk(catalogue: &'static Catalogue, table: &Table, type_: &'static Type, v: &mut Value) {
    let Value::Object(object) = v else { return };
    for field in &type_.fields {
        if let Some(default) = field.default.as_ref().filter(|_| states_default(field)) {
            let absent = match object.get(field.json) {
                None | Some(Value::Null) => true,
                Some(Value::String(s)) => s.is_empty() && !field.pointer,
                Some(_) => false,
            };
            if absent {
                object.insert(field.json.to_string(), default.clone());
            }
        }
        let Some(id) = below(field.shape).filter(|id| table.has(*id)) else { continue };
        let inner = catalogue.get(id);
        match (field.shape, object.get_mut(field.json)) {
            (Shape::Struct(_), Some(v)) => walk(catalogue, table, inner, v),
            (_, Some(Value::Array(items))) => items.iter_mut().for_each(|i| walk(catalogue, table, inner, i)),
            (_, Some(Value::Object(map))) => map.values_mut().for_each(|i| walk(catalogue, table, inner, i)),
            _ => {}
        }
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
