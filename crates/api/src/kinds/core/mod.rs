//! Kinds of the core group that are no pods, services or controllers.

pub mod binding;
pub mod component_status;
pub mod config_map;
pub mod endpoints;
pub mod limit_range;
pub mod namespace;
pub mod node;
pub mod persistent_volume;
pub mod persistent_volume_claim;
pub mod persistent_volume_source;
pub mod resource_quota;
pub mod resources;
pub mod secret;
pub mod service_account;

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[
    &binding::BINDING,
    &component_status::COMPONENT_STATUS,
    &config_map::CONFIG_MAP,
    &endpoints::ENDPOINTS,
    &limit_range::LIMIT_RANGE,
    &namespace::NAMESPACE,
    &node::NODE,
    &persistent_volume_claim::PERSISTENT_VOLUME_CLAIM,
    &persistent_volume::PERSISTENT_VOLUME,
    &resource_quota::RESOURCE_QUOTA,
    &secret::SECRET,
    &service_account::SERVICE_ACCOUNT,
];
