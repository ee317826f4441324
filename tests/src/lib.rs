//! What the tests that cross crates stand on: real processes, started for a test and ended with it.
//!
//! [`apiserver`] runs an API server alone, on either store; [`https`] and [`wire`] replay exchanges with it.
//! [`cluster`] runs `pilothouse up` on a test host (namespaces without a way out), [`kubectl`] the real kubectl there.

pub mod apiserver;
pub mod cluster;
pub mod https;
pub mod kubectl;
pub mod paths;
pub mod process;
pub mod wait;
pub mod wire;
