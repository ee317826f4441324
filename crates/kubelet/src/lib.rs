//! kubelet: runs the pods that are bound to its node.
//!
//! [`kubelet::Kubelet`] holds the parts together; [`pods`] has the life of a pod, [`containers`] what the runtime is
//! told of it, [`runtime`] the protocol with the runtime, [`node`] the Node object.

#![recursion_limit = "256"]

pub mod api;
pub mod backoff;
pub mod bootstrap;
pub mod certificates;
pub mod cgroups;
pub mod clock;
pub mod config;
pub mod configuration;
pub mod containers;
pub mod eviction;
pub mod hooks;
pub mod http;
pub mod images;
pub mod kubelet;
pub mod log_rotation;
pub mod logs;
pub mod metrics;
pub mod node;
pub mod objects;
pub mod pod;
pub mod pods;
pub mod probes;
pub mod resources;
mod run;
pub mod runtime;
pub mod server;
pub mod stats;
#[cfg(test)]
mod testing;
pub mod volumes;

pub use config::Config;
pub use run::run;

/// The flag table.
pub const FLAGS: &str = include_str!("flags.tsv");
