//! Kinds of the family `flowcontrol`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
