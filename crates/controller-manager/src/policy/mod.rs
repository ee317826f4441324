//! Disruption budgets, quotas, autoscaling.

pub mod disruption;
pub mod resource_quota;
mod usage;
