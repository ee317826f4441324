//! Disruption budgets, quotas, autoscaling.
