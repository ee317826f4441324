//! Kinds of the family `autoscaling`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
