//! Service accounts, their tokens, the cluster's CA for pods, and cluster role aggregation.

pub mod aggregation;
pub mod root_ca;
pub mod service_account;
pub mod tokens;
