//! `HorizontalPodAutoscaler`.

mod convert;
mod metrics;
mod printer;
mod validate;

use pilothouse_apimachinery::json::{Value, json};

use super::access::{part, put};
use super::numbers::all_nonnegative;
use super::pod::is_today;
use super::{Context, Kind, STATUS, Version};
use pilothouse_apimachinery::field::{ErrorList, Path};

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&HORIZONTAL_POD_AUTOSCALER];

const V2: Version = Version {
    to_hub: Some(convert::from_v2),
    from_hub: Some(convert::to_v2),
    ..Version::newer("autoscaling", "v2")
};

const V2BETA1: Version = Version {
    to_hub: Some(convert::from_v2beta1),
    from_hub: Some(convert::to_v2beta1),
    ..Version::older("autoscaling", "v2beta1")
};

const V2BETA2: Version = Version {
    to_hub: Some(convert::from_v2),
    from_hub: Some(convert::to_v2),
    ..Version::older("autoscaling", "v2beta2")
};

static HORIZONTAL_POD_AUTOSCALER: Kind = Kind {
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[STATUS],
    storage_version: "autoscaling/v1",
    default: |object, _| convert::default_v1(object),
    prepare_create,
    prepare_update,
    validate: |object, context| validate::spec(part(&convert::v2_form(object), "spec"), context.release),
    validate_update: |object, _, context| {
        if context.subresource == "status" {
            return validate_status(object);
        }
        validate::spec(part(&convert::v2_form(object), "spec"), context.release)
    },
    columns: printer::COLUMNS,
    row: printer::row,
    ..Kind::new(
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        &[Version::always("autoscaling", "v1"), V2, V2BETA1, V2BETA2],
    )
};

fn prepare_create(object: &mut Value, context: &Context) {
    let mut form = convert::v2_form(object);
    put(&mut form, "status", json!({}));
    if !is_today(context) {
        convert::without_container_metrics(&mut form);
    }
    convert::from_v2(&mut form);
    *object = form;
}

fn prepare_update(object: &mut Value, old: &Value, context: &Context) {
    let (mut form, old) = (convert::v2_form(object), convert::v2_form(old));
    if context.subresource == "status" {
        put(&mut form, "spec", part(&old, "spec").clone());
    } else {
        put(&mut form, "status", part(&old, "status").clone());
        if !is_today(context) && !convert::has_container_metrics(&old) {
            convert::without_container_metrics(&mut form);
        }
    }
    convert::from_v2(&mut form);
    *object = form;
}

fn validate_status(object: &Value) -> ErrorList {
    all_nonnegative(part(object, "status"), &["currentReplicas", "desiredReplicas"], &Path::new("status"))
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "autoscaling/v1",
        allow_privileged: true,
        gates: &[],
    };

    #[test]
    fn the_status_is_not_the_clients() {
        let mut old =
            json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 3}, "status": {"currentReplicas": 7}});
        convert::default_v1(&mut old);
        prepare_create(&mut old, &CONTEXT);
        assert_eq!(old["status"], json!({}));
        assert_eq!(
            old["spec"],
            json!({"maxReplicas": 3, "minReplicas": 1, "targetCPUUtilizationPercentage": 80})
        );
        let mut new = old.clone();
        new["status"] = json!({"currentReplicas": 2, "currentCPUUtilizationPercentage": 5});
        new["spec"]["maxReplicas"] = json!(9);
        let mut status = new.clone();
        prepare_update(&mut status, &old, &Context { subresource: "status", ..CONTEXT });
        assert_eq!(status["spec"]["maxReplicas"], 3);
        assert_eq!(status["status"]["currentReplicas"], 2);
        prepare_update(&mut new, &old, &CONTEXT);
        assert_eq!((&new["spec"]["maxReplicas"], &new["status"]), (&json!(9), &json!({})));
    }
}
