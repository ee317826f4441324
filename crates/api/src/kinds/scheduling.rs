//! Kinds of the family `scheduling`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
