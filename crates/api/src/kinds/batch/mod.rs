//! Jobs, and jobs at times.

mod cronjob;
mod job;
mod schedule;

use super::Kind;

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&job::JOB, &cronjob::CRON_JOB];
