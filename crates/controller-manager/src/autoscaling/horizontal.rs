//! The controller: every 15 seconds for each autoscaler, reads the target's size and its metrics, decides, writes the
//! size and the status.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ApiResource, ListParams, PostParams};
use kube::core::Object;
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_apimachinery::selector::Selector;
use pilothouse_client::events::reference;
use pilothouse_client::{Change, EventRecorder, Informer, Queue, key_of, served};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::compute::{Invalid, Meter, Target, failed};
use super::rate::{Memory, Sizes};
use super::replicas::Rules;
use super::scale::{Mapping, Scales, group_of};
use super::status::set_condition;
use crate::context::Context;
use crate::control::{has_code, message};

type Autoscaler = Object<HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus>;

/// From this minor release on, an autoscaler does not scale down while one of its metrics cannot be read.
const CAREFUL_SINCE: u32 = 21;

struct Worker {
    client: Client,
    recorder: EventRecorder,
    resource: ApiResource,
    autoscalers: Informer<Autoscaler>,
    scales: Scales,
    rules: Rules,
    stabilization: Duration,
    careful: bool,
    memory: Mutex<HashMap<String, Memory>>,
}

/// Starts the controller; does nothing where the server has no autoscalers with metrics.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let Some(resource) = context.served(served::HORIZONTAL_POD_AUTOSCALER) else { return Ok(()) };
    let config = &context.config;
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        recorder: context.recorder("horizontal-pod-autoscaler"),
        autoscalers: context.informer_of::<Autoscaler>(&resource),
        scales: Scales::new(context.client.clone()),
        resource,
        rules: Rules {
            tolerance: config.hpa_tolerance,
            cpu_initialization: config.hpa_cpu_initialization_period,
            initial_readiness: config.hpa_initial_readiness_delay,
        },
        stabilization: config.hpa_downscale_stabilization,
        careful: context.server_minor >= CAREFUL_SINCE,
        memory: Mutex::default(),
    });
    let period = config.hpa_sync_period;
    let queue: Queue<String> = Queue::new();
    let (q, w) = (queue.clone(), worker.clone());
    // A new one waits for a period too: its target has time to come up.
    worker.autoscalers.on_change(move |c| match c {
        Change::Deleted(gone) => {
            w.memory.lock().remove(&key_of(&**gone));
        }
        other => q.add_after(key_of(&**other.object()), period),
    });
    queue.run("horizontalpodautoscaling", 1, context.stop.clone(), move |key| {
        let worker = worker.clone();
        async move {
            let Some(autoscaler) = worker.autoscalers.get(&key) else { return Ok(None) };
            if let Err(e) = worker.sync(&key, &autoscaler).await {
                tracing::debug!(autoscaler = key, "{e}");
            }
            Ok::<_, std::convert::Infallible>(Some(period))
        }
    });
    Ok(())
}

/// What the metrics together say.
struct Computed {
    replicas: i32,
    /// The metric that asked for that.
    metric: String,
    statuses: Vec<MetricStatus>,
}

impl Worker {
    async fn sync(&self, key: &str, autoscaler: &Autoscaler) -> Result<(), String> {
        let mut hpa = autoscaler.clone();
        let mut status = hpa.status.clone().unwrap_or_default();
        let result = self.reconcile(key, &hpa, &mut status).await;
        if hpa.status.as_ref() != Some(&status) {
            hpa.status = Some(status);
            self.write_status(&hpa).await?;
        }
        result
    }

    async fn write_status(&self, hpa: &Autoscaler) -> Result<(), String> {
        let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
        let name = hpa.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Autoscaler> = Api::namespaced_with(self.client.clone(), namespace, &self.resource);
        match api.replace_status(name, &PostParams::default(), hpa).await {
            Ok(_) => Ok(()),
            Err(e) if has_code(&e, 404) => Ok(()),
            Err(e) => {
                self.recorder.warning(&reference(hpa, &self.resource), "FailedUpdateStatus", message(&e));
                Err(format!("failed to update status for {name}: {}", message(&e)))
            }
        }
    }

    fn meter(&self) -> Meter<'_> {
        Meter { client: &self.client, scales: &self.scales, rules: &self.rules }
    }

    async fn target(&self, hpa: &Autoscaler) -> Result<(Mapping, Value), String> {
        let target = &hpa.spec.scale_target_ref;
        let group = group_of(target.api_version.as_deref().unwrap_or_default())?;
        let mapping = self.scales.mapping(group, &target.kind).await?;
        let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
        let scale = self.scales.get(&mapping, namespace, &target.name).await?;
        Ok((mapping, scale))
    }

    async fn reconcile(
        &self,
        key: &str,
        hpa: &Autoscaler,
        status: &mut HorizontalPodAutoscalerStatus,
    ) -> Result<(), String> {
        let now = crate::control::now();
        let object = reference(hpa, &self.resource);
        let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
        let (mapping, mut scale) = match self.target(hpa).await {
            Ok(found) => found,
            Err(e) => {
                self.recorder.warning(&object, "FailedGetScale", e.clone());
                let text = format!("the HPA controller was unable to get the target's current scale: {e}");
                set_condition(status, "AbleToScale", "False", "FailedGetScale", text, now);
                return Err(e);
            }
        };
        set_condition(
            status,
            "AbleToScale",
            "True",
            "SucceededGetScale",
            "the HPA controller was able to get the target's current scale",
            now,
        );
        let current = number(&scale["spec"]["replicas"]);
        self.memory.lock().entry(key.into()).or_default().begin(current, Instant::now());
        let (min, max) = (hpa.spec.min_replicas.unwrap_or(1), hpa.spec.max_replicas);
        let mut statuses = Vec::new();
        let (wanted, reason) = if current == 0 && min != 0 {
            let text = "scaling is disabled since the replica count of the target is zero";
            set_condition(status, "ScalingActive", "False", "ScalingDisabled", text, now);
            (0, String::new())
        } else if current > max {
            (max, "Current number of replicas above Spec.MaxReplicas".into())
        } else if current < min {
            (min, "Current number of replicas below Spec.MinReplicas".into())
        } else {
            let computed = match self.compute(hpa, &scale, status, now).await {
                Ok(c) => c,
                Err(e) => {
                    status.current_replicas = Some(current);
                    self.recorder.warning(&object, "FailedComputeMetricsReplicas", e.clone());
                    return Err(e);
                }
            };
            statuses = computed.statuses;
            let wanted = computed.replicas.max(0);
            let reason = match wanted.cmp(&current) {
                std::cmp::Ordering::Greater => format!("{} above target", computed.metric),
                std::cmp::Ordering::Less => "All metrics below target".into(),
                std::cmp::Ordering::Equal => String::new(),
            };
            (self.pace(key, hpa, Sizes { current, wanted, min, max }, status, now), reason)
        };
        let rescale = wanted != current;
        if rescale {
            scale["spec"]["replicas"] = json!(wanted);
            let name = &hpa.spec.scale_target_ref.name;
            if let Err(e) = self.scales.put(&mapping, namespace, name, &scale).await {
                let text = format!("New size: {wanted}; reason: {reason}; error: {e}");
                self.recorder.warning(&object, "FailedRescale", text);
                let text = format!("the HPA controller was unable to update the target scale: {e}");
                set_condition(status, "AbleToScale", "False", "FailedUpdateScale", text, now);
                status.current_replicas = Some(current);
                return Err(e);
            }
            let text = format!("the HPA controller was able to update the target scale to {wanted}");
            set_condition(status, "AbleToScale", "True", "SucceededRescale", text, now);
            let text = format!("New size: {wanted}; reason: {reason}");
            self.recorder.normal(&object, "SuccessfulRescale", text);
            if let Some(memory) = self.memory.lock().get_mut(key) {
                memory.scaled(hpa.spec.behavior.as_ref(), current, wanted, Instant::now());
            }
            status.last_scale_time = Some(Time(now));
        }
        status.current_replicas = Some(current);
        status.desired_replicas = wanted;
        status.current_metrics = Some(statuses).filter(|s| !s.is_empty());
        Ok(())
    }

    fn pace(
        &self,
        key: &str,
        hpa: &Autoscaler,
        sizes: Sizes,
        status: &mut HorizontalPodAutoscalerStatus,
        now: Timestamp,
    ) -> i32 {
        let mut all = self.memory.lock();
        let memory = all.entry(key.into()).or_default();
        let paced = match &hpa.spec.behavior {
            None => memory.pace(sizes, self.stabilization, Instant::now()),
            Some(b) => memory.pace_with(sizes, b, self.stabilization, Instant::now()),
        };
        set_condition(status, "AbleToScale", paced.able.0, paced.able.1, paced.able.2, now);
        set_condition(status, "ScalingLimited", paced.limited.0, paced.limited.1, paced.limited.2, now);
        paced.replicas
    }

    async fn compute(
        &self,
        hpa: &Autoscaler,
        scale: &Value,
        status: &mut HorizontalPodAutoscalerStatus,
        now: Timestamp,
    ) -> Result<Computed, String> {
        let object = reference(hpa, &self.resource);
        let namespace = hpa.metadata.namespace.as_deref().unwrap_or_default();
        let selector = scale["status"]["selector"].as_str().unwrap_or_default();
        if selector.is_empty() {
            self.recorder.warning(&object, "SelectorRequired", "selector is required");
            let text = "the HPA target's scale is missing a selector";
            set_condition(status, "ScalingActive", "False", "InvalidSelector", text, now);
            return Err("selector is required".into());
        }
        if let Err(e) = Selector::parse(selector) {
            let text =
                format!("couldn't convert selector into a corresponding internal selector object: {e}");
            self.recorder.warning(&object, "InvalidSelector", text.clone());
            set_condition(status, "ScalingActive", "False", "InvalidSelector", text.clone(), now);
            return Err(text);
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let listed = pods.list(&ListParams::default().labels(selector)).await;
        let pods: Result<Vec<Arc<Pod>>, String> =
            listed.map(|l| l.items.into_iter().map(Arc::new).collect()).map_err(|e| message(&e));
        let specs = hpa.spec.metrics.as_deref().unwrap_or_default();
        let mut computed =
            Computed { replicas: 0, metric: String::new(), statuses: Vec::with_capacity(specs.len()) };
        let (mut invalid, mut first) = (0, None);
        let spec_replicas = number(&scale["spec"]["replicas"]);
        for spec in specs {
            let result = match &pods {
                Ok(pods) => {
                    let target = Target {
                        namespace,
                        spec: spec_replicas,
                        status: number(&scale["status"]["replicas"]),
                        selector,
                        pods,
                        now,
                    };
                    self.meter().metric(spec, &target).await
                }
                Err(e) => {
                    let text = format!("unable to get pods while calculating replica count: {e}");
                    Err(Invalid::new(failed(&spec.type_), text))
                }
            };
            match result {
                Ok((replicas, name, status)) => {
                    if computed.replicas == 0 || replicas > computed.replicas {
                        (computed.replicas, computed.metric) = (replicas, name);
                    }
                    computed.statuses.push(status);
                }
                Err(e) => {
                    self.recorder.warning(&object, e.reason, e.error.clone());
                    invalid += 1;
                    first.get_or_insert(e);
                    computed.statuses.push(MetricStatus::default());
                }
            }
        }
        let stuck =
            invalid >= specs.len() || (self.careful && invalid > 0 && computed.replicas < spec_replicas);
        if let Some(e) = first.filter(|_| stuck) {
            let text = format!("the HPA was unable to compute the replica count: {}", e.error);
            set_condition(status, "ScalingActive", "False", e.reason, text, now);
            return Err(format!(
                "invalid metrics ({invalid} invalid out of {}), first error is: {}",
                specs.len(),
                e.passed_on
            ));
        }
        let text =
            format!("the HPA was able to successfully calculate a replica count from {}", computed.metric);
        set_condition(status, "ScalingActive", "True", "ValidMetricFound", text, now);
        Ok(computed)
    }
}

fn number(v: &Value) -> i32 {
    v.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0)
}
