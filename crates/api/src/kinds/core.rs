//! Kinds of the family `core`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
