//! The canonical form in place: what code has added or left behind is brought into the form that Go would write.

use pilothouse_apimachinery::json::{Map, Text, Value};

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
/// are `null`, as they come back from Kubernetes' store. What is in that form already is left as it is, shared or not;
/// what is shared with an object that is in that form need not be looked at.
pub fn canonicalize(schema: Schema, object: &mut Value, known: Option<&Value>) {
    if let Some(canonical) = canonical_struct(schema.catalogue, schema.type_, object, known) {
        *object = canonical;
    }
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

/// The canonical form of a struct; `None` where that is the one it has. So do the functions below.
fn canonical_struct(
    catalogue: &'static Catalogue,
    type_: &'static Type,
    v: &Value,
    known: Option<&Value>,
) -> Option<Value> {
    if known.is_some_and(|known| known.is_shared_with(v)) {
        return None;
    }
    let type_ = match (type_.form, v) {
        (Form::Object, _) => type_,
        (_, Value::Object(_)) => match type_.field("Schema")?.shape {
            Shape::Struct(id) => catalogue.get(id),
            _ => return None,
        },
        (Form::OrArray, Value::Array(_)) => match type_.field("JSONSchemas")?.shape {
            Shape::List(element) => return canonical_elements(catalogue, element, v, known),
            _ => return None,
        },
        _ => return None,
    };
    let object = v.as_object()?;
    let mut changed: Option<Map> = None;
    // How many of the fields are there that always have to be, and whether one of them may have to be something else.
    let (mut present, mut null) = (0, false);
    for (name, value) in object {
        let Some(field) = type_.field(name) else {
            changed.get_or_insert_with(|| object.clone()).remove(name);
            continue;
        };
        let canonical = canonical(catalogue, field.shape, value, known.and_then(|known| known.get(name)));
        let value = canonical.as_ref().unwrap_or(value);
        let empty = match field.shape {
            Shape::Struct(_) => value.is_null(),
            Shape::Scalar(Scalar::RawExtension | Scalar::Json | Scalar::FieldsV1) => value.is_null(),
            _ if field.pointer => value.is_null(),
            _ => is_empty(value),
        };
        if empty && field.omitempty {
            changed.get_or_insert_with(|| object.clone()).remove(name);
            continue;
        }
        let nothing = empty && is_collection(field.shape) && !value.is_null();
        if field.always_present() {
            present += 1;
            null |= value.is_null() && !field.pointer;
        }
        if let Some(value) = if nothing { Some(Value::Null) } else { canonical } {
            changed.get_or_insert_with(|| object.clone()).insert(name.clone(), value);
        }
    }
    if null || present < type_.always_present().count() {
        for (_, field) in type_.always_present() {
            let found = changed.as_ref().unwrap_or(object).get(field.json);
            if found.is_none_or(|found| found.is_null() && !field.pointer) {
                let value = empty_field(catalogue, field);
                if found != Some(&value) {
                    changed.get_or_insert_with(|| object.clone()).insert(Text::const_new(field.json), value);
                }
            }
        }
    }
    changed.map(Value::Object)
}

fn canonical(catalogue: &'static Catalogue, shape: Shape, v: &Value, known: Option<&Value>) -> Option<Value> {
    match shape {
        Shape::Struct(id) => canonical_struct(catalogue, catalogue.get(id), v, known),
        Shape::List(element) | Shape::Map(element) => canonical_elements(catalogue, element, v, known),
        Shape::Scalar(_) => None,
    }
}

fn canonical_elements(
    catalogue: &'static Catalogue,
    element: Element,
    v: &Value,
    known: Option<&Value>,
) -> Option<Value> {
    let Element::Struct(id) = element else { return None };
    if known.is_some_and(|known| known.is_shared_with(v)) {
        return None;
    }
    v.with_changed(|item| canonical_struct(catalogue, catalogue.get(id), item, None))
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
        canonicalize(role, &mut v, None);
        assert_eq!(v, json!({"metadata": {"name": "r", "creationTimestamp": null}, "rules": null}));
        let pod = Schema::of(Release::V1_20, "", "v1", "Pod").unwrap();
        let mut v = json!({"metadata": {}, "spec": {"containers": [{"name": "", "env": [], "securityContext": {}}],
            "volumes": [{"name": "v", "emptyDir": {}}], "hostNetwork": false, "enableServiceLinks": false}});
        canonicalize(pod, &mut v, None);
        assert_eq!(
            v,
            json!({"metadata": {"creationTimestamp": null}, "spec": {"containers": [{"name": "", "resources": {}, "securityContext": {}}],
                "volumes": [{"name": "v", "emptyDir": {}}], "enableServiceLinks": false}, "status": {}})
        );
    }

    #[test]
    fn looks_at_what_is_not_known() {
        let pod = Schema::of(Release::V1_20, "", "v1", "Pod").unwrap();
        let mut known = json!({"metadata": {}, "spec": {"containers": [{"name": "c", "env": []}]}});
        canonicalize(pod, &mut known, None);
        let mut v = known.clone();
        v["metadata"]["labels"] = json!({});
        v["spec"]["volumes"] = json!([]);
        canonicalize(pod, &mut v, Some(&known));
        assert_eq!(v, known);
        assert!(v["spec"]["containers"].is_shared_with(&known["spec"]["containers"]));
    }

    #[test]
    fn is_stable() {
        let crd =
            Schema::of(Release::V1_20, "apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
        let v = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"items": [{"type": "string"}], "additionalProperties": false}}}]}});
        let mut once = normalize(crd, v).unwrap();
        canonicalize(crd, &mut once, None);
        assert_eq!(once["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["additionalProperties"], false);
        let mut twice = once.clone();
        canonicalize(crd, &mut twice, None);
        assert_eq!(once, twice);
    }
}
