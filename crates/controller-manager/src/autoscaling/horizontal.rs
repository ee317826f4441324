//! The controller: every 15 seconds for each autoscaler, reads the target's size and its metrics, decides, writes the
//! size and the status.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscalerSpec,
    HorizontalPodAutoscalerStatus, MetricIdentifier, MetricSpec, MetricStatus, MetricTarget,
    MetricValueStatus, ObjectMetricSource, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::api::{ApiResource, ListParams, PostParams};
use kube::core::Object;
use kube::{Api, Client};
use parking_lot::Mutex;
use pilothouse_apimachinery::quantity::{Format, Quantity};
use pilothouse_apimachinery::selector::Selector;
use pilothouse_client::events::reference;
use pilothouse_client::{Change, EventRecorder, Informer, Queue, key_of, served};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::metrics;
use super::rate::{Memory, Sizes};
use super::replicas::{self, Rules, View};
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

/// What one metric says: replicas, its name, its status.
type One = (i32, String, MetricStatus);

/// Why one metric says nothing: the reason and text of the condition and event, and the text passed on.
struct Invalid {
    reason: &'static str,
    error: String,
    passed_on: String,
}

impl Invalid {
    fn new(reason: &'static str, error: impl Into<String>) -> Self {
        let error = error.into();
        Invalid { reason, passed_on: error.clone(), error }
    }
}

/// The target as a metric sees it.
struct Target<'a> {
    namespace: &'a str,
    /// Replicas that it is to have.
    spec: i32,
    /// Replicas that it has.
    status: i32,
    /// Of its pods.
    selector: &'a str,
    pods: &'a [Arc<Pod>],
    now: Timestamp,
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
                    self.metric(spec, &target).await
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

    async fn metric(&self, spec: &MetricSpec, target: &Target<'_>) -> Result<One, Invalid> {
        let reason = failed(&spec.type_);
        let mut status = MetricStatus { type_: spec.type_.clone(), ..Default::default() };
        match spec.type_.as_str() {
            "Resource" => {
                let Some(source) = &spec.resource else { return Err(unknown(&spec.type_)) };
                let (replicas, name, current) = self
                    .resource(&source.name, "", &source.target, target)
                    .await
                    .map_err(|e| Invalid::new(reason, e))?;
                status.resource = Some(ResourceMetricStatus { name: source.name.clone(), current });
                Ok((replicas, name, status))
            }
            "ContainerResource" => {
                let Some(source) = &spec.container_resource else { return Err(unknown(&spec.type_)) };
                let (replicas, name, current) = self
                    .resource(&source.name, &source.container, &source.target, target)
                    .await
                    .map_err(|e| Invalid::new(reason, e))?;
                status.container_resource = Some(ContainerResourceMetricStatus {
                    name: source.name.clone(),
                    container: source.container.clone(),
                    current,
                });
                Ok((replicas, name, status))
            }
            "Pods" => {
                let Some(source) = &spec.pods else { return Err(unknown(&spec.type_)) };
                let invalid = |e: String| Invalid {
                    reason,
                    passed_on: format!("failed to get pods metric value: {e}"),
                    error: e,
                };
                let MetricIdentifier { name, selector } = &source.metric;
                let metrics = metrics::pods(
                    &self.client,
                    target.namespace,
                    target.selector,
                    name,
                    &text(selector.as_ref()).map_err(invalid)?,
                )
                .await
                .map_err(|e| invalid(format!("unable to get metric {name}: {e}")))?;
                let goal = source.target.average_value.as_ref().map_or(0, milli);
                let p = replicas::for_average(target.spec, goal, false, metrics, self.view(target))
                    .map_err(invalid)?;
                status.pods = Some(PodsMetricStatus {
                    metric: source.metric.clone(),
                    current: average_value(p.average),
                });
                Ok((p.replicas, format!("pods metric {name}"), status))
            }
            "Object" => {
                let Some(source) = &spec.object else { return Err(unknown(&spec.type_)) };
                let (replicas, name, current) = self.object(source, target).await.map_err(|e| Invalid {
                    reason,
                    passed_on: format!("failed to get object metric value: {e}"),
                    error: e,
                })?;
                status.object = Some(ObjectMetricStatus {
                    metric: source.metric.clone(),
                    described_object: source.described_object.clone(),
                    current,
                });
                Ok((replicas, name, status))
            }
            "External" => {
                let Some(source) = &spec.external else { return Err(unknown(&spec.type_)) };
                let (replicas, name, current) =
                    self.external(&source.metric, &source.target, target).await.map_err(|e| Invalid {
                        reason,
                        passed_on: match is_source(&e) {
                            true => format!("failed to get external metric value: {e}"),
                            false => format!(
                                "failed to get external metric value: failed to get {} external metric: {e}",
                                source.metric.name
                            ),
                        },
                        error: e,
                    })?;
                status.external = Some(ExternalMetricStatus { metric: source.metric.clone(), current });
                Ok((replicas, name, status))
            }
            other => Err(unknown(other)),
        }
    }

    fn view<'a>(&'a self, target: &Target<'a>) -> View<'a> {
        View { pods: target.pods, rules: &self.rules, now: target.now }
    }

    async fn resource(
        &self,
        resource: &str,
        container: &str,
        goal: &MetricTarget,
        target: &Target<'_>,
    ) -> Result<(i32, String, MetricValueStatus), String> {
        let context = |e: String| format!("failed to get {resource} utilization: {e}");
        if goal.average_value.is_none() && goal.average_utilization.is_none() {
            return Err(
                "invalid resource metric source: neither a utilization target nor a value target was set"
                    .into(),
            );
        }
        let metrics = metrics::resource(&self.client, target.namespace, target.selector, resource, container)
            .await
            .map_err(|e| context(format!("unable to get metrics for resource {resource}: {e}")))?;
        let view = self.view(target);
        if let Some(value) = &goal.average_value {
            let p = replicas::for_average(target.spec, milli(value), resource == "cpu", metrics, view)
                .map_err(context)?;
            return Ok((p.replicas, format!("{resource} resource"), average_value(p.average)));
        }
        let percent = goal.average_utilization.unwrap_or_default();
        let p = replicas::for_utilization(target.spec, percent, resource, container, metrics, view)
            .map_err(context)?;
        let current =
            MetricValueStatus { average_utilization: Some(p.utilization), ..average_value(p.average) };
        Ok((p.replicas, format!("{resource} resource utilization (percentage of request)"), current))
    }

    async fn object(
        &self,
        source: &ObjectMetricSource,
        target: &Target<'_>,
    ) -> Result<(i32, String, MetricValueStatus), String> {
        let (metric, of) = (&source.metric, &source.described_object);
        let per_pod = match (source.target.type_.as_str(), &source.target.value, &source.target.average_value)
        {
            ("Value", Some(_), _) => false,
            ("AverageValue", _, Some(_)) => true,
            _ => {
                return Err("invalid object metric source: neither a value target nor an average value target was set"
                    .into());
            }
        };
        let group = group_of(of.api_version.as_deref().unwrap_or_default())?;
        let resource = match of.kind.as_str() {
            "Namespace" => "namespaces".to_string(),
            kind => self.scales.mapping(group, kind).await?.resource(),
        };
        let selector = text(metric.selector.as_ref())?;
        let value = metrics::object(&self.client, target.namespace, of, &resource, &metric.name, &selector)
            .await
            .map_err(|e| {
                // The order of its last words is the original's.
                format!(
                    "unable to get metric {}: {} on {} {}/{e}",
                    metric.name, of.kind, target.namespace, of.name
                )
            })?;
        if per_pod {
            let goal = source.target.average_value.as_ref().map_or(0, milli);
            let (replicas, each) = replicas::for_value_per_pod(target.status, value, goal, &self.rules);
            let selector = go_selector(metric.selector.as_ref());
            return Ok((
                replicas,
                format!("external metric {}({selector})", metric.name),
                average_value(each),
            ));
        }
        let goal = source.target.value.as_ref().map_or(0, milli);
        let replicas = replicas::for_value(target.spec, value, goal, self.view(target))?;
        Ok((replicas, format!("{} metric {}", of.kind, metric.name), plain_value(value)))
    }

    async fn external(
        &self,
        metric: &MetricIdentifier,
        goal: &MetricTarget,
        target: &Target<'_>,
    ) -> Result<(i32, String, MetricValueStatus), String> {
        if goal.average_value.is_none() && goal.value.is_none() {
            return Err(NO_EXTERNAL_TARGET.into());
        }
        let (name, shown) = (&metric.name, go_selector(metric.selector.as_ref()));
        let selector = text(metric.selector.as_ref())?;
        let value = metrics::external(&self.client, target.namespace, name, &selector)
            .await
            .map_err(|e| format!("unable to get external metric {}/{name}/{shown}: {e}", target.namespace))?;
        let called = format!("external metric {name}({shown})");
        if let Some(goal) = &goal.average_value {
            let (replicas, each) =
                replicas::for_value_per_pod(target.status, value, milli(goal), &self.rules);
            return Ok((replicas, called, average_value(each)));
        }
        let goal = goal.value.as_ref().map_or(0, milli);
        let replicas = replicas::for_value(target.spec, value, goal, self.view(target))?;
        Ok((replicas, called, plain_value(value)))
    }
}

const NO_EXTERNAL_TARGET: &str =
    "invalid external metric source: neither a value target nor an average value target was set";

fn is_source(e: &str) -> bool {
    e == NO_EXTERNAL_TARGET
}

/// The reason of a metric's failure.
fn failed(type_: &str) -> &'static str {
    match type_ {
        "Resource" => "FailedGetResourceMetric",
        "ContainerResource" => "FailedGetContainerResourceMetric",
        "Pods" => "FailedGetPodsMetric",
        "Object" => "FailedGetObjectMetric",
        "External" => "FailedGetExternalMetric",
        _ => "InvalidMetricSourceType",
    }
}

fn unknown(type_: &str) -> Invalid {
    Invalid::new("InvalidMetricSourceType", format!("unknown metric source type {type_:?}"))
}

fn number(v: &Value) -> i32 {
    v.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0)
}

fn milli(q: &ApiQuantity) -> i64 {
    Quantity::parse(&q.0).map_or(0, |q| q.milli_value())
}

fn quantity(value: i64) -> Option<ApiQuantity> {
    Some(ApiQuantity(Quantity::from_milli(value, Format::DecimalSi).canonical()))
}

fn average_value(value: i64) -> MetricValueStatus {
    MetricValueStatus { average_value: quantity(value), ..Default::default() }
}

fn plain_value(value: i64) -> MetricValueStatus {
    MetricValueStatus { value: quantity(value), ..Default::default() }
}

/// A label selector as text; a missing one matches nothing to Go, which metrics servers take as no restriction.
fn text(selector: Option<&LabelSelector>) -> Result<String, String> {
    match selector {
        None => Ok(String::new()),
        Some(s) => Selector::from_label_selector(&json!(s)).map(|s| s.to_string()),
    }
}

/// A label selector as Go's `%+v` prints a pointer to it.
fn go_selector(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".into() };
    let labels: Vec<String> =
        selector.match_labels.iter().flatten().map(|(k, v)| format!("{k}: {v},")).collect();
    let expressions: Vec<String> = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|e| {
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
                e.key,
                e.operator,
                e.values.as_deref().unwrap_or_default().join(" ")
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{{}}},}}",
        labels.concat(),
        expressions.concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_as_go_prints_them() {
        let s: LabelSelector = serde_json::from_value(json!({"matchLabels": {"queue": "a"}})).unwrap();
        assert_eq!(
            go_selector(Some(&s)),
            "&LabelSelector{MatchLabels:map[string]string{queue: a,},MatchExpressions:[]LabelSelectorRequirement{},}"
        );
        assert_eq!(go_selector(None), "nil");
        assert_eq!(text(Some(&s)), Ok("queue=a".into()));
    }

    #[test]
    fn values_are_thousandths() {
        assert_eq!(milli(&ApiQuantity("1500u".into())), 2);
        assert_eq!(average_value(2500).average_value.unwrap().0, "2500m");
        assert_eq!(plain_value(2000).value.unwrap().0, "2");
    }
}
