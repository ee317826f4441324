//! Strategic merge patch: a merge patch that knows, from the schema, which lists are merged and by which key.
//!
//! Directives: `$patch: replace|delete` in maps and in items of merged lists, `$retainKeys`,
//! `$deleteFromPrimitiveList/<list>`, `$setElementOrder/<list>`; `null` deletes.

use std::collections::BTreeMap;

use pilothouse_apimachinery::json::{Map, Value};
use pilothouse_apimachinery::status::{Result, Status};

use super::json::rejected;
use crate::apply::path::equal;
use crate::apply::show;
use crate::apply::types::Type;
use crate::decode::json_fault;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList/";
const SET_ELEMENT_ORDER: &str = "$setElementOrder/";

type Object = Map;

/// What can be wrong with a patch.
#[derive(Debug)]
enum Fault {
    /// The patch is malformed: 400.
    Bad(&'static str),
    /// The patch does not go with what it says about itself: 422.
    Rejected,
    /// Anything else: 500 with the text.
    Other(String),
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Status {
        match fault {
            Fault::Bad(text) => Status::bad_request(text),
            Fault::Rejected => rejected(),
            Fault::Other(text) => Status::failure(500, "", text),
        }
    }
}

type Outcome<T> = std::result::Result<T, Fault>;

/// Applies a strategic merge patch to an object of the given type.
pub fn apply(type_: Type<'_>, object: &Value, patch: &[u8]) -> Result<Value> {
    let patch: Value = serde_json::from_slice(patch)
        .map_err(|e| Status::bad_request(json_fault(patch).unwrap_or_else(|| e.to_string())))?;
    let patch = match patch {
        Value::Object(map) => map,
        Value::Null => Map::new(),
        other => {
            return Err(Status::bad_request(format!(
                "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
                match other {
                    Value::Array(_) => "array",
                    Value::String(_) => "string",
                    Value::Bool(_) => "bool",
                    _ => "number",
                }
            )));
        }
    };
    let original = object.as_object().cloned().unwrap_or_default();
    Ok(Value::Object(merge_map(type_, original, patch)?))
}

fn bad_patch_type(directive: &Value, map: &Object) -> Fault {
    Fault::Other(format!("unknown patch type: {} in map: {}", show::plain(directive), show::plain_map(map)))
}

fn merge_map(type_: Type<'_>, mut original: Object, mut patch: Object) -> Outcome<Object> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Object::new()),
            _ => Err(bad_patch_type(directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_order(type_, &mut original, &mut patch)?;
    let mut changes = BTreeMap::new();
    for (key, value) in patch {
        let (key, delete_list) = match key.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            Some(list) => (list.into(), true),
            None => (key, false),
        };
        if value.is_null() {
            changes.insert(key, None);
            continue;
        }
        let Some(slot) = original.get_mut(&key) else {
            if !delete_list {
                changes.insert(key, Some(clean(value)?));
            }
            continue;
        };
        *slot = match (slot.take(), value) {
            (Value::Object(old), Value::Object(new)) => {
                let (field, strategy, _) = lookup(type_, &key)?;
                Value::Object(if strategy == "replace" { new } else { merge_map(field, old, new)? })
            }
            (Value::Array(old), Value::Array(new)) => {
                let (field, strategy, merge_key) = lookup(type_, &key)?;
                let (old, new) = (old.into(), new.into());
                Value::Array(merge_list_as(field, old, new, strategy, merge_key, delete_list)?.into())
            }
            (old, _) if delete_list => old,
            (_, new) => new,
        };
    }
    original.change(changes);
    Ok(original)
}

/// A field's type, patch strategy (`merge`, `replace` or nothing; retainKeys is said by the patch itself) and merge key.
fn lookup<'a>(type_: Type<'a>, key: &str) -> Outcome<(Type<'a>, &'a str, &'a str)> {
    if let Some(field) = type_.field(key) {
        let (strategies, merge_key) = type_.patch_strategy(key);
        let strategy = strategies.split(',').find(|s| *s != "retainKeys").unwrap_or("");
        return Ok((field, strategy, merge_key));
    }
    if type_.is_open_map() {
        return Ok((type_.element(), "", ""));
    }
    Err(Fault::Other(format!(
        "unable to find api field in struct {} for the json field {key:?}",
        type_.name()
    )))
}

/// A value that the object does not have yet, without nulls and directives.
fn clean(value: Value) -> Outcome<Value> {
    Ok(match value {
        Value::Object(map) => {
            let mut out = Vec::with_capacity(map.len());
            for (key, value) in map {
                let directive = [DIRECTIVE, RETAIN_KEYS].contains(&key.as_str())
                    || key.starts_with(DELETE_FROM_PRIMITIVE_LIST)
                    || key.starts_with(SET_ELEMENT_ORDER);
                if !directive && !value.is_null() {
                    out.push((key, clean(value)?));
                }
            }
            Value::Object(out.into_iter().collect())
        }
        Value::Array(items) => {
            let mut out = Vec::with_capacity(items.len());
            for item in items {
                match item.get(DIRECTIVE).and_then(Value::as_str) {
                    // An item to delete from a list that is not there; the marker of a replaced list.
                    Some("delete") => {}
                    Some("replace") if item.as_object().is_some_and(|m| m.len() == 1) => {}
                    _ => out.push(clean(item)?),
                }
            }
            Value::Array(out.into())
        }
        scalar => scalar,
    })
}

fn retain_keys(original: &mut Object, patch: &mut Object) -> Outcome<()> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let Value::Array(keys) = keys else { return Err(Fault::Bad("invalid patch format of retainKeys")) };
    let retained = |key: &str| keys.iter().any(|k| k == key);
    let exempt = |key: &str, value: &Value| {
        value.is_null() || key.starts_with(DELETE_FROM_PRIMITIVE_LIST) || key.starts_with(SET_ELEMENT_ORDER)
    };
    if patch.iter().any(|(key, value)| !exempt(key, value) && !retained(key)) {
        return Err(Fault::Bad("invalid patch format of retainKeys"));
    }
    original.retain(|key, _| retained(key));
    Ok(())
}

fn set_element_order(type_: Type<'_>, original: &mut Object, patch: &mut Object) -> Outcome<()> {
    let directives: Vec<String> =
        patch.keys().filter(|k| k.starts_with(SET_ELEMENT_ORDER)).map(ToString::to_string).collect();
    for directive in directives {
        let Some(order) = patch.remove(&directive) else { continue };
        let key = directive[SET_ELEMENT_ORDER.len()..].to_string();
        let order = list(order)?;
        let old = original.get(&key).cloned().map(list).transpose()?;
        let new = match patch.get(&key) {
            Some(value) => Some(list(value.clone())?),
            None => None,
        };
        let (field, strategy, merge_key) = lookup(type_, &key)?;
        check_order(new.as_deref().unwrap_or_default(), &order, merge_key)?;
        let old_order = old.clone().unwrap_or_default();
        let merged = match (old, new) {
            (Some(old), None) => old,
            (None, Some(new)) => list(clean(Value::Array(new.into()))?)?,
            (Some(old), Some(new)) => merge_list_as(field, old, new, strategy, merge_key, false)?,
            (None, None) => continue,
        };
        let (patched, server_only) = partition(merged, &order, merge_key)?;
        let sorted = in_order(patched, server_only, &order, &old_order, merge_key);
        original.insert(key.clone(), Value::Array(sorted.into()));
        patch.remove(&key);
    }
    Ok(())
}

fn list(value: Value) -> Outcome<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items.into()),
        other => Err(Fault::Other(format!(
            "expected a []interface {{}}, but received a {}",
            show::go_type(&other)
        ))),
    }
}

fn is_delete(item: &Value) -> bool {
    item.get(DIRECTIVE).is_some_and(|d| d == "delete")
}

/// Checks that the items of a patched list stand in the order that the patch itself sets.
fn check_order(new: &[Value], order: &[Value], merge_key: &str) -> Outcome<()> {
    if new.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in new.iter().filter(|i| merge_key.is_empty() || (!is_delete(i) && i.get(DIRECTIVE).is_none())) {
        if !rest.any(|other| same(item, other, merge_key)) {
            return Err(Fault::Other(format!(
                "The order in patch list:\n{}\n doesn't match {} list:\n{}\n",
                show::plain(&Value::from(new)),
                SET_ELEMENT_ORDER.trim_end_matches('/'),
                show::plain(&Value::from(order)),
            )));
        }
    }
    Ok(())
}

/// Whether two items are the same thing: equal scalars, or maps with the same merge key.
fn same(a: &Value, b: &Value, merge_key: &str) -> bool {
    if merge_key.is_empty() || !a.is_object() {
        return equal(a, b);
    }
    matches!((a.get(merge_key), b.get(merge_key)), (Some(a), Some(b)) if equal(a, b))
}

fn place(items: &[Value], item: &Value, merge_key: &str) -> Option<usize> {
    items.iter().position(|other| same(item, other, merge_key))
}

fn merge_list_as(
    field: Type<'_>,
    original: Vec<Value>,
    patch: Vec<Value>,
    strategy: &str,
    merge_key: &str,
    delete_list: bool,
) -> Outcome<Vec<Value>> {
    if strategy == "merge" || delete_list {
        merge_list(field, original, patch, merge_key, delete_list)
    } else {
        Ok(patch)
    }
}

/// What the items of a list are; all must be of one kind.
fn are_maps(original: &[Value], patch: &[Value]) -> Outcome<bool> {
    let mut kind: Option<std::mem::Discriminant<Value>> = None;
    let mut maps = false;
    for item in original.iter().chain(patch) {
        if item.is_array() {
            return Err(Fault::Rejected);
        }
        let own = std::mem::discriminant(item);
        if kind.is_some_and(|k| k != own) {
            return Err(Fault::Other(format!(
                "list element types are not identical: {}",
                show::plain(&Value::Array(original.iter().chain(patch).cloned().collect()))
            )));
        }
        kind = Some(own);
        maps = item.is_object();
    }
    Ok(maps)
}

fn merge_list(
    field: Type<'_>,
    original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
    delete_list: bool,
) -> Outcome<Vec<Value>> {
    if original.is_empty() && patch.is_empty() {
        return Ok(original);
    }
    if !are_maps(&original, &patch)? {
        if delete_list {
            return Ok(original.into_iter().filter(|item| !patch.iter().any(|p| equal(p, item))).collect());
        }
        let mut merged: Vec<Value> = Vec::new();
        for item in original.iter().chain(&patch) {
            if !merged.iter().any(|m| equal(m, item)) {
                merged.push(item.clone());
            }
        }
        let (patched, server_only) = partition(merged, &patch, "")?;
        return Ok(in_order(patched, server_only, &patch, &original, ""));
    }
    let element = field.element();
    if merge_key.is_empty() {
        return Err(Fault::Other(format!("cannot merge lists without merge key for {}", element.name())));
    }
    let (mut merged, patch) = special_items(original, patch, merge_key)?;
    let server_order = merged.clone();
    for item in &patch {
        let key = item.get(merge_key).ok_or_else(|| no_merge_key(item, merge_key))?;
        match merged.iter().position(|m| m.get(merge_key).is_some_and(|k| equal(k, key))) {
            Some(at) => {
                let (Value::Object(old), Value::Object(new)) = (merged[at].take(), item.clone()) else {
                    continue;
                };
                merged[at] = Value::Object(merge_map(element, old, new)?);
            }
            None => merged.push(clean(item.clone())?),
        }
    }
    let (patched, server_only) = partition(merged, &patch, merge_key)?;
    Ok(in_order(patched, server_only, &patch, &server_order, merge_key))
}

fn no_merge_key(item: &Value, merge_key: &str) -> Fault {
    Fault::Other(format!("map: {} does not contain declared merge key: {merge_key}", show::plain(item)))
}

/// Takes the items with directives out of a patched list: what is left of the original and of the patch.
fn special_items(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    merge_key: &str,
) -> Outcome<(Vec<Value>, Vec<Value>)> {
    let mut plain = Vec::new();
    let mut replace = false;
    for item in patch {
        let Some(directive) = item.get(DIRECTIVE) else {
            plain.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let key = item.get(merge_key).ok_or_else(|| no_merge_key(&item, merge_key))?;
                if let Some(bad) = original.iter().find(|i| i.get(merge_key).is_none()) {
                    return Err(no_merge_key(bad, merge_key));
                }
                original.retain(|i| !i.get(merge_key).is_some_and(|k| equal(k, key)));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(Fault::Other("merging lists cannot yet be specified in the patch".into()));
            }
            _ => return Err(bad_patch_type(directive, item.as_object().unwrap_or(&Object::new()))),
        }
    }
    Ok(if replace { (plain, Vec::new()) } else { (original, plain) })
}

/// Items that are in a list, and the others.
fn partition(items: Vec<Value>, by: &[Value], merge_key: &str) -> Outcome<(Vec<Value>, Vec<Value>)> {
    if !merge_key.is_empty()
        && let Some(bad) = items.iter().chain(by).find(|i| i.is_object() && i.get(merge_key).is_none())
    {
        return Err(no_merge_key(bad, merge_key));
    }
    Ok(items.into_iter().partition(|item| place(by, item, merge_key).is_some()))
}

/// The items of the patch in the patch's order and the server's in the server's, each as early as the other allows.
fn in_order(
    patched: Vec<Value>,
    server_only: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    merge_key: &str,
) -> Vec<Value> {
    let sorted = |mut items: Vec<Value>, order: &[Value]| {
        items.sort_by_key(|item| place(order, item, merge_key).unwrap_or(usize::MAX));
        items
    };
    let mut left = sorted(server_only, server_order).into_iter().peekable();
    let mut right = sorted(patched, patch_order).into_iter().peekable();
    let mut out = Vec::with_capacity(left.len() + right.len());
    loop {
        let from_left = match (left.peek(), right.peek()) {
            (Some(l), Some(r)) => {
                matches!((place(server_order, l, merge_key), place(server_order, r, merge_key)), (Some(l), Some(r)) if l < r)
            }
            (Some(_), None) => true,
            (None, _) => false,
        };
        match if from_left { left.next() } else { right.next() } {
            Some(item) => out.push(item),
            None => return out,
        }
    }
}
