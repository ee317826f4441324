//! An autoscaler's status: its conditions and what its metrics were.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Sets a condition; its time changes with its status.
pub fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    type_: &str,
    value: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) {
    let all = status.conditions.get_or_insert_default();
    let at = match all.iter().position(|c| c.type_ == type_) {
        Some(at) => at,
        None => {
            all.push(HorizontalPodAutoscalerCondition { type_: type_.into(), ..Default::default() });
            all.len() - 1
        }
    };
    let condition = &mut all[at];
    if condition.status != value {
        condition.last_transition_time = Some(Time(now));
    }
    condition.status = value.into();
    condition.reason = Some(reason.into());
    condition.message = Some(message.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conditions_time_is_that_of_its_status() {
        let mut s = HorizontalPodAutoscalerStatus::default();
        let at = |t: i64| Timestamp::from_second(t).unwrap();
        set_condition(&mut s, "AbleToScale", "True", "A", "a", at(1));
        set_condition(&mut s, "AbleToScale", "True", "B", "b", at(2));
        let c = &s.conditions.as_ref().unwrap()[0];
        assert_eq!((c.reason.as_deref(), c.last_transition_time.clone()), (Some("B"), Some(Time(at(1)))));
        set_condition(&mut s, "AbleToScale", "False", "C", "c", at(3));
        assert_eq!(s.conditions.unwrap()[0].last_transition_time, Some(Time(at(3))));
    }
}
