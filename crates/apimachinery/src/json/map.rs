//! Objects of JSON and lists of JSON: shared between copies until one of them is changed.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut, Index, IndexMut};
use std::slice;
use std::sync::Arc;

use super::{Text, Value};

/// Up to how many members one is looked for from the first to the last.
const FEW: usize = 16;
/// Room for so many is made with the first.
const FIRST: usize = 8;

type Members = Vec<(Text, Value)>;

/// An object of JSON: members sorted by name, each name once. A copy costs nothing; members are copied when one of two
/// copies is changed, and of what lies below them only what is changed, too.
#[derive(Clone, Default)]
pub struct Map(Option<Arc<Members>>);

impl Map {
    /// An empty object.
    pub const fn new() -> Map {
        Map(None)
    }

    fn members(&self) -> &[(Text, Value)] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }

    fn members_mut(&mut self) -> &mut Members {
        Arc::make_mut(self.0.get_or_insert_default())
    }

    /// Where a member is, or where it would have to be.
    fn find(&self, name: &str) -> Result<usize, usize> {
        let members = self.members();
        // Objects are mostly made in the order of their names.
        match members.last() {
            Some((last, _)) if last.as_str() < name => return Err(members.len()),
            None => return Err(0),
            _ => {}
        }
        members.binary_search_by(|(k, _)| k.as_str().cmp(name))
    }

    /// Where a member is.
    fn position(&self, name: &str) -> Option<usize> {
        let members = self.members();
        if members.len() <= FEW {
            members.iter().position(|(k, _)| k == name)
        } else {
            members.binary_search_by(|(k, _)| k.as_str().cmp(name)).ok()
        }
    }

    /// An object of members that are sorted by name, each name once.
    pub fn from_sorted(members: Vec<(Text, Value)>) -> Map {
        debug_assert!(members.is_sorted_by(|(a, _), (b, _)| a < b));
        if members.is_empty() { Map(None) } else { Map(Some(Arc::new(members))) }
    }

    /// Whether this and another are copies of one object that share all it holds.
    pub fn is_shared_with(&self, other: &Map) -> bool {
        matches!((&self.0, &other.0), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
    }

    /// The member of a name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.position(name).map(|at| &self.members()[at].1)
    }

    /// The member of a name, for change.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        let at = self.position(name)?;
        Some(&mut self.members_mut()[at].1)
    }

    /// Whether there is a member of a name.
    pub fn contains_key(&self, name: &str) -> bool {
        self.position(name).is_some()
    }

    /// Sets a member; what was there before.
    pub fn insert(&mut self, name: impl Into<Text>, value: impl Into<Value>) -> Option<Value> {
        let (name, value) = (name.into(), value.into());
        match self.find(&name) {
            Ok(at) => Some(std::mem::replace(&mut self.members_mut()[at].1, value)),
            Err(at) => {
                let members = self.members_mut();
                if members.capacity() == 0 {
                    members.reserve(FIRST);
                }
                members.insert(at, (name, value));
                None
            }
        }
    }

    /// Removes a member: what was there.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let at = self.position(name)?;
        Some(self.members_mut().remove(at).1)
    }

    /// The place of a member, whether one is there or not.
    pub fn entry(&mut self, name: impl Into<Text>) -> Entry<'_> {
        let name = name.into();
        let at = self.find(&name);
        Entry { map: self, name, at }
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.members().len()
    }

    /// Whether there is no member.
    pub fn is_empty(&self) -> bool {
        self.members().is_empty()
    }

    /// Removes all members.
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// Sets members, and removes those without a value: in one pass where there are many.
    pub fn change(&mut self, changes: BTreeMap<Text, Option<Value>>) {
        if changes.len() <= FEW {
            for (name, value) in changes {
                match value {
                    Some(value) => drop(self.insert(name, value)),
                    None => drop(self.remove(&name)),
                }
            }
            return;
        }
        let mut old = std::mem::take(self).into_iter().peekable();
        let mut members = Vec::with_capacity(old.len() + changes.len());
        for (name, value) in changes {
            while let Some(member) = old.next_if(|(k, _)| *k < name) {
                members.push(member);
            }
            old.next_if(|(k, _)| *k == name);
            members.extend(value.map(|value| (name, value)));
        }
        members.extend(old);
        *self = Map(Some(Arc::new(members)));
    }

    /// Leaves those members of which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&Text, &mut Value) -> bool) {
        if !self.is_empty() {
            self.members_mut().retain_mut(|(k, v)| keep(k, v));
        }
    }

    /// Members by name.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.members().iter())
    }

    /// Members by name, for change.
    pub fn iter_mut(&mut self) -> IterMut<'_> {
        IterMut(if self.is_empty() { [].iter_mut() } else { self.members_mut().iter_mut() })
    }

    /// The members' names.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Text> + ExactSizeIterator + Clone {
        self.members().iter().map(|(k, _)| k)
    }

    /// The members' values, by name.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Value> + ExactSizeIterator + Clone {
        self.members().iter().map(|(_, v)| v)
    }

    /// The members' values, by name, for change.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.iter_mut().map(|(_, v)| v)
    }

    /// The members' values alone, by name.
    pub fn into_values(self) -> impl Iterator<Item = Value> {
        self.into_iter().map(|(_, v)| v)
    }
}

/// The place of a member: [`Map::entry`].
pub struct Entry<'a> {
    map: &'a mut Map,
    name: Text,
    at: Result<usize, usize>,
}

impl<'a> Entry<'a> {
    /// The member, which is made of a value where none is there.
    pub fn or_insert(self, value: impl Into<Value>) -> &'a mut Value {
        self.or_insert_with(|| value.into())
    }

    /// The member, which is made where none is there.
    pub fn or_insert_with(self, value: impl FnOnce() -> Value) -> &'a mut Value {
        let members = self.map.members_mut();
        let at = self.at.unwrap_or_else(|at| {
            members.insert(at, (self.name, value()));
            at
        });
        &mut members[at].1
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Map) -> bool {
        match (&self.0, &other.0) {
            // An `Arc` is equal to itself without a look at what it holds.
            (Some(a), Some(b)) => a == b,
            _ => self.is_empty() && other.is_empty(),
        }
    }
}

impl Eq for Map {}

impl Hash for Map {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.members().hash(state);
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Index<&str> for Map {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        self.get(name).unwrap_or(&super::NULL)
    }
}

impl IndexMut<&str> for Map {
    fn index_mut(&mut self, name: &str) -> &mut Value {
        self.entry(name).or_insert(Value::Null)
    }
}

impl From<Vec<(Text, Value)>> for Map {
    /// Of members of one name the last counts.
    fn from(mut members: Vec<(Text, Value)>) -> Map {
        if !members.is_sorted_by(|(a, _), (b, _)| a < b) {
            members.sort_by(|(a, _), (b, _)| a.cmp(b));
            // Of neighbours of one name `dedup_by` would leave the first.
            members.dedup_by(|next, kept| {
                let same = next.0 == kept.0;
                if same {
                    std::mem::swap(&mut next.1, &mut kept.1);
                }
                same
            });
        }
        Map::from_sorted(members)
    }
}

impl<K: Into<Text>, V: Into<Value>> FromIterator<(K, V)> for Map {
    /// Of members of one name the last counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Map {
        Map::from(iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect::<Members>())
    }
}

impl<K: Into<Text>, V: Into<Value>> Extend<(K, V)> for Map {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, iter: I) {
        self.change(iter.into_iter().map(|(k, v)| (k.into(), Some(v.into()))).collect());
    }
}

/// Members by name: [`Map::iter`].
#[derive(Clone)]
pub struct Iter<'a>(slice::Iter<'a, (Text, Value)>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a Text, &'a Value);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(k, v)| (k, v))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl DoubleEndedIterator for Iter<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back().map(|(k, v)| (k, v))
    }
}

impl ExactSizeIterator for Iter<'_> {}

/// Members by name, for change: [`Map::iter_mut`].
pub struct IterMut<'a>(slice::IterMut<'a, (Text, Value)>);

impl<'a> Iterator for IterMut<'a> {
    type Item = (&'a Text, &'a mut Value);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(k, v)| (&*k, v))
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = (&'a Text, &'a Value);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Map {
    type Item = (&'a Text, &'a mut Value);
    type IntoIter = IterMut<'a>;

    fn into_iter(self) -> IterMut<'a> {
        self.iter_mut()
    }
}

impl IntoIterator for Map {
    type Item = (Text, Value);
    type IntoIter = std::vec::IntoIter<(Text, Value)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.map(Arc::unwrap_or_clone).unwrap_or_default().into_iter()
    }
}

/// A list of JSON: a `Vec` of values that copies share until one of them is changed.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Array(Arc<Vec<Value>>);

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Array {
    /// An empty list.
    pub fn new() -> Array {
        Array::default()
    }

    /// Whether this and another are copies of one list that share all it holds.
    pub fn is_shared_with(&self, other: &Array) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Deref for Array {
    type Target = Vec<Value>;

    fn deref(&self) -> &Vec<Value> {
        &self.0
    }
}

impl DerefMut for Array {
    fn deref_mut(&mut self) -> &mut Vec<Value> {
        Arc::make_mut(&mut self.0)
    }
}

impl From<Vec<Value>> for Array {
    fn from(items: Vec<Value>) -> Array {
        Array(Arc::new(items))
    }
}

impl From<Array> for Vec<Value> {
    fn from(items: Array) -> Vec<Value> {
        Arc::unwrap_or_clone(items.0)
    }
}

impl<V: Into<Value>> FromIterator<V> for Array {
    fn from_iter<I: IntoIterator<Item = V>>(iter: I) -> Array {
        Array(Arc::new(iter.into_iter().map(Into::into).collect()))
    }
}

impl IntoIterator for Array {
    type Item = Value;
    type IntoIter = std::vec::IntoIter<Value>;

    fn into_iter(self) -> Self::IntoIter {
        Arc::unwrap_or_clone(self.0).into_iter()
    }
}

impl<'a> IntoIterator for &'a Array {
    type Item = &'a Value;
    type IntoIter = slice::Iter<'a, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a mut Array {
    type Item = &'a mut Value;
    type IntoIter = slice::IterMut<'a, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
