//! How components reach the API server: thin, on kube-rs.
//!
//! Components are strangers to the API server: they know it only through HTTPS and the public API, with their own
//! credentials. This crate has what they all need for that and nothing of any one of them.

pub mod backoff;
pub mod config;
pub mod events;
pub mod informer;
pub mod leader;
pub mod limit;
pub mod queue;
mod raw;
pub mod served;
pub mod token;

pub use events::EventRecorder;
pub use informer::{Change, Informer, key_of};
pub use queue::Queue;
