//! Jobs and CronJobs.

pub mod cronjob;
pub mod job;
pub mod schedule;
pub mod ttl;

use k8s_openapi::api::batch::v1::{Job, JobCondition};

/// Whether a job has ended, and how: its `Complete` or `Failed` condition.
pub(crate) fn finished(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().find(|c| c.status == "True" && matches!(c.type_.as_str(), "Complete" | "Failed"))
}
