//! Kinds of the family `admissionregistration`.

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[];
