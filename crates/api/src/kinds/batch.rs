//! Kinds of the family `batch`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
