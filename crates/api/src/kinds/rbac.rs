//! Kinds of the family `rbac`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
