//! Sets of field paths, and their JSON form `FieldsV1`.

use pilothouse_apimachinery::json::{Map, Text, Value};

use super::path::{Path, PathElement};
use super::types::Type;

/// A set of paths, as a tree: which elements are members here, and what is below. Both are in order, each element
/// stands once, and nothing below is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    members: Vec<PathElement>,
    children: Vec<(PathElement, Set)>,
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

    /// A set of members and of what is below elements, in any order.
    pub fn new(members: Vec<PathElement>, children: Vec<(PathElement, Set)>) -> Set {
        let mut set = Set { members, children };
        if !set.members.is_sorted_by(|a, b| a < b) {
            set.members.sort();
            set.members.dedup();
        }
        set.children.retain(|(_, child)| !child.is_empty());
        if !set.children.is_sorted_by(|a, b| a.0 < b.0) {
            set.children.sort_by(|a, b| a.0.cmp(&b.0));
            set.children.dedup_by(|later, before| {
                let same = later.0 == before.0;
                if same {
                    before.1 = std::mem::take(&mut before.1).union(std::mem::take(&mut later.1));
                }
                same
            });
        }
        set
    }

    /// The same of what is in order, each element once and nothing below empty.
    pub(super) fn in_order(members: Vec<PathElement>, children: Vec<(PathElement, Set)>) -> Set {
        debug_assert!(members.is_sorted_by(|a, b| a < b) && children.is_sorted_by(|a, b| a.0 < b.0));
        Set { members, children }
    }

    /// Adds a path. The empty path is nobody's: nothing happens.
    pub fn insert(&mut self, path: &[PathElement]) {
        match path {
            [] => {}
            [last] => {
                if let Err(at) = self.members.binary_search(last) {
                    self.members.insert(at, last.clone());
                }
            }
            [first, rest @ ..] => {
                let at = match self.find(first) {
                    Ok(at) => at,
                    Err(at) => {
                        self.children.insert(at, (first.clone(), Set::default()));
                        at
                    }
                };
                self.children[at].1.insert(rest);
            }
        }
    }

    /// Adds all paths of a set that lies below a path.
    pub fn insert_below(&mut self, path: &[PathElement], set: Set) {
        let below =
            path.iter().rev().fold(set, |set, element| Set::new(Vec::new(), vec![(element.clone(), set)]));
        *self = std::mem::take(self).union(below);
    }

    fn find(&self, element: &PathElement) -> Result<usize, usize> {
        self.children.binary_search_by(|(e, _)| e.cmp(element))
    }

    /// Whether the path is in the set.
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.has_member(last),
            [first, rest @ ..] => self.child(first).is_some_and(|c| c.has(rest)),
        }
    }

    /// Whether the element itself is a member here.
    pub fn has_member(&self, element: &PathElement) -> bool {
        self.members.binary_search(element).is_ok()
    }

    /// What is below an element.
    pub fn child(&self, element: &PathElement) -> Option<&Set> {
        self.find(element).ok().map(|at| &self.children[at].1)
    }

    /// The members here.
    pub fn members(&self) -> impl Iterator<Item = &PathElement> {
        self.members.iter()
    }

    /// The elements that have something below them.
    pub fn children(&self) -> impl Iterator<Item = (&PathElement, &Set)> {
        self.children.iter().map(|(element, child)| (element, child))
    }

    /// No path at all.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty() && self.children.is_empty()
    }

    /// Paths of either.
    #[must_use]
    pub fn union(mut self, mut other: Set) -> Set {
        if self.is_empty() {
            return other;
        }
        // Sorting what consists of two sorted parts is merging them.
        self.members.append(&mut other.members);
        self.children.append(&mut other.children);
        Set::new(self.members, self.children)
    }

    /// Paths of both.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        let children = self.children.iter().filter_map(|(element, child)| {
            let both = child.intersection(other.child(element)?);
            (!both.is_empty()).then(|| (element.clone(), both))
        });
        Set {
            members: self.members.iter().filter(|e| other.has_member(e)).cloned().collect(),
            children: children.collect(),
        }
    }

    /// Paths of this one that the other does not have.
    #[must_use]
    pub fn difference(mut self, other: &Set) -> Set {
        if !other.is_empty() {
            self.members.retain(|element| !other.has_member(element));
            self.children.retain_mut(|(element, child)| {
                if let Some(other) = other.child(element) {
                    *child = std::mem::take(child).difference(other);
                }
                !child.is_empty()
            });
        }
        self
    }

    /// Paths of this one that are neither in the other nor below one of its paths.
    #[must_use]
    pub fn recursive_difference(mut self, other: &Set) -> Set {
        if !other.is_empty() {
            self.members.retain(|element| !other.has_member(element));
            self.children.retain_mut(|(element, child)| {
                if other.has_member(element) {
                    return false;
                }
                if let Some(other) = other.child(element) {
                    *child = std::mem::take(child).recursive_difference(other);
                }
                !child.is_empty()
            });
        }
        self
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
        let mut members = self.members.clone();
        let mut children = Vec::with_capacity(self.children.len());
        for (element, child) in &self.children {
            let below = match element {
                PathElement::Field(name) => match type_.field(name) {
                    Some(field) => {
                        members.push(element.clone());
                        field
                    }
                    None => type_.element(),
                },
                _ => type_.element(),
            };
            children.push((element.clone(), child.with_named_fields(below)));
        }
        Set::new(members, children)
    }

    /// The JSON form.
    pub fn to_fields_v1(&self) -> Value {
        Value::Object(self.fields(false))
    }

    /// The JSON form; `member` says whether what the set is below is a member itself.
    fn fields(&self, member: bool) -> Map {
        let mut out = Vec::with_capacity(self.members.len() + self.children.len() + 1);
        if member {
            out.push((Text::const_new("."), Value::Object(Map::new())));
        }
        let mut members = self.members.iter().peekable();
        for (element, child) in &self.children {
            while let Some(before) = members.next_if(|m| *m < element) {
                out.push((before.serialize(), Value::Object(Map::new())));
            }
            let itself = members.next_if(|m| *m == element).is_some();
            out.push((element.serialize(), Value::Object(child.fields(itself))));
        }
        out.extend(members.map(|m| (m.serialize(), Value::Object(Map::new()))));
        out.into_iter().collect()
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
        let (mut members, mut children) = (Vec::new(), Vec::new());
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
            if !child.is_empty() {
                children.push((element.clone(), child));
            }
            if member {
                members.push(element);
            }
        }
        Ok(Set::new(members, children))
    }
}
