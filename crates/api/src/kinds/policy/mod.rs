//! The group `policy`: disruption budgets and security policies of pods.

mod poddisruptionbudget;
mod podsecuritypolicy;

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] =
    &[&poddisruptionbudget::POD_DISRUPTION_BUDGET, &podsecuritypolicy::POD_SECURITY_POLICY];
