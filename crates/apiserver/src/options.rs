//! `ListOptions`, `CreateOptions` and the like from query parameters, with v1.20's checks and texts.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use crate::request::RequestContext;

/// What a list or watch may be asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Label selector, unparsed.
    pub label_selector: String,
    /// Field selector, unparsed.
    pub field_selector: String,
    /// Whether it is a watch.
    pub watch: bool,
    /// Bookmarks wanted.
    pub bookmarks: bool,
    /// Resource version; `""` and `"0"` have meanings of their own.
    pub resource_version: String,
    /// `Exact`, `NotOlderThan` or nothing.
    pub version_match: String,
    /// Time limit in seconds.
    pub timeout_seconds: Option<i64>,
    /// Page size; 0 for all.
    pub limit: i64,
    /// Where to go on.
    pub continue_token: String,
    /// Initial events wanted, or expressly not.
    pub send_initial_events: Option<bool>,
}

/// Go's conversion of a query value to a boolean: all but `false` and `0` is true.
fn truth(value: &str) -> bool {
    !(value.eq_ignore_ascii_case("false") || value == "0")
}

fn integer(c: &RequestContext, name: &str) -> Result<Option<i64>, Status> {
    let Some(text) = c.param(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|e: std::num::ParseIntError| {
        let why = match e.kind() {
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: {why}"))
    })
}

fn text(c: &RequestContext, name: &str) -> String {
    c.param(name).unwrap_or_default().to_string()
}

fn checked(kind: &str, errors: ErrorList) -> Result<(), Status> {
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", kind, "", &errors)) }
}

impl ListOptions {
    /// Reads and checks the parameters of a list, watch or collection's deletion.
    pub fn read(c: &RequestContext, release: Release) -> Result<ListOptions, Status> {
        let modern = release > Release::V1_20;
        let o = ListOptions {
            label_selector: text(c, "labelSelector"),
            field_selector: text(c, "fieldSelector"),
            watch: c.param("watch").is_some_and(truth) || c.info.verb == "watch",
            bookmarks: c.param("allowWatchBookmarks").is_some_and(truth),
            resource_version: text(c, "resourceVersion"),
            version_match: text(c, "resourceVersionMatch"),
            timeout_seconds: integer(c, "timeoutSeconds")?,
            limit: integer(c, "limit")?.unwrap_or(0).max(0),
            continue_token: text(c, "continue"),
            send_initial_events: c.param("sendInitialEvents").filter(|_| modern).map(truth),
        };
        checked("ListOptions", o.faults(modern))?;
        Ok(o)
    }

    fn faults(&self, modern: bool) -> ErrorList {
        let mut errors = ErrorList::new();
        let path = Path::new("resourceVersionMatch");
        let initial = Path::new("sendInitialEvents");
        if !self.version_match.is_empty() {
            if self.watch && self.send_initial_events.is_none() {
                errors.push(field::forbidden(
                    &path,
                    if modern {
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
                    } else {
                        "resourceVersionMatch is forbidden for watch"
                    },
                ));
            }
            if self.resource_version.is_empty() && self.send_initial_events.is_none() {
                errors.push(field::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            if !self.continue_token.is_empty() {
                errors.push(field::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden when continue is provided",
                ));
            }
            if !matches!(self.version_match.as_str(), "Exact" | "NotOlderThan") {
                errors.push(field::not_supported(
                    &path,
                    self.version_match.as_str(),
                    &["Exact", "NotOlderThan", ""],
                ));
            }
            if self.version_match == "Exact" && self.resource_version == "0" {
                errors.push(field::forbidden(
                    &path,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
        }
        if self.send_initial_events.is_some() {
            if !self.watch {
                errors.push(field::forbidden(&initial, "sendInitialEvents is forbidden for list"));
            } else if self.version_match != "NotOlderThan" {
                errors.push(field::forbidden(
                    &path,
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            if !self.continue_token.is_empty() {
                errors.push(field::forbidden(
                    &initial,
                    "sendInitialEvents is forbidden when continue is provided",
                ));
            }
        }
        errors
    }
}

/// How strictly unknown and duplicate fields of a body are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    /// Not at all.
    Ignore,
    /// With a warning.
    Warn,
    /// They are errors.
    Strict,
}

/// What a create, update or patch may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOptions {
    /// Nothing is to be stored.
    pub dry_run: bool,
    /// Field manager, `""` for the default one.
    pub field_manager: String,
    /// Takes over fields that others manage (apply only).
    pub force: Option<bool>,
    /// Unknown fields.
    pub field_validation: FieldValidation,
}

fn dry_run_faults(values: &[&str]) -> ErrorList {
    let mut errors = ErrorList::new();
    let all_known = values.iter().all(|v| *v == "All");
    if !values.is_empty() && !all_known {
        let shown: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
        let mut error = field::not_supported(&Path::new("dryRun"), "", &["All"]);
        error.body = error.body.replacen("\"\"", &format!("[]string{{{}}}", shown.join(", ")), 1);
        errors.push(error);
    }
    errors
}

fn field_manager_faults(manager: &str) -> ErrorList {
    let path = Path::new("fieldManager");
    let mut errors = ErrorList::new();
    if manager.len() > 128 {
        errors.push(field::too_long(&path, 128));
    }
    for (i, c) in manager.char_indices() {
        if c.is_control() {
            let why = format!("invalid character U+{:04X} (at position {i})", u32::from(c));
            errors.push(field::invalid(&path, manager, &why));
        }
    }
    errors
}

/// The manager of a request that names none: the user agent up to its slash.
pub fn default_manager(user_agent: &str) -> String {
    let agent = user_agent.split('/').next().unwrap_or("");
    let mut end = agent.len().min(128);
    while !agent.is_char_boundary(end) {
        end -= 1;
    }
    let name = &agent[..end];
    if name.is_empty() { "unknown".to_string() } else { name.to_string() }
}

impl WriteOptions {
    /// Reads and checks the parameters of a create (`CreateOptions`), update (`UpdateOptions`) or patch
    /// (`PatchOptions`). `apply` is `None` unless it is a patch.
    pub fn read(
        c: &RequestContext,
        kind: &str,
        apply: Option<bool>,
        release: Release,
    ) -> Result<WriteOptions, Status> {
        let mut errors = ErrorList::new();
        let field_manager = text(c, "fieldManager");
        let force = c.param("force").filter(|_| apply.is_some()).map(truth);
        match apply {
            Some(false) if force.is_some() => {
                errors
                    .push(field::forbidden(&Path::new("force"), "may not be specified for non-apply patch"));
            }
            Some(true) if field_manager.is_empty() => {
                errors.push(field::required(&Path::new("fieldManager"), "is required for apply patch"));
            }
            _ => {}
        }
        errors.extend(field_manager_faults(&field_manager));
        let dry: Vec<&str> = c.params("dryRun").collect();
        errors.extend(dry_run_faults(&dry));
        let field_validation = match c.param("fieldValidation").unwrap_or("") {
            _ if release == Release::V1_20 => FieldValidation::Ignore,
            "Ignore" => FieldValidation::Ignore,
            "" | "Warn" => FieldValidation::Warn,
            "Strict" => FieldValidation::Strict,
            other => {
                errors.push(field::not_supported(
                    &Path::new("fieldValidation"),
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                ));
                FieldValidation::Ignore
            }
        };
        checked(kind, errors)?;
        Ok(WriteOptions { dry_run: !dry.is_empty(), field_manager, force, field_validation })
    }

    /// The manager that changes are booked on.
    pub fn manager(&self, user_agent: &str) -> String {
        if self.field_manager.is_empty() { default_manager(user_agent) } else { self.field_manager.clone() }
    }

    /// As admission sees them.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut v = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            v["dryRun"] = json!(["All"]);
        }
        if !self.field_manager.is_empty() {
            v["fieldManager"] = json!(self.field_manager);
        }
        if let Some(force) = self.force {
            v["force"] = json!(force);
        }
        v
    }
}

/// What a deletion may be asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds until the end; `None` for the kind's default.
    pub grace_period: Option<i64>,
    /// `Orphan`, `Background`, `Foreground` or nothing.
    pub propagation: Option<String>,
    /// The older way to say `Orphan`.
    pub orphan_dependents: Option<bool>,
    /// Uid that the object must have.
    pub uid: Option<String>,
    /// Resource version that the object must have.
    pub resource_version: Option<String>,
    /// Nothing is to be stored.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads and checks a `DeleteOptions` object, as it comes in a body.
    pub fn from_value(v: &Value) -> Result<DeleteOptions, Status> {
        let string = |path: &str| v.pointer(path).and_then(Value::as_str).map(String::from);
        let dry: Vec<&str> = v
            .get("dryRun")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let o = DeleteOptions {
            grace_period: v.get("gracePeriodSeconds").and_then(Value::as_i64),
            propagation: string("/propagationPolicy"),
            orphan_dependents: v.get("orphanDependents").and_then(Value::as_bool),
            uid: string("/preconditions/uid"),
            resource_version: string("/preconditions/resourceVersion"),
            dry_run: !dry.is_empty(),
        };
        o.check(&dry)
    }

    /// Reads and checks query parameters, for deletions without a body.
    pub fn from_query(c: &RequestContext) -> Result<DeleteOptions, Status> {
        let dry: Vec<&str> = c.params("dryRun").collect();
        let o = DeleteOptions {
            grace_period: integer(c, "gracePeriodSeconds")?,
            propagation: c.param("propagationPolicy").map(String::from),
            orphan_dependents: c.param("orphanDependents").map(truth),
            uid: None,
            resource_version: None,
            dry_run: !dry.is_empty(),
        };
        o.check(&dry)
    }

    fn check(self, dry: &[&str]) -> Result<DeleteOptions, Status> {
        let path = Path::new("propagationPolicy");
        let mut errors = ErrorList::new();
        if let Some(policy) = &self.propagation {
            if self.orphan_dependents.is_some() {
                errors.push(field::invalid(
                    &path,
                    policy.as_str(),
                    "orphanDependents and deletionPropagation cannot be both set",
                ));
            }
            if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
                errors.push(field::not_supported(
                    &path,
                    policy.as_str(),
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
            }
        }
        errors.extend(dry_run_faults(dry));
        checked("DeleteOptions", errors)?;
        Ok(self)
    }

    /// As admission sees them.
    pub fn to_value(&self) -> Value {
        let mut v = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(s) = self.grace_period {
            v["gracePeriodSeconds"] = json!(s);
        }
        if let Some(p) = &self.propagation {
            v["propagationPolicy"] = json!(p);
        }
        if let Some(o) = self.orphan_dependents {
            v["orphanDependents"] = json!(o);
        }
        if self.uid.is_some() || self.resource_version.is_some() {
            let mut p = json!({});
            if let Some(u) = &self.uid {
                p["uid"] = json!(u);
            }
            if let Some(r) = &self.resource_version {
                p["resourceVersion"] = json!(r);
            }
            v["preconditions"] = p;
        }
        if self.dry_run {
            v["dryRun"] = json!(["All"]);
        }
        v
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(query: &str, release: Release) -> Result<ListOptions, Status> {
        ListOptions::read(&RequestContext::for_test("GET", &format!("/api/v1/pods?{query}")), release)
    }

    #[test]
    fn list_options() {
        let o =
            list("watch=1&limit=5&resourceVersion=0&labelSelector=a%3Db&timeoutSeconds=3", Release::V1_20)
                .unwrap();
        assert!(o.watch && o.limit == 5 && o.label_selector == "a=b" && o.timeout_seconds == Some(3));
        assert_eq!(
            list("limit=x", Release::V1_20).unwrap_err().message,
            "strconv.ParseInt: parsing \"x\": invalid syntax"
        );
        for bad in [
            "resourceVersionMatch=Exact",
            "resourceVersionMatch=Exact&resourceVersion=0",
            "resourceVersionMatch=Odd&resourceVersion=1",
            "resourceVersionMatch=Exact&resourceVersion=1&watch=true",
            "resourceVersionMatch=Exact&resourceVersion=1&continue=x",
        ] {
            assert_eq!(list(bad, Release::V1_20).unwrap_err().code, 422, "{bad}");
        }
        let newest = pilothouse_apimachinery::version::NEWEST;
        assert!(list("watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", newest).is_ok());
        assert!(list("watch=1&sendInitialEvents=true", newest).is_err());
        assert!(list("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", newest).is_err());
        assert!(
            list("watch=1&sendInitialEvents=true", Release::V1_20).unwrap().send_initial_events.is_none()
        );
    }

    #[test]
    fn write_options() {
        let read = |query: &str, kind: &str, apply| {
            let c = RequestContext::for_test("POST", &format!("/api/v1/pods?{query}"));
            WriteOptions::read(&c, kind, apply, Release::V1_20)
        };
        assert!(read("dryRun=All", "CreateOptions", None).unwrap().dry_run);
        assert_eq!(
            read("dryRun=Some", "CreateOptions", None).unwrap_err().message,
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: []string{\"Some\"}: supported values: \"All\""
        );
        assert!(
            read("", "PatchOptions", Some(true)).unwrap_err().message.contains("is required for apply patch")
        );
        assert!(read("force=true", "PatchOptions", Some(false)).is_err());
        assert!(read(&format!("fieldManager={}", "x".repeat(129)), "UpdateOptions", None).is_err());
        assert_eq!(default_manager("kubectl/v1.20 (linux)"), "kubectl");
    }

    #[test]
    fn delete_options() {
        assert!(DeleteOptions::from_value(&json!({"propagationPolicy": "Odd"})).is_err());
        assert!(
            DeleteOptions::from_value(&json!({"propagationPolicy": "Orphan", "orphanDependents": true}))
                .is_err()
        );
        let o = DeleteOptions::from_value(&json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}}))
            .unwrap();
        assert_eq!((o.grace_period, o.uid.as_deref()), (Some(0), Some("u")));
    }
}
