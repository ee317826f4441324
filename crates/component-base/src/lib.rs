//! What every component of Kubernetes has, whichever it is: command-line flags from one table, logs, a port for
//! health and metrics, signals.

pub mod flags;
pub mod logs;
pub mod metrics;
pub mod serve;
pub mod signals;
