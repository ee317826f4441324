//! The job controller: runs pods until enough have succeeded, with a delay that grows after each failure.
//!
//! <https://kubernetes.io/docs/concepts/workloads/controllers/job/>

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_client::events::reference;
use pilothouse_client::{Change, EventRecorder, Informer, Queue, key_of};
use tokio::time::Instant;

use super::finished;
use crate::context::Context;
use crate::control::{
    Expectations, PodControl, claim, controller_of, controller_ref, deletion_order, has_code, is_active,
    is_terminating_namespace, now, phase, pod_from_template, selects, slow_start,
};

/// After the first failure the next pod waits this long; twice as long after each further one.
const BACKOFF: Duration = Duration::from_secs(10);
const MAX_BACKOFF: Duration = Duration::from_secs(360);
/// As many pods are created in one sync.
const BURST: usize = 500;

struct Worker {
    control: PodControl,
    client: Client,
    recorder: EventRecorder,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    expectations: Expectations,
    failures: Mutex<HashMap<String, Failures>>,
}

/// How often a job's pods have failed in a row, and until when it waits for that.
#[derive(Debug, Clone, Copy)]
struct Failures {
    seen: i32,
    wait_until: Option<Instant>,
    steps: u32,
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let recorder = context.recorder("job-controller");
    let worker = Arc::new(Worker {
        control: PodControl::new(context.client.clone(), recorder.clone()),
        client: context.client.clone(),
        recorder,
        jobs: context.informer::<Job>(),
        pods: context.informer::<Pod>(),
        expectations: Expectations::default(),
        failures: Mutex::default(),
    });
    let queue: Queue<String> = Queue::new();
    let (q, w) = (queue.clone(), Arc::downgrade(&worker));
    worker.jobs.on_change(move |c| {
        let key = key_of(&**c.object());
        if let (Change::Deleted(_), Some(w)) = (c, w.upgrade()) {
            w.expectations.forget(&key);
            w.failures.lock().remove(&key);
        }
        q.add(key);
    });
    let (q, jobs, e) = (queue.clone(), worker.jobs.clone(), worker.expectations.clone());
    worker.pods.on_change(move |c| {
        let pod = c.object();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(r) = controller_of(&pod.metadata) else {
            for job in jobs.list_namespace(namespace) {
                if selects(job.spec.as_ref().and_then(|s| s.selector.as_ref()), pod.metadata.labels.as_ref())
                {
                    q.add(key_of(&*job));
                }
            }
            return;
        };
        if r.kind != "Job" {
            return;
        }
        let key = format!("{namespace}/{}", r.name);
        match c {
            Change::Added(p) if p.metadata.deletion_timestamp.is_none() => e.created(&key),
            Change::Added(p) | Change::Deleted(p) => e.deleted(&key, &key_of(&**p)),
            Change::Updated(_, p) if p.metadata.deletion_timestamp.is_some() => {
                e.deleted(&key, &key_of(&**p))
            }
            Change::Updated(..) => {}
        }
        q.add(key);
    });
    let stop = context.stop.clone();
    tokio::spawn(async move {
        worker.jobs.wait_synced().await;
        worker.pods.wait_synced().await;
        queue.run("job", 5, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await }
        });
    });
    Ok(())
}

/// A job's pods, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    active: i32,
    succeeded: i32,
    failed: i32,
}

fn count(pods: &[Arc<Pod>]) -> Counts {
    let n =
        |f: &dyn Fn(&Pod) -> bool| i32::try_from(pods.iter().filter(|p| f(p)).count()).unwrap_or(i32::MAX);
    Counts {
        active: n(&is_active),
        succeeded: n(&|p| phase(p) == "Succeeded"),
        failed: n(&|p| phase(p) == "Failed"),
    }
}

/// Why a job has failed.
fn failure(
    job: &Job,
    pods: &[Arc<Pod>],
    counts: Counts,
    now: Timestamp,
) -> Option<(&'static str, &'static str)> {
    let spec = job.spec.as_ref()?;
    let limit = spec.backoff_limit.unwrap_or(6);
    let old = job.status.clone().unwrap_or_default();
    // A pod that failed and was seen is not counted twice: only a new failure can exceed the limit.
    let new_failure = counts.failed > old.failed.unwrap_or(0);
    let exceeded = new_failure && counts.active != spec.parallelism.unwrap_or(1) && counts.failed > limit;
    if exceeded || past_restart_limit(job, pods, limit) {
        return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
    }
    let deadline = spec.active_deadline_seconds?;
    let started = old.start_time?.0;
    (now.as_second() - started.as_second() >= deadline)
        .then_some(("DeadlineExceeded", "Job was active longer than specified deadline"))
}

/// With `restartPolicy: OnFailure`, restarts count against the limit.
fn past_restart_limit(job: &Job, pods: &[Arc<Pod>], limit: i32) -> bool {
    let spec = job.spec.as_ref().and_then(|s| s.template.spec.as_ref());
    if spec.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
        return false;
    }
    let restarts: i32 = pods
        .iter()
        .filter(|p| matches!(phase(p), "Running" | "Pending"))
        .flat_map(|p| p.status.iter())
        .flat_map(|s| s.init_container_statuses.iter().flatten().chain(s.container_statuses.iter().flatten()))
        .map(|c| c.restart_count)
        .sum();
    if limit == 0 { restarts > 0 } else { restarts >= limit }
}

/// How many pods to have now: as many at once as allowed, but no more than are still needed. Without `completions`
/// nothing new starts once one has succeeded.
fn wanted_active(job: &Job, counts: Counts) -> i32 {
    let spec = job.spec.as_ref();
    let parallelism = spec.and_then(|s| s.parallelism).unwrap_or(1);
    match spec.and_then(|s| s.completions) {
        None if counts.succeeded > 0 => counts.active,
        None => parallelism,
        Some(completions) => (completions - counts.succeeded).min(parallelism).max(0),
    }
}

/// Whether the job is complete.
fn complete(job: &Job, counts: Counts) -> bool {
    match job.spec.as_ref().and_then(|s| s.completions) {
        None => counts.succeeded > 0 && counts.active == 0,
        Some(n) => counts.succeeded >= n,
    }
}

impl Worker {
    async fn sync(&self, key: &str) -> Result<Option<Duration>, kube::Error> {
        let Some(job) = self.jobs.get(key) else { return Ok(None) };
        let Some((namespace, name)) = key.split_once('/') else { return Ok(None) };
        if finished(&job).is_some() {
            return Ok(None);
        }
        let expected = self.expectations.satisfied(key);
        let owner = controller_ref(&*job);
        let selector = job.spec.as_ref().and_then(|s| s.selector.clone());
        let api: Api<Job> = Api::namespaced(self.client.clone(), namespace);
        let live =
            || async { Ok::<Option<ObjectMeta>, kube::Error>(api.get_opt(name).await?.map(|j| j.metadata)) };
        let matches = |p: &Pod| selects(selector.as_ref(), p.metadata.labels.as_ref());
        let pods =
            claim(&self.client, &owner, &job.metadata, matches, self.pods.list_namespace(namespace), live)
                .await?;
        let counts = count(&pods);
        let mut status = job.status.clone().unwrap_or_default();
        let object = reference(&*job, &());
        let mut again = None;
        if status.start_time.is_none() {
            status.start_time = Some(Time(now()));
            again = deadline_left(&job, now(), now());
        }
        let backoff = self.backoff(key, counts);
        let mut active = counts.active;
        let (mut condition, mut failed_now) = (None, 0);
        let mut error = None;
        if let Some((reason, text)) = failure(&job, &pods, counts, Timestamp::now()) {
            let running: Vec<_> = pods.iter().filter(|p| is_active(p)).cloned().collect();
            error = self.delete_all(namespace, &running, &object).await;
            if error.is_none() {
                failed_now = active;
                active = 0;
            }
            self.recorder.warning(&object, reason, text);
            condition = Some(new_condition("Failed", reason, text));
        } else {
            if expected && job.metadata.deletion_timestamp.is_none() {
                let (n, e, wait) = self.manage(key, &job, &owner, &pods, counts, backoff).await;
                active = n;
                error = e;
                again = wait.or(again);
            }
            if complete(&job, counts) {
                condition = Some(new_condition("Complete", "", ""));
                self.recorder.normal(&object, "Completed", "Job completed");
            }
        }
        let zero_is_none = |n: i32| Some(n).filter(|n| *n != 0);
        let complete = condition.as_ref().is_some_and(|c| c.type_ == "Complete");
        if let Some(c) = condition {
            status.conditions.get_or_insert_default().push(c);
            if complete {
                status.completion_time = Some(Time(now()));
            }
        }
        status.active = zero_is_none(active);
        status.succeeded = zero_is_none(counts.succeeded);
        status.failed = zero_is_none(counts.failed + failed_now);
        // A start time alone is not worth a write: a job without any pods has none.
        let mut before = job.status.clone().unwrap_or_default();
        before.start_time = status.start_time.clone();
        if before != status {
            self.write_status(&api, name, status).await?;
        }
        if let Some(e) = error {
            return Err(e);
        }
        // The deadline may pass without anything else happening.
        let started = job.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
        let left = started.and_then(|s| deadline_left(&job, s, Timestamp::now()));
        Ok(match (again, left) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        })
    }

    async fn write_status(&self, api: &Api<Job>, name: &str, status: JobStatus) -> Result<(), kube::Error> {
        let mut live = match api.get_opt(name).await? {
            Some(j) => j,
            None => return Ok(()),
        };
        live.status = Some(status);
        match api.replace_status(name, &PostParams::default(), &live).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// How long new pods of a job must wait because of failures; notes new failures and forgets them at a success.
    fn backoff(&self, key: &str, counts: Counts) -> Option<Duration> {
        let mut all = self.failures.lock();
        let f = all.entry(key.to_string()).or_insert(Failures {
            seen: counts.failed,
            wait_until: None,
            steps: 0,
        });
        if counts.failed > f.seen {
            let delay = BACKOFF.saturating_mul(1 << f.steps.min(10)).min(MAX_BACKOFF);
            f.steps += 1;
            f.wait_until = Some(Instant::now() + delay);
        }
        f.seen = counts.failed;
        f.wait_until.and_then(|t| t.checked_duration_since(Instant::now())).filter(|d| !d.is_zero())
    }

    /// Brings the number of running pods to what is wanted. Returns how many run then, an error, and how long to
    /// wait before pods that failed are replaced.
    async fn manage(
        &self,
        key: &str,
        job: &Job,
        owner: &OwnerReference,
        pods: &[Arc<Pod>],
        counts: Counts,
        backoff: Option<Duration>,
    ) -> (i32, Option<kube::Error>, Option<Duration>) {
        let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
        let object = reference(job, &());
        let wanted = wanted_active(job, counts);
        if wanted < counts.active {
            let surplus = usize::try_from(counts.active - wanted).unwrap_or(0);
            let mut running: Vec<(Arc<Pod>, usize)> =
                pods.iter().filter(|p| is_active(p)).map(|p| (p.clone(), 0)).collect();
            running.sort_by(deletion_order);
            let doomed: Vec<Arc<Pod>> = running.into_iter().take(surplus).map(|(p, _)| p).collect();
            self.expectations.expect_deletions(key, doomed.iter().map(|p| key_of(&**p)));
            let error = self.delete_all(namespace, &doomed, &object).await;
            if error.is_some() {
                doomed.iter().for_each(|p| self.expectations.deleted(key, &key_of(&**p)));
            }
            return (wanted, error, None);
        }
        let missing = usize::try_from(wanted - counts.active).unwrap_or(0).min(BURST);
        if missing == 0 {
            return (counts.active, None, None);
        }
        if backoff.is_some() {
            return (counts.active, None, backoff);
        }
        self.expectations.expect_creations(key, missing);
        let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let pod = pod_from_template(&template, owner, namespace);
        let created = std::sync::atomic::AtomicI32::new(0);
        let tried = std::sync::atomic::AtomicUsize::new(0);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let (_, error) = slow_start(missing, |_| async {
            tried.fetch_add(1, relaxed);
            match self.control.create(&pod, &object).await {
                Ok(_) => {
                    created.fetch_add(1, relaxed);
                    Ok(())
                }
                Err(e) => {
                    self.expectations.created(key);
                    if is_terminating_namespace(&e) { Ok(()) } else { Err(e) }
                }
            }
        })
        .await;
        for _ in tried.load(relaxed)..missing {
            self.expectations.created(key);
        }
        (counts.active + created.load(relaxed), error, None)
    }

    async fn delete_all(
        &self,
        namespace: &str,
        pods: &[Arc<Pod>],
        object: &k8s_openapi::api::core::v1::ObjectReference,
    ) -> Option<kube::Error> {
        let results =
            futures::future::join_all(pods.iter().map(|p| {
                self.control.delete(namespace, p.metadata.name.as_deref().unwrap_or_default(), object)
            }))
            .await;
        results.into_iter().find_map(Result::err)
    }
}

/// How long until the job's deadline.
fn deadline_left(job: &Job, started: Timestamp, now: Timestamp) -> Option<Duration> {
    let deadline = job.spec.as_ref()?.active_deadline_seconds?;
    let left = deadline * 1000 - (now.as_millisecond() - started.as_millisecond());
    Some(Duration::from_millis(u64::try_from(left).unwrap_or(0).max(1)))
}

fn new_condition(type_: &str, reason: &str, text: &str) -> JobCondition {
    let now = Time(now());
    JobCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.to_string()).filter(|r| !r.is_empty()),
        message: Some(text.to_string()).filter(|m| !m.is_empty()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(spec: serde_json::Value, status: serde_json::Value) -> Job {
        let mut spec = spec;
        spec["template"] = json!({"spec": {"containers": [], "restartPolicy": spec["restartPolicy"]}});
        serde_json::from_value(json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
            "spec": spec, "status": status}))
        .unwrap()
    }

    fn pods(phases: &[&str]) -> Vec<Arc<Pod>> {
        phases
            .iter()
            .map(|p| {
                Arc::new(
                    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {},
                        "status": {"phase": p, "containerStatuses": [{"name": "c", "restartCount": 3,
                            "image": "", "imageID": "", "ready": false}]}}))
                    .unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn never_more_than_are_still_needed() {
        let j = job(json!({"parallelism": 2, "completions": 4}), json!({}));
        assert_eq!(wanted_active(&j, Counts::default()), 2);
        assert_eq!(wanted_active(&j, Counts { succeeded: 3, active: 1, failed: 0 }), 1);
        assert!(complete(&j, Counts { succeeded: 4, ..Default::default() }));
        let queue = job(json!({"parallelism": 2}), json!({}));
        assert_eq!(wanted_active(&queue, Counts { succeeded: 1, active: 1, failed: 0 }), 1);
        assert!(!complete(&queue, Counts { succeeded: 1, active: 1, failed: 0 }));
        assert!(complete(&queue, Counts { succeeded: 2, active: 0, failed: 0 }));
    }

    #[test]
    fn fails_at_the_limit_and_at_the_deadline() {
        let now = "2024-01-01T00:01:40Z".parse().unwrap();
        let j = job(json!({"backoffLimit": 1, "restartPolicy": "Never"}), json!({"failed": 1}));
        let two = pods(&["Failed", "Failed"]);
        assert_eq!(failure(&j, &two, count(&two), now).unwrap().0, "BackoffLimitExceeded");
        let one = pods(&["Failed"]);
        assert_eq!(failure(&j, &one, count(&one), now), None);
        let restarting = job(json!({"backoffLimit": 3, "restartPolicy": "OnFailure"}), json!({}));
        let running = pods(&["Running"]);
        assert_eq!(failure(&restarting, &running, count(&running), now).unwrap().0, "BackoffLimitExceeded");
        let j = job(json!({"activeDeadlineSeconds": 100}), json!({"startTime": "2024-01-01T00:00:00Z"}));
        assert_eq!(failure(&j, &[], Counts::default(), now).unwrap().0, "DeadlineExceeded");
        let early = "2024-01-01T00:01:39Z".parse().unwrap();
        assert_eq!(failure(&j, &[], Counts::default(), early), None);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_longer_after_each_failure() {
        let (recorder, _) = EventRecorder::for_test("t");
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let w = Worker {
            control: PodControl::new(client.clone(), recorder.clone()),
            client,
            recorder,
            jobs: Informer::new(),
            pods: Informer::new(),
            expectations: Expectations::default(),
            failures: Mutex::default(),
        };
        let failed = |n| Counts { failed: n, ..Default::default() };
        assert_eq!(w.backoff("k", failed(0)), None);
        assert_eq!(w.backoff("k", failed(1)), Some(Duration::from_secs(10)));
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(w.backoff("k", failed(1)), Some(Duration::from_secs(6)));
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(w.backoff("k", failed(1)), None);
        assert_eq!(w.backoff("k", failed(2)), Some(Duration::from_secs(20)));
        assert_eq!(w.backoff("k", failed(3)), Some(Duration::from_secs(40)));
    }
}
