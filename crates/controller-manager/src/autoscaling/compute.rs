//! What one metric of an autoscaler says: how many replicas, and what its status shows. Texts are Kubernetes'.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, MetricIdentifier, MetricSpec, MetricStatus,
    MetricTarget, MetricValueStatus, ObjectMetricSource, ObjectMetricStatus, PodsMetricStatus,
    ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use pilothouse_apimachinery::quantity::{Format, Quantity};
use pilothouse_apimachinery::selector::Selector;
use serde_json::json;

use super::metrics;
use super::replicas::{self, Rules, View};
use super::scale::{Scales, group_of};

/// What one metric says: replicas, its name, its status.
pub(super) type One = (i32, String, MetricStatus);

/// Why one metric says nothing: the reason and text of the condition and event, and the text passed on.
pub(super) struct Invalid {
    pub(super) reason: &'static str,
    pub(super) error: String,
    pub(super) passed_on: String,
}

impl Invalid {
    pub(super) fn new(reason: &'static str, error: impl Into<String>) -> Self {
        let error = error.into();
        Invalid { reason, passed_on: error.clone(), error }
    }
}

/// The target as a metric sees it.
pub(super) struct Target<'a> {
    pub(super) namespace: &'a str,
    /// Replicas that it is to have.
    pub(super) spec: i32,
    /// Replicas that it has.
    pub(super) status: i32,
    /// Of its pods.
    pub(super) selector: &'a str,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
}

/// Whom to ask, and by what rules.
pub(super) struct Meter<'m> {
    pub(super) client: &'m Client,
    pub(super) scales: &'m Scales,
    pub(super) rules: &'m Rules,
}

impl Meter<'_> {
    /// What a metric says of a target.
    pub(super) async fn metric(&self, spec: &MetricSpec, target: &Target<'_>) -> Result<One, Invalid> {
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
                    self.client,
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
        View { pods: target.pods, rules: self.rules, now: target.now }
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
        let metrics = metrics::resource(self.client, target.namespace, target.selector, resource, container)
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
        let value = metrics::object(self.client, target.namespace, of, &resource, &metric.name, &selector)
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
            let (replicas, each) = replicas::for_value_per_pod(target.status, value, goal, self.rules);
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
        let value = metrics::external(self.client, target.namespace, name, &selector)
            .await
            .map_err(|e| format!("unable to get external metric {}/{name}/{shown}: {e}", target.namespace))?;
        let called = format!("external metric {name}({shown})");
        if let Some(goal) = &goal.average_value {
            let (replicas, each) = replicas::for_value_per_pod(target.status, value, milli(goal), self.rules);
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
pub(super) fn failed(type_: &str) -> &'static str {
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
        Some(s) => Selector::from_label_selector(&json!(s).into()).map(|s| s.to_string()),
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
