//! The CronJob controller: makes a Job each time its schedule says.
//!
//! <https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/>. All CronJobs are looked at every ten
//! seconds, as v1.20's default controller does: what counts is the clock, not changes.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::api::{ApiResource, DeleteParams, ObjectMeta, PostParams, PropagationPolicy, TypeMeta};
use kube::core::Object;
use kube::{Api, Client};
use pilothouse_client::events::reference;
use pilothouse_client::{EventRecorder, Informer, key_of, served};

use super::finished;
use super::schedule::{Schedule, TOO_MANY};
use crate::context::Context;
use crate::control::{controller_of, has_code, is_terminating_namespace, message};

type CronJob = Object<CronJobSpec, CronJobStatus>;

const PERIOD: Duration = Duration::from_secs(10);

struct Worker {
    client: Client,
    recorder: EventRecorder,
    resource: ApiResource,
    cron_jobs: Informer<CronJob>,
    jobs: Informer<Job>,
}

/// Starts the controller; does nothing where the server has no CronJobs.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let Some(resource) = context.served(served::CRON_JOB) else { return Ok(()) };
    let worker = Worker {
        client: context.client.clone(),
        recorder: context.recorder("cronjob-controller"),
        cron_jobs: context.informer_of::<CronJob>(&resource),
        jobs: context.informer::<Job>(),
        resource,
    };
    let stop = context.stop.clone();
    tokio::spawn(async move {
        worker.cron_jobs.wait_synced().await;
        worker.jobs.wait_synced().await;
        loop {
            for cron_job in worker.cron_jobs.list() {
                if let Err(e) = worker.sync(&cron_job, Timestamp::now()).await {
                    tracing::debug!(cronjob = key_of(&*cron_job), "sync failed: {e}");
                }
            }
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(PERIOD) => {} }
        }
    });
    Ok(())
}

impl Worker {
    async fn sync(&self, cron_job: &CronJob, now: Timestamp) -> Result<(), kube::Error> {
        let namespace = cron_job.metadata.namespace.clone().unwrap_or_default();
        let object = reference(cron_job, &self.resource);
        let own: Vec<Arc<Job>> = self
            .jobs
            .list_namespace(&namespace)
            .into_iter()
            .filter(|j| {
                controller_of(&j.metadata).is_some_and(|r| Some(&r.uid) == cron_job.metadata.uid.as_ref())
            })
            .collect();
        let mut cron_job = cron_job.clone();
        self.note_ended(&mut cron_job, &own, &object).await?;
        self.clean_up(&cron_job, &own, &object).await?;
        if cron_job.metadata.deletion_timestamp.is_some() || cron_job.spec.suspend.unwrap_or(false) {
            return Ok(());
        }
        let scheduled = match due(&cron_job, now) {
            Ok(Some(t)) => t,
            Ok(None) => return Ok(()),
            Err(e) => {
                self.recorder.warning(&object, e.reason(), e.to_string());
                return Ok(());
            }
        };
        if let Some(deadline) = cron_job.spec.starting_deadline_seconds
            && scheduled.as_second() + deadline < now.as_second()
        {
            let text = format!("Missed scheduled time to start a job: {}", go_time(scheduled));
            self.recorder.warning(&object, "MissSchedule", text);
            return Ok(());
        }
        let active = cron_job.status.as_ref().and_then(|s| s.active.clone()).unwrap_or_default();
        match cron_job.spec.concurrency_policy.as_deref() {
            Some("Forbid") if !active.is_empty() => {
                tracing::debug!(cronjob = key_of(&cron_job), "not starting a job: the last one still runs");
                return Ok(());
            }
            Some("Replace") => {
                for r in &active {
                    let name = r.name.as_deref().unwrap_or_default();
                    self.delete_job(&namespace, name, &object).await?;
                    drop_active(&mut cron_job, r.uid.as_deref());
                }
            }
            _ => {}
        }
        self.run(cron_job, &namespace, scheduled, &object).await
    }

    /// Takes jobs that have ended, or are gone, off the list of those that run.
    async fn note_ended(
        &self,
        cron_job: &mut CronJob,
        own: &[Arc<Job>],
        object: &ObjectReference,
    ) -> Result<(), kube::Error> {
        let before = cron_job.status.as_ref().and_then(|s| s.active.clone()).unwrap_or_default();
        for job in own {
            let name = job.metadata.name.as_deref().unwrap_or_default();
            let listed = before.iter().any(|r| r.uid == job.metadata.uid);
            match finished(job) {
                Some(c) if listed => {
                    drop_active(cron_job, job.metadata.uid.as_deref());
                    let text = format!("Saw completed job: {name}, status: {}", c.type_);
                    self.recorder.normal(object, "SawCompletedJob", text);
                }
                None if !listed => {
                    let text = format!("Saw a job that the controller did not create or forgot: {name}");
                    self.recorder.warning(object, "UnexpectedJob", text);
                }
                _ => {}
            }
        }
        for r in &before {
            if !own.iter().any(|j| j.metadata.uid == r.uid) {
                // The local copy may not have the job yet that we made a moment ago.
                let namespace = cron_job.metadata.namespace.clone().unwrap_or_default();
                let api: Api<Job> = Api::namespaced(self.client.clone(), &namespace);
                if api.get_opt(r.name.as_deref().unwrap_or_default()).await?.is_none() {
                    let text = format!("Active job went missing: {}", r.name.as_deref().unwrap_or_default());
                    self.recorder.normal(object, "MissingJob", text);
                    drop_active(cron_job, r.uid.as_deref());
                }
            }
        }
        let after = cron_job.status.as_ref().and_then(|s| s.active.clone()).unwrap_or_default();
        if before != after {
            self.write_status(cron_job).await?;
        }
        Ok(())
    }

    /// Deletes the oldest ended jobs over the history limits.
    async fn clean_up(
        &self,
        cron_job: &CronJob,
        own: &[Arc<Job>],
        object: &ObjectReference,
    ) -> Result<(), kube::Error> {
        let limits = [
            ("Complete", cron_job.spec.successful_jobs_history_limit),
            ("Failed", cron_job.spec.failed_jobs_history_limit),
        ];
        for (type_, limit) in limits {
            let Some(limit) = limit else { continue };
            let mut ended: Vec<&Arc<Job>> =
                own.iter().filter(|j| finished(j).is_some_and(|c| c.type_ == type_)).collect();
            ended.sort_by_key(|j| {
                (j.status.as_ref().and_then(|s| s.start_time.clone()).map(|t| t.0), j.metadata.name.clone())
            });
            let surplus = ended.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
            for job in ended.into_iter().take(surplus) {
                let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
                self.delete_job(namespace, job.metadata.name.as_deref().unwrap_or_default(), object).await?;
            }
        }
        Ok(())
    }

    async fn delete_job(
        &self,
        namespace: &str,
        name: &str,
        object: &ObjectReference,
    ) -> Result<(), kube::Error> {
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..Default::default() };
        match api.delete(name, &params).await {
            Ok(_) => {
                self.recorder.normal(object, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => {
                self.recorder.warning(object, "FailedDelete", format!("Deleted job: {}", message(&e)));
                Err(e)
            }
        }
    }

    async fn run(
        &self,
        mut cron_job: CronJob,
        namespace: &str,
        scheduled: Timestamp,
        object: &ObjectReference,
    ) -> Result<(), kube::Error> {
        let job = make_job(&cron_job, &self.resource, scheduled);
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let created = match api.create(&PostParams::default(), &job).await {
            Ok(j) => j,
            // Made in an earlier try whose status was not written.
            Err(e) if has_code(&e, 409) => api.get(job.metadata.name.as_deref().unwrap_or_default()).await?,
            Err(e) if is_terminating_namespace(&e) => return Ok(()),
            Err(e) => {
                self.recorder.warning(object, "FailedCreate", format!("Error creating job: {}", message(&e)));
                return Err(e);
            }
        };
        let name = created.metadata.name.clone().unwrap_or_default();
        self.recorder.normal(object, "SuccessfulCreate", format!("Created job {name}"));
        let status = cron_job.status.get_or_insert_default();
        let active = status.active.get_or_insert_default();
        if !active.iter().any(|r| r.uid == created.metadata.uid) {
            active.push(reference(&created, &()));
        }
        status.last_schedule_time = Some(Time(scheduled));
        self.write_status(&mut cron_job).await
    }

    async fn write_status(&self, cron_job: &mut CronJob) -> Result<(), kube::Error> {
        let namespace = cron_job.metadata.namespace.clone().unwrap_or_default();
        let name = cron_job.metadata.name.clone().unwrap_or_default();
        let api: Api<CronJob> = Api::namespaced_with(self.client.clone(), &namespace, &self.resource);
        // An update, not a patch: that is what v1.20 lets this controller do.
        cron_job.types = Some(TypeMeta {
            api_version: self.resource.api_version.clone(),
            kind: self.resource.kind.clone(),
        });
        let status = cron_job.status.get_or_insert_default();
        status.active = status.active.take().filter(|a| !a.is_empty());
        match api.replace_status(&name, &PostParams::default(), cron_job).await {
            Ok(new) => {
                *cron_job = new;
                Ok(())
            }
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn drop_active(cron_job: &mut CronJob, uid: Option<&str>) {
    if let Some(active) = cron_job.status.as_mut().and_then(|s| s.active.as_mut()) {
        active.retain(|r| r.uid.as_deref() != uid);
    }
}

/// Why a CronJob cannot be scheduled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Unscheduled {
    #[error("unparseable schedule: {schedule} : {reason}")]
    Unparseable { schedule: String, reason: String },
    #[error(
        "Cannot determine if job needs to be started: too many missed start time (> 100). Set or decrease .spec.startingDeadlineSeconds or check clock skew"
    )]
    TooMany,
}

impl Unscheduled {
    fn reason(&self) -> &'static str {
        match self {
            Unscheduled::Unparseable { .. } => "UnparseableSchedule",
            Unscheduled::TooMany => "FailedNeedsStart",
        }
    }
}

/// The last time at which a CronJob should have run and has not.
fn due(cron_job: &CronJob, now: Timestamp) -> Result<Option<Timestamp>, Unscheduled> {
    let spec = &cron_job.spec;
    let schedule: Schedule = spec.schedule.parse().map_err(|e: super::schedule::Unparseable| {
        Unscheduled::Unparseable { schedule: spec.schedule.clone(), reason: e.to_string() }
    })?;
    let last = cron_job.status.as_ref().and_then(|s| s.last_schedule_time.as_ref()).map(|t| t.0);
    let created = cron_job.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let mut earliest = last.or(created).unwrap_or(now);
    // What is too late to start is not looked at: that also bounds the count.
    if let Some(deadline) = spec.starting_deadline_seconds
        && let Ok(limit) = Timestamp::from_second(now.as_second().saturating_sub(deadline))
    {
        earliest = earliest.max(limit);
    }
    match schedule.missed(earliest, now) {
        None => Ok(None),
        Some(m) if m.count > TOO_MANY => Err(Unscheduled::TooMany),
        Some(m) => Ok(Some(m.last)),
    }
}

/// The job of one run: its name says when, so that a run is made once.
fn make_job(cron_job: &CronJob, resource: &ApiResource, scheduled: Timestamp) -> Job {
    let name = cron_job.metadata.name.clone().unwrap_or_default();
    let template = cron_job.spec.job_template.clone();
    let meta = template.metadata.unwrap_or_default();
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{}", scheduled.as_second())),
            namespace: cron_job.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![OwnerReference {
                api_version: resource.api_version.clone(),
                kind: resource.kind.clone(),
                name,
                uid: cron_job.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// A time as Go prints it in RFC 1123 with a numeric zone.
fn go_time(t: Timestamp) -> String {
    t.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn cron_job(spec: serde_json::Value, status: serde_json::Value) -> CronJob {
        let mut spec = spec;
        spec["jobTemplate"] = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}});
        serde_json::from_value(json!({"apiVersion": "batch/v1beta1", "kind": "CronJob",
            "metadata": {"name": "hello", "namespace": "ns", "uid": "u", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": spec, "status": status}))
        .unwrap()
    }

    #[test]
    fn due_once_each_time() {
        let now = "2024-01-01T00:03:20Z".parse().unwrap();
        let c = cron_job(json!({"schedule": "*/1 * * * *"}), json!({}));
        assert_eq!(due(&c, now), Ok(Some("2024-01-01T00:03:00Z".parse().unwrap())));
        let c =
            cron_job(json!({"schedule": "*/1 * * * *"}), json!({"lastScheduleTime": "2024-01-01T00:03:00Z"}));
        assert_eq!(due(&c, now), Ok(None));
    }

    #[test]
    fn gives_up_after_a_hundred_unless_a_deadline_bounds_it() {
        let now = "2024-01-01T05:00:20Z".parse().unwrap();
        let c = cron_job(json!({"schedule": "*/1 * * * *"}), json!({}));
        assert_eq!(due(&c, now), Err(Unscheduled::TooMany));
        let c = cron_job(json!({"schedule": "*/1 * * * *", "startingDeadlineSeconds": 200}), json!({}));
        assert_eq!(due(&c, now), Ok(Some("2024-01-01T05:00:00Z".parse().unwrap())));
        let c = cron_job(json!({"schedule": "nonsense"}), json!({}));
        assert_eq!(due(&c, now).unwrap_err().reason(), "UnparseableSchedule");
    }

    #[test]
    fn a_run_has_one_name() {
        let resource =
            ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("batch", "v1beta1", "CronJob"));
        let c = cron_job(json!({"schedule": "@daily"}), json!({}));
        let job = make_job(&c, &resource, "2024-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(job.metadata.name.as_deref(), Some("hello-1704067200"));
        assert_eq!(job.metadata.owner_references.unwrap()[0].api_version, "batch/v1beta1");
    }
}
