//! Kinds of the family `service`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
