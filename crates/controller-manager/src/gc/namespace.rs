//! The namespace controller: empties a namespace that is being deleted, then lets it go.
//!
//! Conditions, reasons and messages are those of v1.20's `NamespaceDeletion*` conditions (KEP-1164 and
//! <https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/namespace-v1/>).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use kube::discovery::Discovery;
use kube::{Api, Client};
use pilothouse_client::{Change, Queue, key_of};

use crate::context::Context;

/// How long to wait before looking again at what still has finalizers.
const AGAIN: Duration = Duration::from_secs(5);

/// How long a namespace's deletion is left alone, so that all that admit and watch have heard of it.
const GRACE: Duration = Duration::from_secs(5);

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let queue = Queue::with_backoff(Duration::from_millis(100), Duration::from_secs(60));
    let informer = context.informer::<Namespace>();
    let q = queue.clone();
    informer.on_change(move |c: &Change<Namespace>| {
        if c.object().metadata.deletion_timestamp.is_some() {
            q.add_after(key_of(&**c.object()), GRACE);
        }
    });
    let client = context.client.clone();
    queue.run("namespace", context.config.workers("namespace"), context.stop.clone(), move |name| {
        let client = client.clone();
        async move { sync(&client, &name).await }
    });
    Ok(())
}

async fn sync(client: &Client, name: &str) -> Result<Option<Duration>, kube::Error> {
    let api: Api<Namespace> = Api::all(client.clone());
    let Some(namespace) = api.get_opt(name).await? else { return Ok(None) };
    let has_finalizer = namespace
        .spec
        .as_ref()
        .and_then(|s| s.finalizers.as_ref())
        .is_some_and(|f| f.iter().any(|f| f == "kubernetes"));
    if namespace.metadata.deletion_timestamp.is_none() || !has_finalizer {
        return Ok(None);
    }
    let found = empty(client, name).await;
    let conditions = conditions(&namespace, &found, Timestamp::now());
    if namespace.status.as_ref().and_then(|s| s.conditions.as_ref()) != Some(&conditions) {
        let mut namespace = namespace.clone();
        namespace.status.get_or_insert_default().conditions = Some(conditions);
        api.replace_status(name, &PostParams::default(), &namespace).await?;
    }
    if let Some(error) = found.errors().next() {
        tracing::debug!(namespace = name, "namespace is not empty yet: {error}");
        return Ok(Some(AGAIN));
    }
    if !found.remaining.is_empty() {
        return Ok(Some(AGAIN.min(Duration::from_millis(500 + found.longest_grace * 500))));
    }
    finalize(client, &api, name).await?;
    Ok(None)
}

/// Takes our finalizer off; the server then removes the namespace.
async fn finalize(client: &Client, api: &Api<Namespace>, name: &str) -> Result<(), kube::Error> {
    let Some(mut namespace) = api.get_opt(name).await? else { return Ok(()) };
    if let Some(f) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
        f.retain(|f| f != "kubernetes");
    }
    let body = serde_json::to_vec(&namespace).map_err(kube::Error::SerdeError)?;
    let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    match client.request::<serde_json::Value>(request).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
        Err(e) => Err(e),
    }
}

/// What emptying a namespace came to.
#[derive(Debug, Default, PartialEq)]
struct Found {
    discovery_errors: Vec<String>,
    version_errors: Vec<String>,
    delete_errors: Vec<String>,
    /// Resource and how many of it are still there.
    remaining: Vec<(String, usize)>,
    /// Finalizer and on how many objects it is.
    finalizers: Vec<(String, usize)>,
    longest_grace: u64,
}

impl Found {
    fn errors(&self) -> impl Iterator<Item = &String> {
        self.discovery_errors.iter().chain(&self.version_errors).chain(&self.delete_errors)
    }
}

async fn empty(client: &Client, namespace: &str) -> Found {
    let mut found = Found::default();
    let discovery = match Discovery::new(client.clone()).run().await {
        Ok(d) => d,
        Err(e) => {
            found.discovery_errors.push(e.to_string());
            return found;
        }
    };
    let mut resources: Vec<ApiResource> = Vec::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let namespaced = matches!(capabilities.scope, kube::discovery::Scope::Namespaced);
            if namespaced
                && capabilities.supports_operation("list")
                && capabilities.supports_operation("delete")
                && !resources.iter().any(|r| r.group == resource.group && r.plural == resource.plural)
            {
                resources.push(resource);
            }
        }
    }
    // Pods last but one, as they may still write events; a second look finds what others made meanwhile.
    for resource in &resources {
        if let Err(e) = empty_resource(client, namespace, resource, &mut found).await {
            found.delete_errors.push(e.to_string());
        }
    }
    found.remaining.sort();
    found.finalizers.sort();
    found
}

async fn empty_resource(
    client: &Client,
    namespace: &str,
    resource: &ApiResource,
    found: &mut Found,
) -> Result<(), kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let items = match api.list(&ListParams::default()).await {
        Ok(l) => l.items,
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 405 => return Ok(()),
        Err(e) => return Err(e),
    };
    if items.is_empty() {
        return Ok(());
    }
    match api.delete_collection(&DeleteParams::background(), &ListParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(e)) if e.code == 405 => {
            for item in &items {
                let name = item.metadata.name.as_deref().unwrap_or_default();
                match api.delete(name, &DeleteParams::background()).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(e)) if e.code == 404 => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Err(e) => return Err(e),
    }
    let left = api.list(&ListParams::default()).await?.items;
    if left.is_empty() {
        return Ok(());
    }
    let name = if resource.group.is_empty() {
        format!("{}.", resource.plural)
    } else {
        format!("{}.{}", resource.plural, resource.group)
    };
    found.remaining.push((name, left.len()));
    for object in left {
        let grace = object.metadata.deletion_grace_period_seconds.unwrap_or(0);
        found.longest_grace = found.longest_grace.max(u64::try_from(grace).unwrap_or(0));
        for f in object.metadata.finalizers.into_iter().flatten() {
            match found.finalizers.iter_mut().find(|(n, _)| *n == f) {
                Some((_, n)) => *n += 1,
                None => found.finalizers.push((f, 1)),
            }
        }
    }
    Ok(())
}

/// The conditions of a namespace in which `found` was found. Conditions that do not change keep their times.
fn conditions(namespace: &Namespace, found: &Found, now: Timestamp) -> Vec<NamespaceCondition> {
    let join = |e: &[String]| e.join(", ");
    let failed = |reason: &'static str, prefix: &str, errors: &[String]| {
        (!errors.is_empty()).then(|| ("True", reason, format!("{prefix}{}", join(errors))))
    };
    let content = (!found.remaining.is_empty()).then(|| {
        let parts: Vec<String> =
            found.remaining.iter().map(|(r, n)| format!("{r} has {n} resource instances")).collect();
        ("True", "SomeResourcesRemain", format!("Some resources are remaining: {}", parts.join(", ")))
    });
    let finalizers = (!found.finalizers.is_empty()).then(|| {
        let parts: Vec<String> =
            found.finalizers.iter().map(|(f, n)| format!("{f} in {n} resource instances")).collect();
        (
            "True",
            "SomeFinalizersRemain",
            format!("Some content in the namespace has finalizers remaining: {}", parts.join(", ")),
        )
    });
    let wanted = [
        (
            "NamespaceDeletionDiscoveryFailure",
            failed("DiscoveryFailed", "Discovery failed for some groups, ", &found.discovery_errors),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            failed("GroupVersionParsingFailed", "", &found.version_errors),
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            failed("ContentDeletionFailed", "Failed to delete all resource types, ", &found.delete_errors),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        ("NamespaceContentRemaining", content, ("ContentRemoved", "All content successfully removed")),
        (
            "NamespaceFinalizersRemaining",
            finalizers,
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let mut list = namespace.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
    for (type_, bad, (good_reason, good_message)) in wanted {
        let (status, reason, message) = bad.unwrap_or(("False", good_reason, good_message.to_string()));
        let condition = NamespaceCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
        };
        match list.iter_mut().find(|c| c.type_ == type_) {
            Some(old) => {
                if (&old.status, &old.reason, &old.message)
                    != (&condition.status, &condition.reason, &condition.message)
                {
                    *old = condition;
                }
            }
            None => list.push(condition),
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_remains_and_keeps_times() {
        let found = Found {
            remaining: vec![("pods.".into(), 2)],
            finalizers: vec![("example.com/f".into(), 1)],
            ..Default::default()
        };
        let first = Timestamp::UNIX_EPOCH;
        let list = conditions(&Namespace::default(), &found, first);
        let get = |t: &str| list.iter().find(|c| c.type_ == t).unwrap();
        assert_eq!(get("NamespaceContentRemaining").status, "True");
        assert_eq!(
            get("NamespaceContentRemaining").message.as_deref(),
            Some("Some resources are remaining: pods. has 2 resource instances")
        );
        assert_eq!(get("NamespaceDeletionDiscoveryFailure").status, "False");
        let mut namespace = Namespace::default();
        namespace.status.get_or_insert_default().conditions = Some(list);
        let later = conditions(&namespace, &Found::default(), first + Duration::from_secs(9));
        assert_eq!(later[3].reason.as_deref(), Some("ContentRemoved"));
        assert_eq!(later[3].last_transition_time, Some(Time(first + Duration::from_secs(9))));
        assert_eq!(later[0].last_transition_time, Some(Time(first)));
    }
}
