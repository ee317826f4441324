//! Kinds of `flowcontrol.apiserver.k8s.io`. Hub is v1beta1, the only version that v1.20 has.

mod flow_schema;
mod priority_level;

use super::Kind;

pub use flow_schema::FLOW_SCHEMA;
pub use priority_level::PRIORITY_LEVEL_CONFIGURATION;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&FLOW_SCHEMA, &PRIORITY_LEVEL_CONFIGURATION];
