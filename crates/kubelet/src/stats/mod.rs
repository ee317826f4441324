//! What pods, containers and the node use: read from cgroups ([`cgroup`]), from the kernel's other files
//! ([`machine`]) and from the file systems ([`filesystem`]); put together by [`collector`]; shown as the summary
//! ([`summary`]) and as metrics ([`prometheus`]).

pub mod cgroup;
pub mod collector;
pub mod filesystem;
pub mod machine;
pub mod prometheus;
pub mod summary;

pub use collector::{ContainerUsage, PodUsage, Sample, Stats};
