//! `CronJob`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::{go, json};

use super::job::{SELECTOR, job_spec};
use super::schedule;
use crate::kinds::access::{default_text, default_to, flag, items, part, present, put, text};
use crate::kinds::columns::{AGE, NAME, boolean, integer, text as column, wide};
use crate::kinds::numbers::{all_nonnegative, nonnegative};
use crate::kinds::pod::Rules;
use crate::kinds::workloads::template::{
    CONTAINERS_COLUMN, IMAGES_COLUMN, container_cells, default_template, drop_disabled,
};
use crate::kinds::{Column, Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell, selector_cell, since_cell};

const COLUMNS: &[Column] = &[
    NAME,
    column("Schedule", "The schedule in Cron format, see https://en.wikipedia.org/wiki/Cron."),
    boolean(
        "Suspend",
        "This flag tells the controller to suspend subsequent executions, it does not apply to already started executions.  Defaults to false.",
    ),
    integer("Active", "A list of pointers to currently running jobs."),
    column("Last Schedule", "Information when was the last time the job was successfully scheduled."),
    AGE,
    CONTAINERS_COLUMN,
    IMAGES_COLUMN,
    wide("Selector", SELECTOR),
];

pub(super) static CRON_JOB: Kind = Kind {
    short_names: &["cj"],
    categories: &["all"],
    subresources: &[STATUS],
    storage_version: "batch/v1beta1",
    has_generation: true,
    generation_since: 21,
    orphans_by_default: |api_version| matches!(api_version, "batch/v1beta1" | "batch/v2alpha1"),
    default,
    prepare_create: |object, context| {
        put(object, "status", json!({}));
        in_job_template(object, |job| drop_disabled(job, &Value::Null, context));
    },
    prepare_update,
    validate: |object, context| {
        let mut errs = validate_spec(part(object, "spec"), &Rules::of(context));
        // Names of jobs append eleven characters to this one.
        let name = json::str_at(object, &["metadata", "name"]);
        if name.len() > 63 - 11 {
            let path = Path::new("metadata").child("name");
            errs.insert(0, field::invalid(&path, name, "must be no more than 52 characters"));
        }
        errs
    },
    validate_update: |object, _, context| {
        if context.subresource == "status" {
            return ErrorList::new();
        }
        validate_spec(part(object, "spec"), &Rules::of(context))
    },
    // Selectors may name it as if it were a job's.
    selectable_fields: |_| vec![("status.successful", String::new())],
    selectable_field_names: &["status.successful"],
    columns: COLUMNS,
    row,
    ..Kind::new(
        "CronJob",
        "cronjobs",
        "cronjob",
        &[Version::always("batch", "v1beta1"), Version::newer("batch", "v1")],
    )
};

fn in_job_template(object: &mut Value, change: impl Fn(&mut Value)) {
    if let Some(template) =
        object.get_mut("spec").and_then(|s| s.get_mut("jobTemplate")).filter(|t| t.is_object())
    {
        change(template);
    }
}

fn default(object: &mut Value, context: &Context) {
    if let Some(spec) = object.get_mut("spec") {
        default_text(spec, "concurrencyPolicy", "Allow");
        default_to(spec, "suspend", false);
        default_to(spec, "successfulJobsHistoryLimit", 3);
        default_to(spec, "failedJobsHistoryLimit", 1);
    }
    in_job_template(object, |job| default_template(job, context));
}

fn prepare_update(object: &mut Value, old: &Value, context: &Context) {
    if context.subresource == "status" {
        json::copy(object, old, &["spec"]);
        return;
    }
    json::copy(object, old, &["status"]);
    let old = json::get(old, &["spec", "jobTemplate"]);
    in_job_template(object, |job| drop_disabled(job, old, context));
}

fn validate_spec(spec: &Value, rules: &Rules) -> ErrorList {
    let path = Path::new("spec");
    let mut errs = ErrorList::new();
    let at = path.child("schedule");
    match text(spec, "schedule") {
        "" => errs.push(field::required(&at, "")),
        line => {
            if let Err(detail) = schedule::check(line, rules.today) {
                errs.push(field::invalid(&at, line, &detail));
            }
        }
    }
    if rules.today && part(spec, "timeZone") == &Value::from("") {
        let detail = "timeZone must be nil or non-empty string";
        errs.push(field::invalid(&path.child("timeZone"), "", detail));
    }
    errs.extend(nonnegative(spec, "startingDeadlineSeconds", &path));
    let at = path.child("concurrencyPolicy");
    const POLICIES: &[&str] = &["Allow", "Forbid", "Replace"];
    match text(spec, "concurrencyPolicy") {
        "" => errs.push(field::required(&at, "")),
        policy if POLICIES.contains(&policy) => {}
        policy => errs.push(field::not_supported(&at, policy, POLICIES)),
    }
    errs.extend(job_template(part(spec, "jobTemplate"), &path.child("jobTemplate"), rules));
    errs.extend(all_nonnegative(spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"], &path));
    errs
}

fn job_template(template: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let (spec, path) = (part(template, "spec"), path.child("spec"));
    let mut errs = job_spec(spec, &path, rules);
    if present(spec, "selector") {
        let shown = go::label_selector(part(spec, "selector"));
        errs.push(field::invalid_shown(&path.child("selector"), &shown, "`selector` will be auto-generated"));
    }
    if flag(spec, "manualSelector") {
        errs.push(field::not_supported(&path.child("manualSelector"), true, &["nil", "false"]));
    }
    errs
}

fn row(object: &Value, context: &RowContext) -> Vec<Value> {
    let (spec, status) = (part(object, "spec"), part(object, "status"));
    let job = part(part(spec, "jobTemplate"), "spec");
    let [containers, images] = container_cells(part(job, "template"));
    let suspend = match part(spec, "suspend") {
        Value::Bool(true) => "True",
        Value::Bool(false) => "False",
        _ => "<unset>",
    };
    let last = match text(status, "lastScheduleTime") {
        "" => Value::from("<none>"),
        time => since_cell(time, context),
    };
    vec![
        name_cell(object),
        Value::from(text(spec, "schedule")),
        Value::from(suspend),
        Value::from(items(status, "active").len()),
        last,
        age_cell(object, context),
        containers,
        images,
        selector_cell(part(job, "selector")),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "batch/v1beta1",
        allow_privileged: true,
        gates: &[],
    };

    fn faults(change: impl Fn(&mut Value)) -> Vec<String> {
        let mut object = json!({"metadata": {"name": "hello"}, "spec": {"schedule": "*/1 * * * *", "jobTemplate": {"spec": {
            "template": {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "busybox"}]}}}}}});
        change(&mut object);
        default(&mut object, &CONTEXT);
        (CRON_JOB.validate)(&object, &CONTEXT).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_of_cron_jobs() {
        assert!(faults(|_| {}).is_empty());
        assert_eq!(faults(|o| o["spec"]["schedule"] = json!("")), ["spec.schedule: Required value"]);
        assert_eq!(
            faults(|o| o["spec"]["schedule"] = json!("1 2 3")),
            ["spec.schedule: Invalid value: \"1 2 3\": Expected exactly 5 fields, found 3: 1 2 3"]
        );
        assert_eq!(
            faults(|o| o["spec"]["jobTemplate"]["spec"]["template"]["spec"] = json!({"containers": null})),
            [
                "spec.jobTemplate.spec.template.spec.containers: Required value",
                "spec.jobTemplate.spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ]
        );
        assert_eq!(faults(|o| o["metadata"]["name"] = json!("n".repeat(53))).len(), 1);
        assert_eq!(
            faults(|o| o["spec"]["concurrencyPolicy"] = json!("Wait")),
            [
                "spec.concurrencyPolicy: Unsupported value: \"Wait\": supported values: \"Allow\", \"Forbid\", \"Replace\""
            ]
        );
    }

    #[test]
    fn rows() {
        let object = json!({"metadata": {"name": "c"}, "spec": {"schedule": "@daily", "suspend": false}, "status": {"active": [{}]}});
        let cells = row(&object, &RowContext { now: 0 });
        assert_eq!(cells[1..5], [json!("@daily"), json!("False"), json!(1), json!("<none>")]);
    }
}
