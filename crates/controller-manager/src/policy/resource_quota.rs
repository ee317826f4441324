//! The resource quota controller: computes what quotas limit, when they change, when something is removed, and now
//! and then. What is created is counted by the API server as it admits it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_apimachinery::quantity::{Format, Quantity};
use pilothouse_client::{Change, Informer, Queue, key_of};

use super::usage::{self, Amounts};
use crate::context::{Context, Removed};
use crate::control::{has_code, is_terminal};

struct Worker {
    client: Client,
    quotas: Informer<ResourceQuota>,
    pods: Informer<Pod>,
    services: Informer<Service>,
    claims: Informer<PersistentVolumeClaim>,
    /// Where resources that are merely counted are found, by group and plural.
    found: Mutex<BTreeMap<(String, String), ApiResource>>,
}

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        quotas: context.informer::<ResourceQuota>(),
        pods: context.informer::<Pod>(),
        services: context.informer::<Service>(),
        claims: context.informer::<PersistentVolumeClaim>(),
        found: Mutex::default(),
    });
    let queue: Queue<String> = Queue::new();
    worker.watch(&queue);
    worker.clone().watch_removed(&queue, &context);
    let (period, stop) = (context.config.resource_quota_sync_period, context.stop.clone());
    let (q, w) = (queue.clone(), worker.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = stop.wait() => return, _ = tokio::time::sleep(period) => {} }
            w.quotas.list().iter().for_each(|quota| q.add(key_of(&**quota)));
        }
    });
    let (stop, workers) = (context.stop.clone(), context.config.workers("resourcequota"));
    tokio::spawn(async move {
        worker.quotas.wait_synced().await;
        worker.pods.wait_synced().await;
        worker.services.wait_synced().await;
        worker.claims.wait_synced().await;
        queue.run("resourcequota", workers, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await.map(|()| None::<Duration>) }
        });
    });
    Ok(())
}

impl Worker {
    fn watch(self: &Arc<Self>, queue: &Queue<String>) {
        let q = queue.clone();
        self.quotas.on_change(move |c| match c {
            Change::Updated(old, new) if old.spec == new.spec => {}
            Change::Deleted(_) => {}
            _ => q.add(key_of(&**c.object())),
        });
        let (q, me) = (queue.clone(), self.clone());
        self.pods.on_change(move |c| {
            let freed = match c {
                Change::Added(_) => false,
                Change::Updated(old, new) => !is_terminal(old) && is_terminal(new),
                Change::Deleted(_) => true,
            };
            if freed {
                me.add_all_in(&q, c.object().metadata.namespace.as_deref());
            }
        });
        let (q, me) = (queue.clone(), self.clone());
        self.services.on_change(move |c| {
            let what = |s: &Service| usage::of_service(s);
            let freed = match c {
                Change::Added(_) => false,
                Change::Updated(old, new) => what(old) != what(new),
                Change::Deleted(_) => true,
            };
            if freed {
                me.add_all_in(&q, c.object().metadata.namespace.as_deref());
            }
        });
        let (q, me) = (queue.clone(), self.clone());
        self.claims.on_change(move |c| {
            if matches!(c, Change::Deleted(_)) {
                me.add_all_in(&q, c.object().metadata.namespace.as_deref());
            }
        });
    }

    /// Looks at quotas that count a resource of which the garbage collector saw an object go.
    fn watch_removed(self: Arc<Self>, queue: &Queue<String>, context: &Context) {
        let (mut removed, queue, stop) = (context.removed.subscribe(), queue.clone(), context.stop.clone());
        tokio::spawn(async move {
            loop {
                let seen = tokio::select! { _ = stop.wait() => return, r = removed.recv() => r };
                match seen {
                    Ok(Removed { group, plural, namespace }) => {
                        for quota in self.quotas.list_namespace(&namespace) {
                            let counts = hard_keys(&quota)
                                .iter()
                                .any(|k| usage::counted(k) == Some((group.as_str(), plural.as_str())));
                            if counts {
                                queue.add(key_of(&*quota));
                            }
                        }
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                        self.quotas.list().iter().for_each(|q| queue.add(key_of(&**q)));
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }

    fn add_all_in(&self, queue: &Queue<String>, namespace: Option<&str>) {
        for quota in self.quotas.list_namespace(namespace.unwrap_or_default()) {
            queue.add(key_of(&*quota));
        }
    }

    async fn sync(&self, key: &str) -> Result<(), kube::Error> {
        let Some(quota) = self.quotas.get(key) else { return Ok(()) };
        let Some((namespace, name)) = key.split_once('/') else { return Ok(()) };
        let used = self.used(&quota, namespace).await?;
        let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
        let used: BTreeMap<String, ApiQuantity> = hard
            .keys()
            .filter_map(|k| {
                let before = || quota.status.as_ref()?.used.as_ref()?.get(k).cloned();
                Some((k.clone(), used.get(k).map(|q| ApiQuantity(q.canonical())).or_else(before)?))
            })
            .collect();
        let status = ResourceQuotaStatus { hard: Some(hard), used: Some(used) };
        if quota.status.as_ref().is_some_and(|old| same(old, &status)) {
            return Ok(());
        }
        let mut quota = (*quota).clone();
        quota.status = Some(status);
        let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), namespace);
        match api.replace_status(name, &PostParams::default(), &quota).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// What is used of the resources that a quota limits. Names that nobody knows are left out.
    async fn used(&self, quota: &ResourceQuota, namespace: &str) -> Result<Amounts, kube::Error> {
        let (spec, now) = (quota.spec.clone().unwrap_or_default(), Timestamp::now());
        let scoped = usage::is_scoped(&spec);
        let mut sum = Amounts::new();
        for pod in self.pods.list_namespace(namespace).iter().filter(|p| usage::covers(&spec, p)) {
            usage::add(&mut sum, &usage::of_pod(pod, now));
        }
        if !scoped {
            self.services
                .list_namespace(namespace)
                .iter()
                .for_each(|s| usage::add(&mut sum, &usage::of_service(s)));
            self.claims
                .list_namespace(namespace)
                .iter()
                .for_each(|c| usage::add(&mut sum, &usage::of_claim(c)));
        }
        let mut used = Amounts::new();
        for key in hard_keys(quota) {
            let zero = || Quantity::from_value(0, Format::DecimalSi);
            let listed =
                matches!(key.as_str(), "count/pods" | "count/services" | "count/persistentvolumeclaims");
            let amount = match usage::counted(&key) {
                Some((group, plural)) if !listed => {
                    if scoped {
                        zero()
                    } else {
                        match self.count(group, plural, namespace).await? {
                            Some(n) => Quantity::from_value(n, Format::DecimalSi),
                            None => continue,
                        }
                    }
                }
                _ => sum.remove(&key).unwrap_or_else(zero),
            };
            used.insert(key, amount);
        }
        Ok(used)
    }

    /// How many objects of a resource a namespace has; `None` where the server does not know the resource.
    async fn count(&self, group: &str, plural: &str, namespace: &str) -> Result<Option<i64>, kube::Error> {
        let Some(resource) = self.find(group, plural).await? else { return Ok(None) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let mut params = ListParams::default().limit(500);
        let mut n = 0;
        loop {
            let page = api.list_metadata(&params).await?;
            n += i64::try_from(page.items.len()).unwrap_or(i64::MAX);
            if let Some(rest) = page.metadata.remaining_item_count {
                return Ok(Some(n + rest));
            }
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                Some(c) => params.continue_token = Some(c),
                None => return Ok(Some(n)),
            }
        }
    }

    async fn find(&self, group: &str, plural: &str) -> Result<Option<ApiResource>, kube::Error> {
        let key = (group.to_string(), plural.to_string());
        if let Some(found) = self.found.lock().get(&key) {
            return Ok(Some(found.clone()));
        }
        let versions: Vec<String> = if group.is_empty() {
            vec!["v1".into()]
        } else {
            let groups = self.client.list_api_groups().await?.groups;
            let Some(g) = groups.into_iter().find(|g| g.name == group) else { return Ok(None) };
            let preferred = g.preferred_version.map(|v| v.version);
            let rest = g.versions.into_iter().map(|v| v.version).filter(|v| Some(v) != preferred.as_ref());
            preferred.clone().into_iter().chain(rest).collect()
        };
        for version in versions {
            let list = if group.is_empty() {
                self.client.list_core_api_resources(&version).await?
            } else {
                self.client.list_api_group_resources(&format!("{group}/{version}")).await?
            };
            if let Some(r) = list.resources.iter().find(|r| r.name == plural && r.namespaced) {
                let gvk = kube::core::GroupVersionKind::gvk(group, &version, &r.kind);
                let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
                self.found.lock().insert(key, resource.clone());
                return Ok(Some(resource));
            }
        }
        Ok(None)
    }
}

fn hard_keys(quota: &ResourceQuota) -> BTreeSet<String> {
    quota.spec.as_ref().and_then(|s| s.hard.as_ref()).into_iter().flatten().map(|(k, _)| k.clone()).collect()
}

/// Whether two statuses say the same, however their numbers are written.
fn same(a: &ResourceQuotaStatus, b: &ResourceQuotaStatus) -> bool {
    let equal =
        |a: &Option<BTreeMap<String, ApiQuantity>>, b: &Option<BTreeMap<String, ApiQuantity>>| match (a, b) {
            (Some(a), Some(b)) => {
                a.len() == b.len()
                    && a.iter().all(|(k, q)| {
                        b.get(k).is_some_and(|o| Quantity::parse(&q.0).ok() == Quantity::parse(&o.0).ok())
                    })
            }
            (a, b) => a.is_none() == b.is_none(),
        };
    equal(&a.hard, &b.hard) && equal(&a.used, &b.used)
}
