//! Resources that are not just stored: reviews, tokens, bindings, evictions, component statuses, services' addresses.

pub mod access_review;
pub mod binding;
pub mod body;
pub mod component_status;
pub mod eviction;
pub mod openid;
pub mod service;
pub mod token_request;
pub mod token_review;

use std::sync::Arc;

use pilothouse_store::Store;

use crate::config::Config;
use crate::proxy;
use crate::request::Objects;
use crate::special::SpecialRest;

/// Registers all handlers and hooks. Errors name the flag or file.
pub fn register(
    special: &mut SpecialRest,
    config: &Arc<Config>,
    _objects: &Arc<dyn Objects>,
    store: &Arc<dyn Store>,
) -> Result<(), String> {
    access_review::register(special);
    token_review::register(special);
    token_request::register(special, config)?;
    binding::register(special);
    eviction::register(special);
    component_status::register(special);
    openid::register(special, config)?;
    special.hook("", "services", Arc::new(service::Allocators::new(config, store)));
    proxy::register(special, config)
}
