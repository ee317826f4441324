//! Values seen through their schema: validation, field sets, comparison, merging and removal, with the semantics of
//! structured-merge-diff.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use compact_str::CompactString;
use pilothouse_apimachinery::json::{Map, Text, Value};

use super::path::{Path, PathElement, equal, field_name};
use super::set::Set;
use super::show;
use super::side_by_side;
use super::types::{Atom, ListType, Scalar, Type};

/// What differs between two objects. No path is in both sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Paths that only the old object has.
    pub removed: Set,
    /// Paths that the new object has with other values than the old, or that only it has.
    pub changed: Set,
}

impl Comparison {
    /// Whether the objects are the same.
    pub fn is_same(&self) -> bool {
        self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Faults found while looking at a value: path and text.
type Faults = Vec<(String, String)>;

/// The faults as one text: `path: text`, or a list under `errors:`.
fn joined(faults: &Faults) -> String {
    let one = |(path, text): &(String, String)| {
        if path.is_empty() { text.clone() } else { format!("{path}: {text}") }
    };
    match faults.as_slice() {
        [fault] => one(fault),
        many => std::iter::once("errors:".to_string())
            .chain(many.iter().map(|f| format!("  {}", one(f))))
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

/// The element of a path that names a list's item.
fn item_element(type_: Type<'_>, list: ListType, index: usize, item: &Value) -> Result<PathElement, String> {
    match list {
        ListType::Atomic => Ok(PathElement::Index(index)),
        ListType::Set => match item {
            Value::Object(_) => Err("associative list without keys has an element that's a map type".into()),
            Value::Array(_) => Err("not supported: associative list with lists as elements".into()),
            Value::Null => Err("associative list without keys has an element that's an explicit null".into()),
            value => Ok(PathElement::Value(value.clone())),
        },
        ListType::Map => match item {
            Value::Null => Err("associative list with keys may not have a null element".into()),
            Value::Object(map) => {
                let mut keys = Vec::new();
                for name in type_.keys().iter() {
                    let value = map.get(name).cloned().or_else(|| type_.key_default(name)).ok_or_else(|| {
                        format!(
                            "associative list with keys has an element that omits key field {name:?} (and doesn't have default value)"
                        )
                    })?;
                    keys.push((CompactString::from(*name), value));
                }
                Ok(PathElement::key(keys))
            }
            _ => Err("associative list with keys may not have non-map elements".into()),
        },
    }
}

/// A place while a value is walked through. It is written out only where there is something to say of it.
enum At<'a> {
    Root,
    Field(&'a At<'a>, &'a str),
    Item(&'a At<'a>, &'a PathElement),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Root => Ok(()),
            At::Field(parent, name) => write!(f, "{parent}.{name}"),
            At::Item(parent, element) => write!(f, "{parent}{element}"),
        }
    }
}

/// Checks that a value fits its schema. The text of the error is structured-merge-diff's.
pub fn validate(type_: Type<'_>, value: &Value) -> Result<(), String> {
    outcome(type_, value, false)
}

/// The same for an object that has been decoded: what its decoder has looked at is not looked at again.
pub fn validate_decoded(type_: Type<'_>, value: &Value) -> Result<(), String> {
    outcome(type_, value, true)
}

fn outcome(type_: Type<'_>, value: &Value, decoded: bool) -> Result<(), String> {
    let mut faults = Vec::new();
    check(type_, value, decoded, &At::Root, &mut faults);
    if faults.is_empty() { Ok(()) } else { Err(joined(&faults)) }
}

fn check(type_: Type<'_>, value: &Value, decoded: bool, at: &At<'_>, faults: &mut Faults) {
    let fault = |faults: &mut Faults, text: String| faults.push((at.to_string(), text));
    if value.is_null() {
        return;
    }
    match type_.atom(Some(value)) {
        Atom::Scalar(scalar) => match (scalar, value) {
            (Scalar::Numeric, v) if !v.is_number() => {
                fault(faults, "expected numeric (int or float), got *value.valueUnstructured".into());
            }
            (Scalar::String, v) if !v.is_string() => {
                fault(
                    faults,
                    format!("expected string, got &value.valueUnstructured{{Value:{}}}", show::sharp(v)),
                );
            }
            (Scalar::Boolean, v) if !v.is_boolean() => {
                fault(faults, format!("expected boolean, got &{{{}}}", show::plain(v)));
            }
            _ => {}
        },
        Atom::List(list) => {
            let Value::Array(items) = value else {
                return fault(faults, format!("expected list, got &{{{}}}", show::plain(value)));
            };
            let mut seen = BTreeSet::new();
            for (i, item) in items.iter().enumerate() {
                let element = match item_element(type_, list, i, item) {
                    Ok(element) => element,
                    Err(text) => return fault(faults, format!("element {i}: {text}")),
                };
                check(type_.element(), item, decoded, &At::Item(at, &element), faults);
                if list != ListType::Atomic && !seen.insert(element.clone()) {
                    fault(faults, format!("duplicate entries for key {element}"));
                }
            }
        }
        Atom::Map { open, .. } => {
            let Value::Object(map) = value else {
                return fault(faults, format!("expected map, got &{{{}}}", show::plain(value)));
            };
            for (key, item) in map {
                let below = At::Field(at, key);
                match type_.field(key) {
                    Some(field) if decoded && !field.has_items() => {}
                    Some(field) => check(field, item, decoded, &below, faults),
                    None if open => check(type_.element(), item, decoded, &below, faults),
                    None => return faults.push((below.to_string(), "field not declared in schema".into())),
                }
            }
        }
    }
}

/// The paths that an object has: those which an apply of it owns. `empty` says whether empty structs and nulls of named
/// fields are owned; in v1.20 they are not.
pub fn field_set(type_: Type<'_>, value: &Value, empty: bool) -> Set {
    collect(type_, value, empty).0
}

/// The paths below a value, and whether the value is a path's end itself.
fn collect(type_: Type<'_>, value: &Value, empty: bool) -> (Set, bool) {
    let mut elements = Vec::new();
    match (type_.atom(Some(value)), value) {
        (Atom::Scalar(_) | Atom::List(ListType::Atomic) | Atom::Map { atomic: true, .. }, _) => {
            return (Set::default(), true);
        }
        (Atom::List(list), Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                if let Ok(element) = item_element(type_, list, i, item) {
                    elements.push((element.serialize(), true, collect(type_.element(), item, empty).0));
                }
            }
        }
        (Atom::Map { .. }, Value::Object(map)) => {
            for (key, item) in map {
                let named = type_.field(key).is_some();
                let (element, field) = type_.place(key);
                let (below, end) = collect(field, item, empty);
                let nothing = item.is_null() || item.as_object().is_some_and(Map::is_empty);
                elements.push((element, end || (empty && nothing) || !named, below));
            }
        }
        _ => {}
    }
    (Set::new(elements), false)
}

/// What has changed from `old` to `new`, which must both fit the schema.
pub fn compare(type_: Type<'_>, old: &Value, new: &Value) -> Comparison {
    differ(type_, Some(old), Some(new)).below
}

/// What a place contributes to a comparison: what is below it, and the place itself.
#[derive(Default)]
struct Difference {
    below: Comparison,
    removed: bool,
    changed: bool,
}

impl Difference {
    /// A place that is compared as a whole.
    fn leaf(old: Option<&Value>, new: Option<&Value>) -> Difference {
        let removed = old.is_some() && new.is_none();
        let changed = match (old, new) {
            (None, Some(_)) => true,
            (Some(a), Some(b)) => !equal(a, b),
            _ => false,
        };
        Difference { removed, changed, ..Difference::default() }
    }

    fn or(self, other: Difference) -> Difference {
        Difference {
            below: Comparison {
                removed: self.below.removed.union(other.below.removed),
                changed: self.below.changed.union(other.below.changed),
            },
            removed: self.removed || other.removed,
            changed: self.changed || other.changed,
        }
    }
}

/// Puts together what the places below one contribute.
#[derive(Default)]
struct Parts {
    removed: Vec<(Text, bool, Set)>,
    changed: Vec<(Text, bool, Set)>,
}

impl Parts {
    fn add(&mut self, element: &Text, difference: Difference) {
        let Difference { below, removed, changed } = difference;
        for (parts, itself, below) in
            [(&mut self.removed, removed, below.removed), (&mut self.changed, changed, below.changed)]
        {
            if itself || !below.is_empty() {
                parts.push((element.clone(), itself, below));
            }
        }
    }

    fn together(self) -> Difference {
        let below = Comparison { removed: Set::new(self.removed), changed: Set::new(self.changed) };
        Difference { below, ..Difference::default() }
    }
}

fn differ(type_: Type<'_>, old: Option<&Value>, new: Option<&Value>) -> Difference {
    // Most of an object is new where it is created.
    if let (None, Some(new)) = (old, new) {
        let below = Comparison { changed: added(type_, new), ..Comparison::default() };
        return Difference { below, changed: true, removed: false };
    }
    let mut found = match (type_.atom(old), type_.atom(new)) {
        (atom, _) if new.is_none() => differ_as(atom, type_, old, new),
        (a, b) if a == b => differ_as(b, type_, old, new),
        // The two are of different kinds (possible where the schema says nothing): both ways of looking at them count.
        (a, b) => differ_as(a, type_, old, new).or(differ_as(b, type_, old, new)),
    };
    found.removed |= new.is_none();
    found
}

/// The paths below a place where nothing was before: those of all that can be changed by itself.
fn added(type_: Type<'_>, new: &Value) -> Set {
    match (type_.atom(Some(new)), new) {
        (Atom::List(list @ (ListType::Set | ListType::Map)), Value::Array(items)) => {
            let elements = items.iter().enumerate().filter_map(|(i, item)| {
                let element = item_element(type_, list, i, item).ok()?;
                Some((element.serialize(), true, added(type_.element(), item)))
            });
            Set::new(elements.collect())
        }
        (Atom::Map { atomic: false, .. }, Value::Object(map)) => {
            let elements = map.iter().map(|(key, value)| {
                let (element, field) = type_.place(key);
                (element, true, added(field, value))
            });
            Set::new(elements.collect())
        }
        _ => Set::default(),
    }
}

fn items(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn entries(value: Option<&Value>) -> Option<&Map> {
    value.and_then(Value::as_object).filter(|m| !m.is_empty())
}

/// Compares as one kind of thing.
fn differ_as(atom: Atom, type_: Type<'_>, old: Option<&Value>, new: Option<&Value>) -> Difference {
    let mut parts = Parts::default();
    match atom {
        Atom::Scalar(_) | Atom::List(ListType::Atomic) | Atom::Map { atomic: true, .. } => {
            return Difference::leaf(old, new);
        }
        Atom::List(list) => {
            let (old_items, new_items) = (items(old), items(new));
            if old_items.is_empty() && new_items.is_empty() {
                return Difference::leaf(old, new);
            }
            let named = |items: &[Value]| -> Vec<(Text, usize)> {
                items
                    .iter()
                    .enumerate()
                    .filter_map(|(i, item)| Some((item_element(type_, list, i, item).ok()?.serialize(), i)))
                    .collect()
            };
            let (old_names, new_names) = (named(old_items), named(new_items));
            // Where a name stands twice, the first of the old and the last of the new items count.
            let new_index: BTreeMap<&Text, usize> = new_names.iter().map(|(e, i)| (e, *i)).collect();
            let mut seen = BTreeSet::new();
            for (element, i) in &old_names {
                if seen.insert(element) {
                    let (old, new) = (&old_items[*i], new_index.get(element).map(|j| &new_items[*j]));
                    if Some(old) != new {
                        parts.add(element, differ(type_.element(), Some(old), new));
                    }
                }
            }
            for (element, i) in &new_names {
                if !seen.contains(element) {
                    parts.add(element, differ(type_.element(), None, Some(&new_items[*i])));
                }
            }
        }
        Atom::Map { .. } => {
            let (old_map, new_map) = (entries(old), entries(new));
            if old_map.is_none() && new_map.is_none() {
                return Difference::leaf(old, new);
            }
            side_by_side(old_map.into_iter().flatten(), new_map.into_iter().flatten(), |key, old, new| {
                // Most of an object is the same before and after.
                if old != new {
                    let (element, field) = type_.place(key);
                    parts.add(&element, differ(field, old, new));
                }
            });
        }
    }
    parts.together()
}

/// The live object with an applied configuration laid over it.
pub fn merge(type_: Type<'_>, live: &Value, config: &Value) -> Value {
    overlay(type_, Some(live), Some(config)).unwrap_or(Value::Null)
}

fn overlay(type_: Type<'_>, live: Option<&Value>, config: Option<&Value>) -> Option<Value> {
    let Some(new) = config else { return live.cloned() };
    let Some(old) = live else { return Some(new.clone()) };
    match type_.atom(Some(new)) {
        // A null in the configuration leaves what is in a map or list: only its absence is said.
        Atom::Map { atomic: false, .. } if new.is_null() && entries(live).is_some() => Some(old.clone()),
        Atom::Map { atomic: false, .. } => {
            let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return Some(new.clone()) };
            let mut out = old.clone();
            for (key, item) in new {
                let field = type_.field(key).unwrap_or_else(|| type_.element());
                if let Some(value) = overlay(field, old.get(key), Some(item)) {
                    out.insert(key.clone(), value);
                }
            }
            Some(Value::Object(out))
        }
        Atom::List(list @ (ListType::Set | ListType::Map)) => {
            let (old_items, new_items) = (items(live), items(config));
            if old_items.is_empty() {
                return Some(new.clone());
            }
            let mut rest: Vec<(Option<PathElement>, &Value)> = new_items
                .iter()
                .enumerate()
                .map(|(i, item)| (item_element(type_, list, i, item).ok(), item))
                .collect();
            let mut out = Vec::with_capacity(old_items.len() + rest.len());
            for (i, item) in old_items.iter().enumerate() {
                let element = item_element(type_, list, i, item).ok();
                let found = rest.iter().position(|(e, _)| e.is_some() && *e == element);
                let merged = match found {
                    Some(at) => overlay(type_.element(), Some(item), Some(rest.remove(at).1)),
                    None => Some(item.clone()),
                };
                out.extend(merged);
            }
            out.extend(rest.into_iter().map(|(_, item)| item.clone()));
            Some(Value::Array(out.into()))
        }
        _ => Some(new.clone()),
    }
}

/// The object without the paths given.
pub fn remove(type_: Type<'_>, value: &Value, paths: &Set) -> Value {
    match (type_.atom(Some(value)), value) {
        (Atom::List(list @ (ListType::Set | ListType::Map)), Value::Array(items)) if !items.is_empty() => {
            let kept: Vec<Value> = items
                .iter()
                .enumerate()
                .filter_map(|(i, item)| {
                    let Ok(element) = item_element(type_, list, i, item) else { return Some(item.clone()) };
                    let element = element.serialize();
                    if paths.has_member(&element) {
                        return None;
                    }
                    Some(match paths.child(&element) {
                        Some(subset) => remove(type_.element(), item, &subset),
                        None => item.clone(),
                    })
                })
                .collect();
            if kept.is_empty() { Value::Null } else { Value::Array(kept.into()) }
        }
        (Atom::Map { atomic: false, .. }, Value::Object(map)) if !map.is_empty() => {
            let mut kept = Map::new();
            for (key, item) in map {
                let (element, field) = type_.place(key);
                if paths.has_member(&element) {
                    continue;
                }
                let item = match paths.child(&element) {
                    Some(subset) => remove(field, item, &subset),
                    None => item.clone(),
                };
                kept.insert(key.clone(), item);
            }
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        _ => value.clone(),
    }
}

/// A field set brought up to date with a schema that has changed since it was written: what has become atomic is owned
/// as a whole, what has become granular is owned by its parts.
pub fn reconcile(type_: Type<'_>, set: Set, live: &Value) -> Set {
    if type_.is_deduced() {
        return set;
    }
    let mut change = Adaption { live, remove: Set::default(), add: Set::default() };
    change.look(type_, &set, false, &Way::Root);
    let Adaption { remove, add, .. } = change;
    if remove.is_empty() && add.is_empty() {
        return set;
    }
    let kept = remove_members_only(&set, &remove);
    set.recursive_difference(&remove).union(kept).union(add)
}

/// The members that [`Set::recursive_difference`] takes away with what is below them and that stay owned.
fn remove_members_only(set: &Set, removed: &Set) -> Set {
    set.intersection(removed)
}

/// The elements that lead to a place, and the types that they are in. Followed only where something is to be changed,
/// or where the type does not say all.
enum Way<'a> {
    Root,
    Below(&'a Way<'a>, Type<'a>, &'a Text),
}

impl Way<'_> {
    /// The elements; none where one is none.
    fn path(&self) -> Option<Path> {
        match self {
            Way::Root => Some(Path::new()),
            Way::Below(above, _, element) => {
                let mut path = above.path()?;
                path.push(PathElement::parse(element).ok()?);
                Some(path)
            }
        }
    }

    /// What an object has there.
    fn value<'v>(&self, object: &'v Value) -> Option<&'v Value> {
        match self {
            Way::Root => Some(object),
            Way::Below(above, type_, element) => {
                let above = above.value(object)?;
                match field_name(element) {
                    Some(name) => above.get(name),
                    None => find_item(*type_, above, &PathElement::parse(element).ok()?),
                }
            }
        }
    }
}

/// What a change of the schema does to a set.
struct Adaption<'v> {
    live: &'v Value,
    remove: Set,
    add: Set,
}

impl Adaption<'_> {
    /// Looks at what is owned below a place. `whole` says that the place itself is, and nothing below it.
    fn look(&mut self, type_: Type<'_>, set: &Set, whole: bool, way: &Way<'_>) {
        let add = |set: &mut Set, member, below| {
            if let Some(path) = way.path() {
                *set = std::mem::take(set).union(Set::at(&path, member, below));
            }
        };
        match type_.atom_of(|| way.value(self.live)) {
            Atom::Scalar(_) => {}
            Atom::List(ListType::Atomic) | Atom::Map { atomic: true, .. } => {
                if !whole && !set.is_empty() {
                    add(&mut self.remove, true, Set::default());
                    add(&mut self.add, true, Set::default());
                }
            }
            Atom::List(_) | Atom::Map { .. } => {
                if whole && let Some(value) = way.value(self.live).filter(|v| v.is_array() || v.is_object()) {
                    let (below, _) = collect(type_, value, false);
                    if !below.is_empty() {
                        add(&mut self.add, false, below);
                    }
                }
                for (element, _, child) in set.elements() {
                    self.look_below(type_, element, &child, way);
                }
            }
        }
    }

    fn look_below(&mut self, type_: Type<'_>, element: &Text, child: &Set, way: &Way<'_>) {
        let below = match field_name(element) {
            Some(name) => match type_.field(name) {
                Some(field) => field,
                None if matches!(type_.atom_of(|| way.value(self.live)), Atom::Map { open: true, .. }) => {
                    type_.element()
                }
                None => return,
            },
            None => type_.element(),
        };
        self.look(below, child, child.is_empty(), &Way::Below(way, type_, element));
    }
}

fn find_item<'v>(type_: Type<'_>, live: &'v Value, element: &PathElement) -> Option<&'v Value> {
    let Atom::List(list) = type_.atom(Some(live)) else { return None };
    if let PathElement::Key(keys) = element {
        let has = |item: &Value, name: &str, wanted: &Value| match item.get(name) {
            Some(value) => equal(value, wanted),
            None => type_.key_default(name).is_some_and(|value| equal(&value, wanted)),
        };
        return items(Some(live)).iter().find(|item| keys.iter().all(|(name, value)| has(item, name, value)));
    }
    items(Some(live))
        .iter()
        .enumerate()
        .find_map(|(i, item)| item_element(type_, list, i, item).ok().filter(|e| e == element).map(|_| item))
}
