//! Which version of a kind the server has. Components work against v1.20 as well as today's servers: a kind that
//! changed its version between them is used through kube's [`Object`](kube::core::Object) and the version found here.

use kube::Client;
use kube::core::{ApiResource, GroupVersionKind};

use crate::backoff::WatchBackoff;

/// One kind that may be served in several versions.
#[derive(Debug, Clone, Copy)]
pub struct Candidates {
    /// API group.
    pub group: &'static str,
    /// Versions, best first.
    pub versions: &'static [&'static str],
    /// Kind.
    pub kind: &'static str,
    /// Plural.
    pub plural: &'static str,
}

/// `CronJob`.
pub const CRON_JOB: Candidates =
    Candidates { group: "batch", versions: &["v1", "v1beta1"], kind: "CronJob", plural: "cronjobs" };
/// `EndpointSlice`.
pub const ENDPOINT_SLICE: Candidates = Candidates {
    group: "discovery.k8s.io",
    versions: &["v1", "v1beta1"],
    kind: "EndpointSlice",
    plural: "endpointslices",
};
/// `PodDisruptionBudget`.
pub const POD_DISRUPTION_BUDGET: Candidates = Candidates {
    group: "policy",
    versions: &["v1", "v1beta1"],
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
};

/// `HorizontalPodAutoscaler`, in a version that has metrics of all kinds.
pub const HORIZONTAL_POD_AUTOSCALER: Candidates = Candidates {
    group: "autoscaling",
    versions: &["v2", "v2beta2"],
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
};

/// The same, where the server may not be there yet: it is asked again until it answers. `waiting` is called when it has not
/// for the first time.
pub async fn find_when_there(
    client: &Client,
    candidates: Candidates,
    waiting: impl FnOnce(),
) -> Option<ApiResource> {
    let mut waiting = Some(waiting);
    let mut backoff = WatchBackoff::default();
    loop {
        match find(client, candidates).await {
            Ok(found) => return found,
            Err(e) => tracing::warn!("the server does not say which kinds it has: {e}"),
        }
        if let Some(waiting) = waiting.take() {
            waiting();
        }
        tokio::time::sleep(backoff.next().unwrap_or_default()).await;
    }
}

/// The best version of a kind that the server has; `None` where it has none of them.
pub async fn find(client: &Client, candidates: Candidates) -> Result<Option<ApiResource>, kube::Error> {
    for version in candidates.versions {
        match client.list_api_group_resources(&format!("{}/{version}", candidates.group)).await {
            Ok(list) if list.resources.iter().any(|r| r.name == candidates.plural) => {
                let gvk = GroupVersionKind::gvk(candidates.group, version, candidates.kind);
                return Ok(Some(ApiResource::from_gvk_with_plural(&gvk, candidates.plural)));
            }
            Ok(_) => {}
            Err(kube::Error::Api(e)) if e.code == 404 => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
