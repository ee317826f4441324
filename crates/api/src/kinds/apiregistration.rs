//! Kinds of the family `apiregistration`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
