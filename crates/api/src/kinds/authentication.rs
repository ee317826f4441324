//! Kinds of the family `authentication`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
