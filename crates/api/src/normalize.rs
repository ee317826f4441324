//! The canonical form in place: what code has added or left behind is brought into the form that Go would write.

use pilothouse_apimachinery::json::Value;

use crate::catalogue::{Catalogue, Element, Form, Scalar, Shape, Type};
use crate::decode::{empty_field, from_value};
use crate::schema::Schema;

/// Checks types and brings a value (a patch's result, a webhook's answer) into canonical form. Errors are the
/// decoder's.
pub fn normalize(schema: Schema, value: Value) -> Result<Value, String> {
    from_value(schema, value).map(|d| d.object)
}

/// Brings an object that fits its schema into canonical form, the one that is stored: empty `omitempty` fields are
/// gone, lists and maps among them; all other fields are present; empty lists and maps that are always present
/// are `null`, as they come back from Kubernetes' store.
pub fn canonicalize(schema: Schema, object: &mut Value) {
    canonical_struct(schema.catalogue, schema.type_, object);
}

fn is_empty(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => true,
        Value::String(s) => s.is_empty(),
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) => false,
    }
}

fn is_collection(shape: Shape) -> bool {
    matches!(shape, Shape::List(_) | Shape::Map(_))
}

fn canonical_struct(catalogue: &'static Catalogue, type_: &'static Type, v: &mut Value) {
    let type_ = match (type_.form, &*v) {
        (Form::Object, _) => type_,
        (_, Value::Object(_)) => match type_.field("Schema").map(|f| f.shape) {
            Some(Shape::Struct(id)) => catalogue.get(id),
            _ => return,
        },
        (Form::OrArray, Value::Array(items)) => {
            if let (false, Some(Shape::List(element))) =
                (items.is_empty(), type_.field("JSONSchemas").map(|f| f.shape))
            {
                canonical_elements(catalogue, element, v);
            }
            return;
        }
        _ => return,
    };
    let Value::Object(object) = v else { return };
    object.retain(|name, value| {
        let Some(field) = type_.field(name) else { return false };
        canonical(catalogue, field.shape, value);
        let empty = match field.shape {
            Shape::Struct(_) => value.is_null(),
            Shape::Scalar(Scalar::RawExtension | Scalar::Json | Scalar::FieldsV1) => value.is_null(),
            _ if field.pointer => value.is_null(),
            _ => is_empty(value),
        };
        if empty && is_collection(field.shape) && !field.omitempty {
            *value = Value::Null;
        }
        !(empty && field.omitempty)
    });
    for (_, field) in type_.always_present() {
        match object.get(field.json) {
            None => {}
            Some(Value::Null) if !field.pointer => {}
            Some(_) => continue,
        }
        object.insert(field.json.to_string(), empty_field(catalogue, field));
    }
}

fn canonical(catalogue: &'static Catalogue, shape: Shape, v: &mut Value) {
    match shape {
        Shape::Struct(id) => canonical_struct(catalogue, catalogue.get(id), v),
        Shape::List(element) | Shape::Map(element) => canonical_elements(catalogue, element, v),
        Shape::Scalar(_) => {}
    }
}

fn canonical_elements(catalogue: &'static Catalogue, element: Element, v: &mut Value) {
    let Element::Struct(id) = element else { return };
    let type_ = catalogue.get(id);
    match v {
        Value::Array(items) => items.iter_mut().for_each(|i| canonical_struct(catalogue, type_, i)),
        Value::Object(map) => map.values_mut().for_each(|i| canonical_struct(catalogue, type_, i)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::Release;

    use super::*;

    #[test]
    fn drops_what_is_empty() {
        let role = Schema::of(Release::V1_20, "rbac.authorization.k8s.io", "v1", "Role").unwrap();
        let mut v =
            json!({"metadata": {"name": "r", "labels": {}, "finalizers": []}, "rules": [], "bogus": 1});
        canonicalize(role, &mut v);
        assert_eq!(v, json!({"metadata": {"name": "r", "creationTimestamp": null}, "rules": null}));
        let pod = Schema::of(Release::V1_20, "", "v1", "Pod").unwrap();
        let mut v = json!({"metadata": {}, "spec": {"containers": [{"name": "", "env": [], "securityContext": {}}],
            "volumes": [{"name": "v", "emptyDir": {}}], "hostNetwork": false, "enableServiceLinks": false}});
        canonicalize(pod, &mut v);
        assert_eq!(
            v,
            json!({"metadata": {"creationTimestamp": null}, "spec": {"containers": [{"name": "", "resources": {}, "securityContext": {}}],
                "volumes": [{"name": "v", "emptyDir": {}}], "enableServiceLinks": false}, "status": {}})
        );
    }

    #[test]
    fn is_stable() {
        let crd =
            Schema::of(Release::V1_20, "apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        let v = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"items": [{"type": "string"}], "additionalProperties": false}}}]}});
        let mut once = normalize(crd, v).unwrap();
        canonicalize(crd, &mut once);
        assert_eq!(once["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["additionalProperties"], false);
        let mut twice = once.clone();
        canonicalize(crd, &mut twice);
        assert_eq!(once, twice);
    }
}
