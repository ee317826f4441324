//! The operations on resources, apart from how a version of OpenAPI writes them.

use pilothouse_apimachinery::json::{Value, json};

use super::definitions::{PATCH, kind_name, list_name_of, meta_name, name_of};
use super::{Resource, Subresource};
use pilothouse_apimachinery::version::Release;

/// Where a parameter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Query,
    Path,
}

/// A parameter that is no body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) place: Place,
    pub(super) type_: &'static str,
}

const fn query(name: &'static str, type_: &'static str) -> Parameter {
    Parameter { name, place: Place::Query, type_ }
}

const PRETTY: Parameter = query("pretty", "string");
const DRY_RUN: Parameter = query("dryRun", "string");
const FIELD_MANAGER: Parameter = query("fieldManager", "string");
const FIELD_VALIDATION: Parameter = query("fieldValidation", "string");
const FORCE: Parameter = query("force", "boolean");
const NAME: Parameter = Parameter { name: "name", place: Place::Path, type_: "string" };
const NAMESPACE: Parameter = Parameter { name: "namespace", place: Place::Path, type_: "string" };

const LIST: &[Parameter] = &[
    query("allowWatchBookmarks", "boolean"),
    query("continue", "string"),
    query("fieldSelector", "string"),
    query("labelSelector", "string"),
    query("limit", "integer"),
    query("resourceVersion", "string"),
    query("resourceVersionMatch", "string"),
    query("timeoutSeconds", "integer"),
    query("watch", "boolean"),
];

const DELETE: &[Parameter] = &[
    DRY_RUN,
    query("gracePeriodSeconds", "integer"),
    query("orphanDependents", "boolean"),
    query("propagationPolicy", "string"),
];

/// One operation.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    /// `get`, `post`, …
    pub(super) method: &'static str,
    /// `list`, `watchlist`, `connect`, …
    pub(super) action: &'static str,
    /// `listCoreV1NamespacedPod`.
    pub(super) id: String,
    /// `core_v1`.
    pub(super) tag: String,
    pub(super) parameters: Vec<Parameter>,
    /// Definition of the body, and whether there must be one.
    pub(super) body: Option<(String, bool)>,
    pub(super) consumes: Vec<&'static str>,
    /// Status codes and definitions of answers.
    pub(super) responses: Vec<(u16, String)>,
    /// Group, version and kind.
    pub(super) gvk: Value,
}

/// A path with its operations and the parameters that they share.
#[derive(Debug, Clone)]
pub(super) struct PathItem {
    pub(super) path: String,
    pub(super) parameters: Vec<Parameter>,
    pub(super) operations: Vec<Operation>,
}

/// Media types of answers.
pub(super) const PRODUCES: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// `core`, `apps`, `rbacAuthorization`: a group as tags and operation ids name it.
fn group_word(group: &str) -> String {
    if group.is_empty() {
        return "core".into();
    }
    let trimmed = group.strip_suffix(".k8s.io").unwrap_or(group);
    let mut parts = trimmed.split('.');
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |word, part| word + &title(part))
}

struct Builder<'r> {
    release: Release,
    resource: &'r Resource,
    prefix: String,
    group: String,
    tag: String,
}

/// All paths of a resource.
pub(super) fn of(release: Release, resource: &Resource) -> Vec<PathItem> {
    let group = group_word(&resource.group);
    Builder {
        release,
        resource,
        prefix: format!("/{}", super::group_version_path(&resource.group, &resource.version)),
        tag: format!("{group}_{}", resource.version),
        group: title(&group),
    }
    .build()
}

impl Builder<'_> {
    fn build(&self) -> Vec<PathItem> {
        let r = self.resource;
        let scope = if r.namespaced { "namespaces/{namespace}/" } else { "" };
        let shared = || if r.namespaced { vec![NAMESPACE, PRETTY] } else { vec![PRETTY] };
        let mut out = Vec::new();
        if r.namespaced && self.has("list") {
            let mut parameters = LIST.to_vec();
            parameters.push(PRETTY);
            let suffix = format!("{}ForAllNamespaces", r.kind);
            let mut operation = self.operation("get", "list", "list", &suffix, vec![], &list_name_of(r));
            operation.id = format!("list{}{}{suffix}", self.group, title(&r.version));
            out.push(PathItem {
                path: format!("{}/{}", self.prefix, r.plural),
                parameters,
                operations: vec![operation],
            });
        }
        let collection = self.collection();
        if !collection.is_empty() {
            let path = format!("{}/{scope}{}", self.prefix, r.plural);
            out.push(PathItem { path, parameters: shared(), operations: collection });
        }
        let mut object_parameters = vec![NAME];
        object_parameters.extend(shared());
        let path = format!("{}/{scope}{}/{{name}}", self.prefix, r.plural);
        let single = self.single();
        if !single.is_empty() {
            out.push(PathItem {
                path: path.clone(),
                parameters: object_parameters.clone(),
                operations: single,
            });
        }
        for subresource in &r.subresources {
            let operations = self.subresource(subresource);
            if !operations.is_empty() {
                let path = format!("{path}/{}", subresource.name);
                out.push(PathItem { path, parameters: object_parameters.clone(), operations });
            }
        }
        out
    }

    fn has(&self, verb: &str) -> bool {
        self.resource.verbs.iter().any(|v| v == verb)
    }

    /// What writes take beside their body.
    fn write_parameters(&self) -> Vec<Parameter> {
        let mut out = vec![DRY_RUN, FIELD_MANAGER];
        if self.release != Release::V1_20 {
            out.push(FIELD_VALIDATION);
        }
        out
    }

    fn operation(
        &self,
        method: &'static str,
        action: &'static str,
        verb: &str,
        suffix: &str,
        parameters: Vec<Parameter>,
        answer: &str,
    ) -> Operation {
        let r = self.resource;
        let namespaced = if r.namespaced { "Namespaced" } else { "" };
        Operation {
            method,
            action,
            id: format!("{verb}{}{}{namespaced}{suffix}", self.group, title(&r.version)),
            tag: self.tag.clone(),
            parameters,
            body: None,
            consumes: vec!["*/*"],
            responses: vec![(200, answer.to_string())],
            gvk: json!({"group": r.group, "kind": r.kind, "version": r.version}),
        }
    }

    fn with_body(mut operation: Operation, body: &str, required: bool) -> Operation {
        operation.body = Some((body.to_string(), required));
        operation
    }

    fn patch(&self, suffix: &str, answer: &str) -> Operation {
        let mut parameters = self.write_parameters();
        parameters.push(FORCE);
        let mut operation = self.operation("patch", "patch", "patch", suffix, parameters, answer);
        operation.consumes = vec!["application/json-patch+json", "application/merge-patch+json"];
        if self.resource.custom.is_none() {
            operation.consumes.push("application/strategic-merge-patch+json");
        }
        operation.consumes.push("application/apply-patch+yaml");
        if self.release != Release::V1_20 {
            operation.responses.push((201, answer.to_string()));
        }
        Self::with_body(operation, PATCH, true)
    }

    fn collection(&self) -> Vec<Operation> {
        let r = self.resource;
        let own = name_of(r);
        let mut out = Vec::new();
        if self.has("list") {
            out.push(self.operation("get", "list", "list", &r.kind, LIST.to_vec(), &list_name_of(r)));
        }
        if self.has("create") {
            let mut operation =
                self.operation("post", "post", "create", &r.kind, self.write_parameters(), &own);
            operation.responses.extend([(201, own.clone()), (202, own.clone())]);
            out.push(Self::with_body(operation, &own, true));
        }
        if self.has("deletecollection") {
            let mut parameters = DELETE.to_vec();
            parameters.extend(LIST.iter().filter(|p| p.name != "watch" && p.name != "allowWatchBookmarks"));
            let suffix = format!("Collection{}{}", if r.namespaced { "Namespaced" } else { "" }, r.kind);
            let answer = meta_name("Status");
            let mut operation =
                self.operation("delete", "deletecollection", "delete", &suffix, parameters, &answer);
            operation.id = format!("delete{}{}{suffix}", self.group, title(&r.version));
            out.push(Self::with_body(operation, &meta_name("DeleteOptions"), false));
        }
        out
    }

    fn single(&self) -> Vec<Operation> {
        let r = self.resource;
        let own = name_of(r);
        let mut out = Vec::new();
        if self.has("get") {
            out.push(self.operation("get", "get", "read", &r.kind, vec![], &own));
        }
        if self.has("update") {
            let mut operation =
                self.operation("put", "put", "replace", &r.kind, self.write_parameters(), &own);
            operation.responses.push((201, own.clone()));
            out.push(Self::with_body(operation, &own, true));
        }
        if self.has("delete") {
            let answer = meta_name("Status");
            let mut operation =
                self.operation("delete", "delete", "delete", &r.kind, DELETE.to_vec(), &answer);
            operation.responses.push((202, answer));
            out.push(Self::with_body(operation, &meta_name("DeleteOptions"), false));
        }
        if self.has("patch") {
            out.push(self.patch(&r.kind, &own));
        }
        out
    }

    fn subresource(&self, subresource: &Subresource) -> Vec<Operation> {
        let r = self.resource;
        let name = match &subresource.gvk {
            Some((group, version, kind)) => kind_name(group, version, kind),
            None => name_of(r),
        };
        let gvk = match &subresource.gvk {
            Some((group, version, kind)) => json!({"group": group, "kind": kind, "version": version}),
            None => json!({"group": r.group, "kind": r.kind, "version": r.version}),
        };
        let suffix = format!("{}{}", r.kind, title(&subresource.name));
        let streams = ["attach", "exec", "portforward", "proxy"].contains(&subresource.name.as_str());
        let mut out = Vec::new();
        for verb in &subresource.verbs {
            let operation = match verb.as_str() {
                "get" if streams => self.operation("get", "connect", "connectGet", &suffix, vec![], ""),
                "create" if streams => self.operation("post", "connect", "connectPost", &suffix, vec![], ""),
                "get" if subresource.name == "log" => {
                    self.operation("get", "get", "read", &suffix, vec![], "")
                }
                "get" => self.operation("get", "get", "read", &suffix, vec![], &name),
                "create" => {
                    let mut o =
                        self.operation("post", "post", "create", &suffix, self.write_parameters(), &name);
                    o.responses.extend([(201, name.clone()), (202, name.clone())]);
                    Self::with_body(o, &name, true)
                }
                "update" => {
                    let mut o =
                        self.operation("put", "put", "replace", &suffix, self.write_parameters(), &name);
                    o.responses.push((201, name.clone()));
                    Self::with_body(o, &name, true)
                }
                "patch" => self.patch(&suffix, &name),
                _ => continue,
            };
            out.push(Operation { gvk: gvk.clone(), ..operation });
        }
        // Discovery's order of verbs is not that of methods.
        out.sort_by_key(|o| ["get", "put", "post", "delete", "patch"].iter().position(|m| *m == o.method));
        out
    }
}
