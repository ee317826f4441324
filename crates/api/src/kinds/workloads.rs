//! Kinds of the family `workloads`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
