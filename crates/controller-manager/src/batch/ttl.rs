//! Removes jobs some time after they have ended (`ttlSecondsAfterFinished`).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use kube::Api;
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};
use pilothouse_client::{Queue, key_of};

use super::finished;
use crate::context::Context;
use crate::control::has_code;

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let jobs = context.informer::<Job>();
    let queue: Queue<String> = Queue::new();
    let q = queue.clone();
    jobs.on_change(move |c| {
        let job = c.object();
        if job.spec.as_ref().is_some_and(|s| s.ttl_seconds_after_finished.is_some())
            && finished(job).is_some()
        {
            q.add(key_of(&**job));
        }
    });
    let client = context.client.clone();
    let workers = context.config.workers("ttl-after-finished");
    queue.run("ttl-after-finished", workers, context.stop.clone(), move |key| {
        let (client, job) = (client.clone(), jobs.get(&key));
        async move {
            let left = job.as_ref().and_then(|j| left(j, Timestamp::now()));
            let Some((namespace, name)) = key.split_once('/') else { return Ok(None) };
            match left {
                None => return Ok(None),
                Some(left) if !left.is_zero() => return Ok(Some(left)),
                Some(_) => {}
            }
            let api: Api<Job> = Api::namespaced(client, namespace);
            // The local copy may be behind: what counts is the job as it is now.
            let Some(live) = api.get_opt(name).await? else { return Ok(None) };
            if let Some(left) = self::left(&live, Timestamp::now()).filter(|l| !l.is_zero()) {
                return Ok(Some(left));
            }
            let params = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Foreground),
                preconditions: Some(Preconditions { uid: live.metadata.uid, resource_version: None }),
                ..Default::default()
            };
            match api.delete(name, &params).await {
                Ok(_) => Ok(None),
                Err(e) if has_code(&e, 404) || has_code(&e, 409) => Ok(None),
                Err(e) => Err(e),
            }
        }
    });
    Ok(())
}

/// How long an ended job has left; nothing where it has not ended, is being deleted, or stays for ever.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let ttl = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let ended = finished(job)?.last_transition_time.as_ref()?.0;
    let left = ended.as_millisecond() + i64::from(ttl) * 1000 - now.as_millisecond();
    Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_from_the_end() {
        let job = |ttl: serde_json::Value, conditions: serde_json::Value| {
            serde_json::from_value::<Job>(json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {},
                "spec": {"ttlSecondsAfterFinished": ttl, "template": {}}, "status": {"conditions": conditions}}))
            .unwrap()
        };
        let now = "2024-01-01T00:00:30Z".parse().unwrap();
        let ended =
            json!([{"type": "Failed", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}]);
        assert_eq!(left(&job(json!(100), ended.clone()), now), Some(Duration::from_secs(70)));
        assert_eq!(left(&job(json!(0), ended.clone()), now), Some(Duration::ZERO));
        assert_eq!(left(&job(json!(null), ended), now), None);
        assert_eq!(left(&job(json!(0), json!([])), now), None);
    }
}
