//! What every component of Kubernetes has, whichever it is: command-line flags from one table, logs, a port for
//! health and metrics, signals.

pub mod batched;
pub mod config_keys;
pub mod flags;
pub mod klog;
pub mod logs;
pub mod metrics;
pub mod notify;
pub mod serve;
pub mod signals;
