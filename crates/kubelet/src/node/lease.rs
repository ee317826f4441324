//! The node's lease in `kube-node-lease`: a sign of life, lighter than the node's status.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use pilothouse_component_base::signals::Stop;

const NAMESPACE: &str = "kube-node-lease";
/// Tries to renew before the lease is read again.
const TRIES: u32 = 5;

/// A lease held by its node from now on.
pub fn renewed(
    old: Option<&Lease>,
    node: &str,
    node_uid: Option<&str>,
    seconds: i32,
    now: Timestamp,
) -> Lease {
    let mut lease = old.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(node.to_string()),
            namespace: Some(NAMESPACE.to_string()),
            ..Default::default()
        },
        spec: None,
    });
    // A lease that belongs to its node goes with it.
    if lease.metadata.owner_references.as_ref().is_none_or(Vec::is_empty)
        && let Some(uid) = node_uid
    {
        lease.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: node.into(),
            uid: uid.into(),
            ..Default::default()
        }]);
    }
    let now = Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now);
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(node.to_string());
    spec.lease_duration_seconds = Some(seconds);
    spec.renew_time = Some(MicroTime(now));
    lease
}

/// Renews a node's lease four times in its length, until `stop`. `node_uid` gives the node's uid, once it is known.
pub async fn keep(
    client: Client,
    node: String,
    node_uid: impl Fn() -> Option<String> + Send,
    seconds: i32,
    stop: Stop,
) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let period = Duration::from_secs(u64::try_from(seconds).unwrap_or(40)) / 4;
    let mut last: Option<Lease> = None;
    loop {
        let mut wait = period;
        if let Err(e) = renew(&api, &node, node_uid().as_deref(), seconds, &mut last).await {
            tracing::warn!("failed to ensure lease exists, will retry: {e}");
            wait = Duration::from_secs(2);
        }
        tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(wait) => {} }
    }
}

async fn renew(
    api: &Api<Lease>,
    node: &str,
    uid: Option<&str>,
    seconds: i32,
    last: &mut Option<Lease>,
) -> Result<(), kube::Error> {
    let params = PostParams::default();
    let mut tries = 0;
    loop {
        tries += 1;
        if last.is_none() {
            *last = api.get_opt(node).await?;
        }
        let wanted = renewed(last.as_ref(), node, uid, seconds, Timestamp::now());
        let result = match last {
            Some(_) => api.replace(node, &params, &wanted).await,
            None => api.create(&params, &wanted).await,
        };
        match result {
            Ok(l) => {
                *last = Some(l);
                return Ok(());
            }
            // Somebody else wrote it, or removed it: read it and try again.
            Err(kube::Error::Api(e)) if matches!(e.code, 404 | 409) && tries < TRIES => {
                if last.take().is_none() && e.code == 404 {
                    return Err(kube::Error::Api(e));
                }
            }
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_the_nodes_and_keeps_its_owner() {
        let now = Timestamp::from_nanosecond(1_600_000_000_123_456_789).unwrap();
        let first = renewed(None, "n", None, 40, now);
        assert_eq!(first.metadata.owner_references, None);
        let second = renewed(Some(&first), "n", Some("u"), 40, now);
        assert_eq!(second.metadata.owner_references.as_ref().unwrap()[0].uid, "u");
        let spec = second.spec.unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_duration_seconds), (Some("n"), Some(40)));
        assert_eq!(serde_json::to_value(&spec.renew_time).unwrap(), "2020-09-13T12:26:40.123456Z");
    }
}
