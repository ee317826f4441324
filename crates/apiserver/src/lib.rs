//! The API server.
//!
//! A request's way: `TLS → HTTP → RequestInfo → authentication → audit → impersonation → limits → authorization →
//! handler → decode → default → admission → validate → store → encode`. What a request is gets built once
//! ([`request`]) and is passed on.

pub mod admission;
pub mod aggregation;
pub mod apiservices;
pub mod audit;
pub mod authentication;
pub mod authorization;
pub mod bootstrap;
pub mod cache;
pub mod compaction;
pub mod config;
pub mod conversion;
pub mod crd;
pub mod deprecation;
pub mod dispatch;
pub mod encode;
pub mod encryption;
pub mod fairness;
pub mod fields;
pub mod flow_schemas;
pub mod handlers;
pub mod health;
pub mod impersonation;
pub mod json;
pub mod limits;
pub mod metered_store;
pub mod metrics;
pub mod negotiate;
pub mod objects;
pub mod openapi;
pub mod options;
pub mod outbound;
pub mod pod_references;
pub mod proxy;
pub mod raw;
pub mod registry;
pub mod request;
pub mod request_info;
pub mod respond;
pub mod rest;
pub mod runtime_config;
pub mod selection;
pub mod serve;
pub mod server;
pub mod special;
pub mod state;
pub mod storage;
#[cfg(test)]
pub mod testing;
pub mod tls;

pub use config::Config;
pub use server::run;

/// The flag table of `kube-apiserver`.
pub const FLAGS: &str = include_str!("flags.tsv");
