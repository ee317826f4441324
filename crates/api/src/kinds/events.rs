//! Kinds of the family `events`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
