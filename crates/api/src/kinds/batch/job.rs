//! `Job`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::selector::{Selector, validate_label_selector};
use pilothouse_apimachinery::time::{Timestamp, human_duration};
use pilothouse_apimachinery::{go, json};

use crate::kinds::access::{default_to, flag, number, optional, part, present, put, same, take, text};
use crate::kinds::checks::IMMUTABLE;
use crate::kinds::columns::{AGE, NAME, text as column, wide};
use crate::kinds::numbers::all_nonnegative;
use crate::kinds::pod::{Rules, is_today, spec};
use crate::kinds::workloads::template::{
    CONTAINERS_COLUMN, IMAGES_COLUMN, container_cells, default_labels, default_template, drop_disabled,
    template_labels,
};
use crate::kinds::{Column, Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell, selector_cell};

/// Description of the column of a job's selector.
pub(super) const SELECTOR: &str = "A label query over pods that should match the pod count. Normally, the system sets this field for you. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors";

const COLUMNS: &[Column] = &[
    NAME,
    column("Completions", "The number of pods which reached phase Succeeded."),
    column("Duration", "Time required to complete the job."),
    AGE,
    CONTAINERS_COLUMN,
    IMAGES_COLUMN,
    wide("Selector", SELECTOR),
];

pub(super) static JOB: Kind = Kind {
    categories: &["all"],
    subresources: &[STATUS],
    storage_version: "batch/v1",
    has_generation: true,
    generation_since: 22,
    orphans_by_default: |api_version| api_version == "batch/v1",
    default,
    prepare_create,
    prepare_update,
    validate: validate_job,
    validate_update,
    selectable_fields: |job| {
        vec![("status.successful", number(part(job, "status"), "succeeded").to_string())]
    },
    selectable_field_names: &["status.successful"],
    columns: COLUMNS,
    row,
    update_checks: (1, 1),
    ..Kind::new("Job", "jobs", "job", &[Version::always("batch", "v1")])
};

/// The labels that tie pods to their job, by the release: name of the job, and its uid.
struct Labels {
    names: &'static [&'static str],
    uids: &'static [&'static str],
}

fn labels(context: &Context) -> Labels {
    if is_today(context) {
        Labels {
            names: &["batch.kubernetes.io/job-name", "job-name"],
            uids: &["batch.kubernetes.io/controller-uid", "controller-uid"],
        }
    } else {
        Labels { names: &["job-name"], uids: &["controller-uid"] }
    }
}

fn default(job: &mut Value, context: &Context) {
    if let Some(spec) = job.get_mut("spec") {
        if !present(spec, "completions") && !present(spec, "parallelism") {
            put(spec, "completions", 1);
        }
        default_to(spec, "parallelism", 1);
        if is_today(context) {
            default_today(spec);
        }
        default_to(spec, "backoffLimit", 6);
    }
    let labels = template_labels(job).clone();
    if !labels.is_null() {
        default_labels(job, labels);
    }
    default_template(job, context);
}

fn default_today(spec: &mut Value) {
    if present(spec, "backoffLimitPerIndex") {
        default_to(spec, "backoffLimit", i32::MAX);
    }
    default_to(spec, "completionMode", "NonIndexed");
    default_to(spec, "suspend", false);
    default_to(spec, "manualSelector", false);
    let replacement = if present(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    default_to(spec, "podReplacementPolicy", replacement);
    for rule in spec
        .get_mut("podFailurePolicy")
        .map(|p| crate::kinds::access::items_mut(p, "rules"))
        .unwrap_or_default()
    {
        for pattern in crate::kinds::access::items_mut(rule, "onPodConditions") {
            crate::kinds::access::default_text(pattern, "status", "True");
        }
    }
}

fn prepare_create(job: &mut Value, context: &Context) {
    put(job, "status", json!({}));
    without_ttl(job, &Value::Null, context);
    drop_disabled(job, &Value::Null, context);
    if !flag(part(job, "spec"), "manualSelector") {
        generate_selector(job, &labels(context));
    }
    // What is read back from the store has these labels: they are a default.
    let labels = template_labels(job).clone();
    if !labels.is_null() {
        default_labels(job, labels);
    }
}

fn prepare_update(job: &mut Value, old: &Value, context: &Context) {
    if context.subresource == "status" {
        json::copy(job, old, &["spec"]);
        return;
    }
    json::copy(job, old, &["status"]);
    without_ttl(job, old, context);
    drop_disabled(job, old, context);
}

/// In v1.20 the clean-up of finished jobs is off by default, and so is its field.
fn without_ttl(job: &mut Value, old: &Value, context: &Context) {
    const KEY: &str = "ttlSecondsAfterFinished";
    if !is_today(context)
        && !context.gate("TTLAfterFinished")
        && !present(part(old, "spec"), KEY)
        && let Some(spec) = job.get_mut("spec")
    {
        take(spec, KEY);
    }
}

/// Makes the job's selector its uid, and has the template carry it. What the client set stays, for validation to
/// find fault with.
fn generate_selector(job: &mut Value, labels: &Labels) {
    let name = json::str_at(job, &["metadata", "name"]).to_string();
    let uid = json::str_at(job, &["metadata", "uid"]).to_string();
    for label in labels.names {
        json::set_default(job, &["spec", "template", "metadata", "labels", label], name.clone());
    }
    for label in labels.uids {
        json::set_default(job, &["spec", "template", "metadata", "labels", label], uid.clone());
    }
    json::set_default(job, &["spec", "selector", "matchLabels", labels.uids[0]], uid);
}

fn validate_job(job: &Value, context: &Context) -> ErrorList {
    let mut errs = generated_selector(job, &labels(context));
    errs.extend(with_selector(job, &Rules::of(context)));
    errs
}

/// Faults of a selector and labels that are not those the server would have made.
fn generated_selector(job: &Value, labels: &Labels) -> ErrorList {
    let mut errs = ErrorList::new();
    let (spec, meta) = (part(job, "spec"), part(job, "metadata"));
    let manual = part(spec, "manualSelector");
    let selector = part(spec, "selector");
    if manual == &Value::Bool(true) || (manual.is_boolean() && labels.names.len() == 1) || selector.is_null()
    {
        return errs;
    }
    let (name, uid) = (text(meta, "name"), text(meta, "uid"));
    if uid.is_empty() {
        errs.push(field::required(&Path::new("metadata").child("uid"), ""));
    }
    let mut expected = json!({});
    for (keys, value) in [(labels.uids, uid), (labels.names, name)] {
        for key in keys {
            errs.extend(has_label(template_labels(job), key, value));
            put(&mut expected, key, value);
        }
    }
    if Selector::from_label_selector(selector).is_ok_and(|s| !s.matches(&expected)) {
        let shown = go::label_selector(selector);
        errs.push(field::invalid_shown(&Path::new("spec.selector"), &shown, "`selector` not auto-generated"));
    }
    errs
}

fn has_label(labels: &Value, key: &str, expected: &str) -> Option<field::Error> {
    let path = Path::new("spec.template.metadata.labels").key(key);
    let detail = format!("must be '{expected}'");
    match part(labels, key).as_str() {
        None => Some(field::required(&path, &detail)),
        Some(value) if value != expected => {
            Some(field::invalid_shown(&path, &go::string_map(labels), &detail))
        }
        Some(_) => None,
    }
}

fn with_selector(job: &Value, rules: &Rules) -> ErrorList {
    let (spec, path) = (part(job, "spec"), Path::new("spec"));
    let mut errs = job_spec(spec, &path, rules);
    let selector = part(spec, "selector");
    if selector.is_null() {
        errs.push(field::required(&path.child("selector"), ""));
    } else {
        errs.extend(validate_label_selector(selector, &path.child("selector")));
    }
    let labels = template_labels(job);
    if Selector::from_label_selector(selector).is_ok_and(|s| !s.matches(labels)) {
        errs.push(field::invalid_shown(
            &path.child("template").child("metadata").child("labels"),
            &go::string_map(labels),
            "`selector` does not match template `labels`",
        ));
    }
    errs
}

/// Faults of a job's spec, selector aside; templates of jobs have none.
pub(super) fn job_spec(spec: &Value, path: &Path, rules: &Rules) -> ErrorList {
    const NUMBERS: &[&str] =
        &["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"];
    let mut errs = all_nonnegative(spec, NUMBERS, path);
    if rules.today {
        errs.extend(completion_mode(spec, path));
    }
    let (template, path) = (part(spec, "template"), path.child("template"));
    errs.extend(spec::pod_template(template, &path, rules));
    let policy = text(part(template, "spec"), "restartPolicy");
    let path = path.child("spec").child("restartPolicy");
    if !rules.today && matches!(policy, "Always" | "") {
        errs.push(field::required(&path, "valid values: \"OnFailure\", \"Never\""));
    } else if !matches!(policy, "OnFailure" | "Never") {
        errs.push(field::not_supported(&path, policy, &["OnFailure", "Never"]));
    }
    errs
}

fn completion_mode(spec: &Value, path: &Path) -> ErrorList {
    let mode = text(spec, "completionMode");
    match mode {
        "" | "NonIndexed" => ErrorList::new(),
        "Indexed" if present(spec, "completions") => ErrorList::new(),
        "Indexed" => {
            let detail = "when completion mode is Indexed";
            vec![field::required(&path.child("completions"), detail)]
        }
        _ => {
            vec![field::not_supported(&path.child("completionMode"), mode, &["NonIndexed", "Indexed"])]
        }
    }
}

fn validate_update(job: &Value, old: &Value, context: &Context) -> ErrorList {
    let path = Path::new("spec");
    if context.subresource == "status" {
        return all_nonnegative(
            part(job, "status"),
            &["active", "succeeded", "failed"],
            &Path::new("status"),
        );
    }
    let rules = Rules::of(context);
    // Kubernetes checks the new object by itself and again as the outcome of the update.
    let mut errs = validate_job(job, context);
    errs.extend(with_selector(job, &rules));
    let (new, old) = (part(job, "spec"), part(old, "spec"));
    let indexed = rules.today && text(old, "completionMode") == "Indexed";
    for key in ["completions", "selector", "template", "completionMode", "podFailurePolicy"] {
        let (n, o) = (part(new, key), part(old, key));
        if same(n, o) || (key == "completions" && indexed && n == part(new, "parallelism")) {
            continue;
        }
        if key == "template" && rules.today && flag(old, "suspend") && only_scheduling_differs(n, o) {
            continue;
        }
        let shown = match (key, n) {
            (_, Value::Null) => "\"null\"".to_string(),
            ("selector", selector) => go::label_selector(selector),
            (_, value) => value.to_string(),
        };
        errs.push(field::invalid_shown(&path.child(key), &shown, IMMUTABLE));
    }
    errs
}

/// While a job is suspended today, where its pods are to run may still change.
fn only_scheduling_differs(new: &Value, old: &Value) -> bool {
    let strip = |template: &Value| {
        let mut template = template.clone();
        for key in ["affinity", "nodeSelector", "tolerations", "schedulingGates"] {
            json::remove(&mut template, &["spec", key]);
        }
        json::remove(&mut template, &["metadata", "annotations"]);
        json::remove(&mut template, &["metadata", "labels"]);
        template
    };
    same(&strip(new), &strip(old))
}

fn row(job: &Value, context: &RowContext) -> Vec<Value> {
    let (spec, status) = (part(job, "spec"), part(job, "status"));
    let succeeded = number(status, "succeeded");
    let completions = match (optional(spec, "completions"), number(spec, "parallelism")) {
        (Some(n), _) => format!("{succeeded}/{n}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        _ => format!("{succeeded}/1"),
    };
    let time = |key: &str| Timestamp::parse(text(status, key)).ok().map(|t| t.seconds);
    let duration = time("startTime")
        .map_or(String::new(), |start| human_duration(time("completionTime").unwrap_or(context.now) - start));
    let [containers, images] = container_cells(part(spec, "template"));
    vec![
        name_cell(job),
        Value::from(completions),
        Value::from(duration),
        age_cell(job, context),
        containers,
        images,
        selector_cell(part(spec, "selector")),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::{NEWEST, Release};

    use super::*;

    fn context(release: Release) -> Context {
        Context { release, subresource: "", api_version: "batch/v1", allow_privileged: true, gates: &[] }
    }

    fn job(release: Release, change: impl Fn(&mut Value)) -> (Value, Vec<String>) {
        let context = context(release);
        let mut job = json!({"metadata": {"name": "pi", "uid": "u-1"}, "spec": {"ttlSecondsAfterFinished": 3,
            "template": {"metadata": {}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "perl"}]}}}});
        change(&mut job);
        default(&mut job, &context);
        prepare_create(&mut job, &context);
        let errs = validate_job(&job, &context).iter().map(ToString::to_string).collect();
        (job, errs)
    }

    #[test]
    fn the_selector_is_generated() {
        let (j, errs) = job(Release::V1_20, |_| {});
        assert_eq!(errs, Vec::<String>::new());
        assert_eq!(j["spec"]["selector"], json!({"matchLabels": {"controller-uid": "u-1"}}));
        assert_eq!(j["metadata"]["labels"], json!({"controller-uid": "u-1", "job-name": "pi"}));
        assert_eq!((&j["spec"]["completions"], &j["spec"]["backoffLimit"]), (&json!(1), &json!(6)));
        assert!(j["spec"].get("ttlSecondsAfterFinished").is_none());
        let gates = vec!["TTLAfterFinished".to_string()].leak();
        let mut kept = json!({"spec": {"ttlSecondsAfterFinished": 3}});
        without_ttl(&mut kept, &Value::Null, &Context { gates, ..context(Release::V1_20) });
        assert_eq!(kept["spec"]["ttlSecondsAfterFinished"], 3);
        let (j, errs) = job(NEWEST, |_| {});
        assert_eq!(errs, Vec::<String>::new());
        assert_eq!(
            j["spec"]["selector"]["matchLabels"],
            json!({"batch.kubernetes.io/controller-uid": "u-1"})
        );
        assert_eq!(j["spec"]["ttlSecondsAfterFinished"], 3);
    }

    #[test]
    fn a_conflicting_label_is_a_fault() {
        let (_, errs) = job(Release::V1_20, |j| {
            j["spec"]["template"]["metadata"]["labels"] = json!({"controller-uid": "x"});
        });
        assert_eq!(
            errs[0],
            "spec.template.metadata.labels[controller-uid]: Invalid value: map[string]string{\"controller-uid\":\"x\", \"job-name\":\"pi\"}: must be 'u-1'"
        );
    }

    #[test]
    fn restart_policies() {
        let (_, errs) = job(Release::V1_20, |j| j["spec"]["template"]["spec"]["restartPolicy"] = Value::Null);
        assert_eq!(
            errs,
            ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
        );
    }

    #[test]
    fn what_may_change() {
        let context = context(Release::V1_20);
        let (old, _) = job(Release::V1_20, |_| {});
        let mut new = old.clone();
        new["spec"]["parallelism"] = json!(4);
        assert!(validate_update(&new, &old, &context).is_empty());
        new["spec"]["completions"] = json!(4);
        let errs = validate_update(&new, &old, &context);
        assert_eq!(errs[0].to_string(), "spec.completions: Invalid value: 4: field is immutable");
    }

    #[test]
    fn rows() {
        let now = Timestamp::parse("2021-01-01T00:01:40Z").unwrap().seconds;
        let mut j = json!({"metadata": {"name": "j"}, "spec": {"parallelism": 3}, "status": {"startTime": "2021-01-01T00:00:00Z", "succeeded": 1}});
        assert_eq!(row(&j, &RowContext { now })[1..3], [json!("1/1 of 3"), json!("100s")]);
        j["status"]["completionTime"] = json!("2021-01-01T00:00:07Z");
        j["spec"]["completions"] = json!(5);
        assert_eq!(row(&j, &RowContext { now })[1..3], [json!("1/5"), json!("7s")]);
    }
}
