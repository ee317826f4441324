//! Kinds of the family `pod`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
