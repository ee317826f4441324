//! Measures API servers: load generator, list and watch clients, start-up and idle figures.
//!
//! Knows a server only by URL and credentials, so that any API server can be measured by the same program.

pub mod args;
pub mod client;
pub mod commands;
pub mod etcd;
pub mod histogram;
pub mod kubeconfig;
pub mod load;
pub mod metrics;
pub mod objects;
pub mod process;
pub mod report;
pub mod target;
