//! What ends: namespaces, orphans, old pods and jobs.

pub mod namespace;
