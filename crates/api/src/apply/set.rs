//! Sets of field paths, kept in their JSON form `FieldsV1`: what is read and written is what is worked on.

use pilothouse_apimachinery::json::{Map, Text, Value};

use super::path::{Path, PathElement, field_name};
use super::side_by_side;
use super::types::Type;

/// A set of paths: an object with a member for each element (as [`PathElement::serialize`] writes it) that is in the set
/// or has something below it that is. The member's value is the set below, with `.` in it where the element itself is
/// in the set, too; an element with nothing below is in the set itself. Copies share what they have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set(Map);

/// The name under which an element's own membership stands among what is below it.
const ITSELF: &str = ".";

/// How deep a `FieldsV1` tree may be: deeper ones are no object's.
const MAX_DEPTH: usize = 256;

/// The elements below one, or at the root, with what is below them.
fn below(node: &Map) -> impl Iterator<Item = (&Text, &Map)> {
    node.iter().filter(|(element, _)| *element != ITSELF).filter_map(|(k, v)| Some((k, v.as_object()?)))
}

/// Whether the element with this below it is in the set.
fn is_member(node: &Map) -> bool {
    node.is_empty() || node.contains_key(ITSELF)
}

/// An element in the making.
struct Node {
    member: bool,
    /// With room for [`ITSELF`] at the beginning, if it is a member.
    below: Vec<(Text, Value)>,
}

impl Node {
    fn new(member: bool, room: usize) -> Node {
        let mut below = Vec::with_capacity(room + usize::from(member));
        if member {
            below.push((Text::const_new(ITSELF), Value::Object(Map::new())));
        }
        Node { member, below }
    }

    fn push(&mut self, element: &Text, node: Option<Map>) {
        self.below.extend(node.map(|node| (element.clone(), Value::Object(node))));
    }

    /// Nothing for an element that is not in the set and has nothing below it.
    fn finish(self) -> Option<Map> {
        match self.below.len() {
            0 => None,
            1 if self.member => Some(Map::new()),
            _ => Some(Map::from_sorted(self.below)),
        }
    }
}

/// The elements of two sets, in order.
fn both<'v>(a: &'v Map, b: &'v Map, each: impl FnMut(&'v Text, Option<&'v Map>, Option<&'v Map>)) {
    side_by_side(below(a), below(b), each);
}

/// `member` says, here and below, whether the element that all this lies below is in the outcome.
fn union(a: &Map, b: &Map, member: bool) -> Option<Map> {
    let mut out = Node::new(member, a.len() + b.len());
    both(a, b, |element, a, b| {
        let node = match (a, b) {
            (Some(a), Some(b)) => union(a, b, is_member(a) || is_member(b)),
            (a, b) => a.or(b).cloned(),
        };
        out.push(element, node);
    });
    out.finish()
}

fn intersection(a: &Map, b: &Map, member: bool) -> Option<Map> {
    let mut out = Node::new(member, a.len().min(b.len()));
    both(a, b, |element, a, b| {
        if let (Some(a), Some(b)) = (a, b) {
            out.push(element, intersection(a, b, is_member(a) && is_member(b)));
        }
    });
    out.finish()
}

/// What is in `a` and not in `b`; where `whole`, nor below what is in `b`.
fn difference(a: &Map, b: &Map, member: bool, whole: bool) -> Option<Map> {
    let mut out = Node::new(member, a.len());
    both(a, b, |element, a, b| match (a, b) {
        (Some(_), Some(b)) if whole && is_member(b) => {}
        (Some(a), Some(b)) => out.push(element, difference(a, b, is_member(a) && !is_member(b), whole)),
        (a, _) => out.push(element, a.cloned()),
    });
    out.finish()
}

fn is_disjoint(a: &Map, b: &Map) -> bool {
    below(b).all(|(element, b)| match a.get(element).and_then(Value::as_object) {
        Some(a) => !(is_member(a) && is_member(b)) && is_disjoint(a, b),
        None => true,
    })
}

impl Set {
    /// A set of the given paths of fields.
    pub fn of(paths: &[&[&str]]) -> Set {
        let path = |path: &&[&str]| path.iter().map(|name| PathElement::field(name)).collect::<Path>();
        paths
            .iter()
            .map(path)
            .fold(Set::default(), |set, path| set.union(Set::at(&path, true, Set::default())))
    }

    /// A set of elements, each with whether it is in the set itself and with what is below it, in any order.
    pub(super) fn new(mut elements: Vec<(Text, bool, Set)>) -> Set {
        if !elements.is_sorted_by(|a, b| a.0 < b.0) {
            elements.sort_by(|a, b| a.0.cmp(&b.0));
            elements.dedup_by(|later, before| {
                let same = later.0 == before.0;
                if same {
                    before.1 |= later.1;
                    before.2 = std::mem::take(&mut before.2).union(std::mem::take(&mut later.2));
                }
                same
            });
        }
        let mut out = Vec::with_capacity(elements.len());
        for (element, member, Set(mut below)) in elements {
            if member && !below.is_empty() {
                below.insert(Text::const_new(ITSELF), Map::new());
            }
            if member || !below.is_empty() {
                out.push((element, Value::Object(below)));
            }
        }
        Set(Map::from_sorted(out))
    }

    /// What lies below a path, and the path itself if it is a member. The empty path is nobody's.
    pub fn at(path: &[PathElement], member: bool, below: Set) -> Set {
        let Some((last, above)) = path.split_last() else { return below };
        let last = Set::new(vec![(last.serialize(), member, below)]);
        above.iter().rev().fold(last, |below, element| Set::new(vec![(element.serialize(), false, below)]))
    }

    /// Whether the path is in the set.
    pub fn has(&self, path: &[PathElement]) -> bool {
        match path {
            [] => false,
            [last] => self.has_member(&last.serialize()),
            [first, rest @ ..] => self.child(&first.serialize()).is_some_and(|child| child.has(rest)),
        }
    }

    fn node(&self, element: &str) -> Option<&Map> {
        self.0.get(element).filter(|_| element != ITSELF)?.as_object()
    }

    /// Whether the element itself is a member here.
    pub fn has_member(&self, element: &str) -> bool {
        self.node(element).is_some_and(is_member)
    }

    /// What is below an element, if there is something.
    pub fn child(&self, element: &str) -> Option<Set> {
        self.node(element).filter(|node| below(node).next().is_some()).cloned().map(Set)
    }

    /// The elements that are members here or have members below them: whether they are members, and what is below.
    pub fn elements(&self) -> impl Iterator<Item = (&Text, bool, Set)> {
        below(&self.0).map(|(element, node)| (element, is_member(node), Set(node.clone())))
    }

    /// No path at all.
    pub fn is_empty(&self) -> bool {
        below(&self.0).next().is_none()
    }

    /// Paths of either.
    #[must_use]
    pub fn union(self, other: Set) -> Set {
        if self.is_empty() {
            return other;
        }
        Set(union(&self.0, &other.0, false).unwrap_or_default())
    }

    /// Whether no path is in both.
    pub fn is_disjoint(&self, other: &Set) -> bool {
        is_disjoint(&self.0, &other.0)
    }

    /// Paths of both.
    #[must_use]
    pub fn intersection(&self, other: &Set) -> Set {
        Set(intersection(&self.0, &other.0, false).unwrap_or_default())
    }

    /// Paths of this one that the other does not have.
    #[must_use]
    pub fn difference(self, other: &Set) -> Set {
        if self.is_disjoint(other) {
            return self;
        }
        Set(difference(&self.0, &other.0, false, false).unwrap_or_default())
    }

    /// Paths of this one that are neither in the other nor below one of its paths.
    #[must_use]
    pub fn recursive_difference(self, other: &Set) -> Set {
        if other.is_empty() {
            return self;
        }
        Set(difference(&self.0, &other.0, false, true).unwrap_or_default())
    }

    /// All paths, in the order of their elements: members first, then what is below.
    pub fn paths(&self) -> Vec<Path> {
        let mut out = Vec::new();
        self.walk(&mut Vec::new(), &mut out);
        out
    }

    fn walk(&self, prefix: &mut Path, out: &mut Vec<Path>) {
        let parsed = |(element, member, child): (&Text, _, _)| {
            Some((PathElement::parse(element).ok()?, member, child))
        };
        let mut elements: Vec<(PathElement, bool, Set)> = self.elements().filter_map(parsed).collect();
        elements.sort_by(|a, b| a.0.cmp(&b.0));
        for (member, _, _) in elements.iter().filter(|(_, member, _)| *member) {
            let mut path = prefix.clone();
            path.push(member.clone());
            out.push(path);
        }
        for (element, _, child) in elements {
            prefix.push(element);
            child.walk(prefix, out);
            prefix.pop();
        }
    }

    /// The set with every *named* field of a struct that has paths below it made a member. Owning `spec.replicas`
    /// then counts as owning `spec`, where `spec` is a struct (not an entry of a map).
    #[must_use]
    pub fn with_named_fields(&self, type_: Type<'_>) -> Set {
        let elements = self.elements().map(|(element, member, child)| {
            let field = field_name(element).and_then(|name| type_.field(name));
            let named = field.is_some() && !child.is_empty();
            let child = child.with_named_fields(field.unwrap_or_else(|| type_.element()));
            (element.clone(), member || named, child)
        });
        Set::new(elements.collect())
    }

    /// The JSON form.
    pub fn to_fields_v1(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// A set from the JSON form in which one has been written: not looked at again.
    pub fn written(fields: &Map) -> Set {
        Set(fields.clone())
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
        let mut elements = Vec::with_capacity(map.len());
        // A set's own membership stands with its parent.
        for (key, below) in map.iter().filter(|(key, _)| *key != ITSELF) {
            let element = PathElement::parse(key)?;
            let Value::Object(node) = below else { return Err("expected an object".into()) };
            elements.push((element.serialize(), is_member(node), Self::read(below, depth + 1)?));
        }
        Ok(Set::new(elements))
    }
}
