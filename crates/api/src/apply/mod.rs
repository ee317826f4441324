//! Server-side apply: field sets, typed comparison and merging, and the upkeep of `metadata.managedFields`.

pub mod managed;
pub mod manager;
pub mod path;
pub mod set;
pub mod show;
pub mod typed;
pub mod types;

use std::cmp::Ordering;

use pilothouse_apimachinery::json::Text;

pub use manager::{Convert, FieldManager};
pub use types::Type;

/// What two sides have by name, in the order of names, in which both are.
fn side_by_side<'v, V>(
    old: impl Iterator<Item = (&'v Text, V)>,
    new: impl Iterator<Item = (&'v Text, V)>,
    mut each: impl FnMut(&'v Text, Option<V>, Option<V>),
) {
    let (mut old, mut new) = (old.peekable(), new.peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let (before, after) =
            (if order.is_le() { old.next() } else { None }, if order.is_ge() { new.next() } else { None });
        let name = before.as_ref().or(after.as_ref()).map(|(name, _)| *name);
        if let Some(name) = name {
            each(name, before.map(|(_, v)| v), after.map(|(_, v)| v));
        }
    }
}

#[cfg(test)]
mod tests;
