//! Horizontal pod autoscaling: [`horizontal`] is the controller, [`replicas`] says how many, [`rate`] how fast,
//! [`metrics`] asks the metrics APIs, [`scale`] reads and writes the target's size.
//!
//! <https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/>

mod compute;
pub mod horizontal;
pub mod metrics;
pub mod rate;
pub mod replicas;
pub mod scale;
pub mod status;
