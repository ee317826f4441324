//! Kinds of the family `coordination`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
