//! Kinds of the family `authorization`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
