//! What ends: namespaces, orphans, old pods and jobs.

pub mod garbage_collector;
mod graph;
pub mod namespace;
pub mod pod_gc;
mod resources;
