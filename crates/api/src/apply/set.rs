//! Sets of field paths, and their JSON form `FieldsV1`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::path::{Path, PathElement};
use super::types::Type;

/// A set of paths, as a tree: which elements are members here, and what is below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    members: BTreeSet<PathElement>,
    children: BTreeMap<PathElement, Set>,
}

/// How deep a `FieldsV1` tree may be: deeper ones are no object's.
const MAX_DEPTH: usize = 256;

impl Set {
    /// A set of the given paths.
    pub fn of(paths: &[&[&str]]) -> Set {
        let mut set = Set::default();
        for path in paths {
            let path: Path = path.iter().map(|name| PathElement::Field((*name).into())).collect();
            set.insert(&path);
        }
        set
    }

    /// Adds a path. The empty path is nobody's: nothing happens.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => {
                self.members.insert(last.clone());
            }
            [first, rest @ ..] => match self.children.get_mut(first) {
                Some(child) => child.insert(rest),
                None => self.children.entry(first.clone()).or_default().insert(rest),
            },
        }
    }

    /// Whether the path is in the set.
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.members.contains(last),
            [first, rest @ ..] => self.children.get(first).is_some_and(|c| c.has(rest)),
        }
    }

    /// Whether the element itself is a member here.
    pub fn has_member(&self, element: &PathElement) -> bool {
        self.members.contains(element)
    }

    /// What is below an element.
    pub fn child(&self, element: &PathElement) -> Option<&Set> {
        self.children.get(element).filter(|c| !c.is_empty())
    }

    /// The members here.
    pub fn members(&self) -> impl Iterator<Item = &PathElement> {
        self.members.iter()
    }

    /// The elements that have something below them.
    pub fn children(&self) -> impl Iterator<Item = (&PathElement, &Set)> {
        self.children.iter().filter(|(_, c)| !c.is_empty())
    }

    /// No path at all.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.values().all(Set::is_empty)
    }

    /// Paths of either.
    #[must_use]
    pub fn union(&self, other: &Set) -> Set {
        let mut out = self.clone();
        out.members.extend(other.members.iter().cloned());
        for (element, child) in other.children() {
            let slot = out.children.entry(element.clone()).or_default();
            *slot = slot.union(child);
        }
        out
    }

    /// This set without the other's paths; the same set where the other has none.
    #[must_use]
    pub fn minus(self, other: &Set) -> Set {
        if other.is_empty() { self } else { self.difference(other) }
    }

    /// Paths of both.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        let children = self.children().filter_map(|(element, child)| {
            let both = child.intersection(other.children.get(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        Set {
            members: self.members.intersection(&other.members).cloned().collect(),
            children: children.collect(),
        }
    }

    /// Paths of this one that the other does not have.
    #[must_use]
    pub fn difference(&self, other: &Set) -> Set {
        let children = self.children().filter_map(|(element, child)| {
            let left = other.children.get(element).map_or_else(|| child.clone(), |o| child.difference(o));
            (!left.is_empty()).then(|| (element.clone(), left))
        });
        Set {
            members: self.members.difference(&other.members).cloned().collect(),
            children: children.collect(),
        }
    }

    /// Paths of this one that are neither in the other nor below one of its paths.
    #[must_use]
    pub fn recursive_difference(&self, other: &Set) -> Set {
        let children = self.children().filter(|(element, _)| !other.members.contains(element)).filter_map(
            |(element, child)| {
                let left = other
                    .children
                    .get(element)
                    .map_or_else(|| child.clone(), |o| child.recursive_difference(o));
                (!left.is_empty()).then(|| (element.clone(), left))
            },
        );
        Set {
            members: self.members.difference(&other.members).cloned().collect(),
            children: children.collect(),
        }
    }

    /// All paths, in order: members first, then what is below.
    pub fn paths(&self) -> Vec<Path> {
        let mut out = Vec::new();
        self.walk(&mut Vec::new(), &mut out);
        out
    }

    fn walk(&self, prefix: &mut Path, out: &mut Vec<Path>) {
        for member in &self.members {
            let mut path = prefix.clone();
            path.push(member.clone());
            out.push(path);
        }
        for (element, child) in self.children() {
            prefix.push(element.clone());
            child.walk(prefix, out);
            prefix.pop();
        }
    }

    /// The set with every *named* field of a struct that has paths below it made a member. Owning `spec.replicas`
    /// then counts as owning `spec`, where `spec` is a struct (not an entry of a map).
    #[must_use]
    pub fn with_named_fields(&self, type_: Type<'_>) -> Set {
        let mut out = Set { members: self.members.clone(), children: BTreeMap::new() };
        for (element, child) in self.children() {
            let below = match element {
                PathElement::Field(name) => match type_.field(name) {
                    Some(field) => {
                        out.members.insert(element.clone());
                        field
                    }
                    None => type_.element(),
                },
                _ => type_.element(),
            };
            out.children.insert(element.clone(), child.with_named_fields(below));
        }
        out
    }

    /// The JSON form.
    pub fn to_fields_v1(&self) -> Value {
        let mut out = Map::new();
        for member in &self.members {
            out.insert(member.serialize(), Value::Object(Map::new()));
        }
        for (element, child) in self.children() {
            let mut below = child.to_fields_v1();
            if self.members.contains(element)
                && let Value::Object(map) = &mut below
            {
                map.insert(".".into(), Value::Object(Map::new()));
            }
            out.insert(element.serialize(), below);
        }
        Value::Object(out)
    }

    /// Reads the JSON form.
    pub fn from_fields_v1(value: &Value) -> Result<Set, String> {
        Self::read(value, 0)
    }

    fn read(value: &Value, depth: usize) -> Result<Set, String> {
        let Value::Object(map) = value else { return Err("expected an object".into()) };
        if depth > MAX_DEPTH {
            return Err("fieldsV1 is too deep".into());
        }
        let mut out = Set::default();
        for (key, below) in map {
            // A set's own membership stands with its parent.
            if key == "." {
                continue;
            }
            let element = PathElement::parse(key)?;
            let member = match below {
                Value::Object(inner) => inner.is_empty() || inner.contains_key("."),
                _ => return Err("expected an object".into()),
            };
            let child = Self::read(below, depth + 1)?;
            if member {
                out.members.insert(element.clone());
            }
            if !child.is_empty() {
                out.children.insert(element, child);
            }
        }
        Ok(out)
    }
}
