//! From a container in a pod's spec to what the runtime is told.

pub mod apparmor;
pub mod config;
pub mod dns;
pub mod downward;
pub mod env;
pub mod expansion;
pub mod hosts;
pub mod mounts;
pub mod sandbox;
pub mod security;
