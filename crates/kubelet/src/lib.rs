//! kubelet: runs the pods that are bound to its node.

#![recursion_limit = "256"]

pub mod backoff;
pub mod cgroups;
pub mod config;
pub mod configuration;
pub mod containers;
pub mod hooks;
pub mod http;
pub mod images;
pub mod metrics;
pub mod objects;
pub mod pod;
pub mod probes;
pub mod resources;
pub mod runtime;
#[cfg(test)]
mod testing;
pub mod volumes;

pub use config::Config;

/// The flag table.
pub const FLAGS: &str = include_str!("flags.tsv");
