//! How fast an autoscaler may follow its metrics: recommendations are kept for a while, and changes limited by time.

use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};
use tokio::time::Instant;

/// A condition's status, reason and message.
pub type Verdict = (&'static str, &'static str, &'static str);

const READY: Verdict = ("True", "ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Verdict = (
    "True",
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: Verdict = (
    "True",
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");

/// What is remembered of one autoscaler.
#[derive(Debug, Default)]
pub struct Memory {
    recommendations: Vec<(i32, Instant)>,
    ups: Vec<(i32, Instant)>,
    downs: Vec<(i32, Instant)>,
}

/// Sizes to choose between.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Now.
    pub current: i32,
    /// Wanted by the metrics.
    pub wanted: i32,
    /// Fewest.
    pub min: i32,
    /// Most.
    pub max: i32,
}

/// The size to go to, and what `AbleToScale` and `ScalingLimited` say.
#[derive(Debug, PartialEq)]
pub struct Paced {
    /// How many replicas.
    pub replicas: i32,
    /// `AbleToScale`.
    pub able: Verdict,
    /// `ScalingLimited`.
    pub limited: Verdict,
}

/// Scaling rules with nothing left open.
struct Pace<'a> {
    window: Duration,
    select: &'a str,
    /// Whether percent, how much, over which time.
    policies: Vec<(bool, i32, Duration)>,
}

fn pace<'a>(rules: Option<&'a HPAScalingRules>, window: Duration, default: &[(bool, i32, u64)]) -> Pace<'a> {
    let policies = match rules.and_then(|r| r.policies.as_ref()) {
        Some(p) => p.iter().map(|p| (p.type_ == "Percent", p.value, seconds(p.period_seconds))).collect(),
        None => default.iter().map(|(p, v, s)| (*p, *v, Duration::from_secs(*s))).collect(),
    };
    Pace {
        window: rules.and_then(|r| r.stabilization_window_seconds).map_or(window, seconds),
        select: rules.and_then(|r| r.select_policy.as_deref()).unwrap_or("Max"),
        policies,
    }
}

fn seconds(s: i32) -> Duration {
    Duration::from_secs(u64::try_from(s).unwrap_or(0))
}

fn up_pace(behavior: &HorizontalPodAutoscalerBehavior) -> Pace<'_> {
    pace(behavior.scale_up.as_ref(), Duration::ZERO, &[(false, 4, 15), (true, 100, 15)])
}

fn down_pace(behavior: &HorizontalPodAutoscalerBehavior, window: Duration) -> Pace<'_> {
    pace(behavior.scale_down.as_ref(), window, &[(true, 100, 15)])
}

impl Memory {
    /// Notes the size at which the autoscaler was first seen, so that a restart does not scale down at once.
    pub fn begin(&mut self, replicas: i32, now: Instant) {
        if self.recommendations.is_empty() {
            self.recommendations.push((replicas, now));
        }
    }

    /// Notes that the size was changed; changes older than the longest policy's time are forgotten.
    pub fn scaled(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        from: i32,
        to: i32,
        now: Instant,
    ) {
        let Some(behavior) = behavior else { return };
        let (events, pace, change) = if to > from {
            (&mut self.ups, up_pace(behavior), to - from)
        } else {
            (&mut self.downs, down_pace(behavior, Duration::ZERO), from - to)
        };
        let longest = pace.policies.iter().map(|p| p.2).max().unwrap_or_default();
        events.retain(|(_, at)| now.duration_since(*at) <= longest);
        events.push((change, now));
    }

    /// Paces a change without `behavior`: down only as far as the highest recommendation of the last `window`, up at
    /// most to twice the size (or 4).
    pub fn pace(&mut self, sizes: Sizes, window: Duration, now: Instant) -> Paced {
        self.recommendations.retain(|(_, at)| now.duration_since(*at) <= window);
        let stable =
            self.recommendations.iter().map(|r| r.0).chain([sizes.wanted]).max().unwrap_or(sizes.wanted);
        self.recommendations.push((sizes.wanted, now));
        let able = if stable == sizes.wanted { READY } else { DOWN_STABILIZED };
        let fastest = sizes.current.saturating_mul(2).max(4);
        let (most, why) = if sizes.max > fastest { (fastest, UP_LIMIT) } else { (sizes.max, TOO_MANY) };
        let (replicas, (reason, text)) = if stable < sizes.min {
            (sizes.min, TOO_FEW)
        } else if stable > most {
            (most, why)
        } else {
            (stable, WITHIN)
        };
        let limited = (if replicas == stable { "False" } else { "True" }, reason, text);
        Paced { replicas, able, limited }
    }

    /// Paces a change by `behavior`. `window`: how long to look back before scaling down, where it does not say.
    pub fn pace_with(
        &mut self,
        sizes: Sizes,
        behavior: &HorizontalPodAutoscalerBehavior,
        window: Duration,
        now: Instant,
    ) -> Paced {
        let (up, down) = (up_pace(behavior), down_pace(behavior, window));
        let rising = sizes.wanted >= sizes.current;
        let recent = if rising { up.window } else { down.window };
        let longest = up.window.max(down.window);
        let counted =
            self.recommendations.iter().filter(|(_, at)| now.duration_since(*at) < recent).map(|r| r.0);
        let stable =
            if rising { counted.fold(sizes.wanted, i32::min) } else { counted.fold(sizes.wanted, i32::max) };
        self.recommendations.retain(|(_, at)| now.duration_since(*at) <= longest);
        self.recommendations.push((sizes.wanted, now));
        let able = match (stable == sizes.wanted, rising) {
            (true, _) => READY,
            (false, true) => UP_STABILIZED,
            (false, false) => DOWN_STABILIZED,
        };
        let (replicas, (reason, text)) = self.limit(Sizes { wanted: stable, ..sizes }, &up, &down, now);
        let limited = (if replicas == stable { "False" } else { "True" }, reason, text);
        Paced { replicas, able, limited }
    }

    fn limit(
        &self,
        sizes: Sizes,
        up: &Pace<'_>,
        down: &Pace<'_>,
        now: Instant,
    ) -> (i32, (&'static str, &'static str)) {
        let changed = |events: &[(i32, Instant)], period: Duration| -> i32 {
            events.iter().filter(|(_, at)| now.duration_since(*at) < period).map(|e| e.0).sum()
        };
        if sizes.wanted > sizes.current {
            let limits = up.policies.iter().map(|(percent, value, period)| {
                let start = sizes.current - changed(&self.ups, *period);
                match percent {
                    true => (f64::from(start) * (1.0 + f64::from(*value) / 100.0)).ceil() as i32,
                    false => start.saturating_add(*value),
                }
            });
            let limit = match up.select {
                "Disabled" => sizes.current,
                "Min" => limits.min().unwrap_or(i32::MAX),
                _ => limits.max().unwrap_or(i32::MIN),
            }
            .max(sizes.current);
            let (most, why) = if sizes.max > limit { (limit, UP_LIMIT) } else { (sizes.max, TOO_MANY) };
            if sizes.wanted > most {
                return (most, why);
            }
        } else if sizes.wanted < sizes.current {
            let limits = down.policies.iter().map(|(percent, value, period)| {
                let start = sizes.current + changed(&self.downs, *period);
                match percent {
                    true => (f64::from(start) * (1.0 - f64::from(*value) / 100.0)) as i32,
                    false => start.saturating_sub(*value),
                }
            });
            // The smallest change leaves the most.
            let limit = match down.select {
                "Disabled" => sizes.current,
                "Min" => limits.max().unwrap_or(i32::MIN),
                _ => limits.min().unwrap_or(i32::MAX),
            }
            .min(sizes.current);
            let (least, why) = if sizes.min < limit { (limit, DOWN_LIMIT) } else { (sizes.min, TOO_FEW) };
            if sizes.wanted < least {
                return (least, why);
            }
        }
        (sizes.wanted, WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(current: i32, wanted: i32) -> Sizes {
        Sizes { current, wanted, min: 1, max: 100 }
    }

    fn at(start: Instant, s: u64) -> Instant {
        start + Duration::from_secs(s)
    }

    const WINDOW: Duration = Duration::from_secs(300);

    #[tokio::test]
    async fn going_down_waits_for_the_window() {
        let t = Instant::now();
        let mut m = Memory::default();
        m.begin(5, t);
        let p = m.pace(sizes(5, 2), WINDOW, at(t, 15));
        assert_eq!((p.replicas, p.able.1), (5, "ScaleDownStabilized"));
        let p = m.pace(sizes(5, 2), WINDOW, at(t, 316));
        assert_eq!((p.replicas, p.able.1, p.limited.1), (2, "ReadyForNewScale", "DesiredWithinRange"));
    }

    #[tokio::test]
    async fn going_up_is_limited() {
        let t = Instant::now();
        let mut m = Memory::default();
        let p = m.pace(sizes(1, 50), WINDOW, t);
        assert_eq!((p.replicas, p.limited.0, p.limited.1), (4, "True", "ScaleUpLimit"));
        let p = m.pace(Sizes { max: 3, ..sizes(2, 50) }, WINDOW, t);
        assert_eq!((p.replicas, p.limited.1), (3, "TooManyReplicas"));
        let mut m = Memory::default();
        let p = m.pace(Sizes { min: 2, ..sizes(3, 1) }, WINDOW, t);
        assert_eq!((p.replicas, p.limited.0, p.limited.1), (2, "True", "TooFewReplicas"));
    }

    #[tokio::test]
    async fn behavior_limits_changes_over_time() {
        let behavior: HorizontalPodAutoscalerBehavior = serde_json::from_value(serde_json::json!({
            "scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 60}]},
            "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
                {"type": "Pods", "value": 3, "periodSeconds": 60},
                {"type": "Percent", "value": 10, "periodSeconds": 60}]}}))
        .unwrap();
        let t = Instant::now();
        let mut m = Memory::default();
        let p = m.pace_with(sizes(3, 10), &behavior, WINDOW, t);
        assert_eq!((p.replicas, p.limited.1), (5, "ScaleUpLimit"));
        m.scaled(Some(&behavior), 3, 5, t);
        assert_eq!(m.pace_with(sizes(5, 10), &behavior, WINDOW, at(t, 30)).replicas, 5);
        assert_eq!(m.pace_with(sizes(5, 10), &behavior, WINDOW, at(t, 61)).replicas, 7);
        let p = m.pace_with(sizes(20, 1), &behavior, WINDOW, at(t, 90));
        assert_eq!((p.replicas, p.limited.1), (18, "ScaleDownLimit"));
        let off: HorizontalPodAutoscalerBehavior = serde_json::from_value(
            serde_json::json!({"scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Disabled"}}),
        )
        .unwrap();
        assert_eq!(m.pace_with(sizes(20, 1), &off, WINDOW, at(t, 90)).replicas, 20);
    }
}
