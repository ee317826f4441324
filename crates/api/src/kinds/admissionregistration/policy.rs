//! Admission policies in CEL, of releases after v1.20.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Value, copy, get, has, json, list_at, list_mut, set, set_default, str_at,
};

use super::GROUP;
use super::expressions::{self, Environment, Gives};
use crate::kinds::columns::{AGE, NAME, integer, text};
use crate::kinds::{Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell, or_unset};

const VERSIONS: &[Version] = &[Version::newer(GROUP, "v1"), Version::newer(GROUP, "v1beta1")];

const BASE: Kind = Kind {
    namespaced: false,
    categories: &["api-extensions"],
    has_generation: true,
    allow_unconditional_update: false,
    storage_version: "admissionregistration.k8s.io/v1",
    ..Kind::new("", "", "", VERSIONS)
};

/// `ValidatingAdmissionPolicy`.
pub(super) static VALIDATING_ADMISSION_POLICY: Kind = Kind {
    kind: "ValidatingAdmissionPolicy",
    plural: "validatingadmissionpolicies",
    singular: "validatingadmissionpolicy",
    storage_prefix: "validatingadmissionpolicies",
    subresources: &[STATUS],
    default: default_policy,
    prepare_create: |policy, _| set(policy, &["status"], json!({})),
    prepare_update: |new, old, context| {
        copy(new, old, if context.subresource == "status" { &["spec"] } else { &["status"] });
    },
    validate: |policy, _| {
        let mut errs = policy_faults(policy);
        let path = Path::new("spec");
        let none = |name: &str| list_at(policy, &["spec", name]).is_empty();
        if none("validations") && none("auditAnnotations") {
            let why = "validations or auditAnnotations must be provided";
            errs.push(field::required(&path.child("validations"), why));
            errs.push(field::required(&path.child("auditAnnotations"), why));
        }
        errs.extend(expression_faults(policy));
        errs
    },
    validate_update: |new, _, context| (VALIDATING_ADMISSION_POLICY.validate)(new, context),
    columns: &[
        NAME,
        integer(
            "Validations",
            "Validations indicates the number of validation rules defined in this configuration",
        ),
        text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
        AGE,
    ],
    row: |policy: &Value, context: &RowContext| {
        vec![
            name_cell(policy),
            list_at(policy, &["spec", "validations"]).len().into(),
            param_kind(policy),
            age_cell(policy, context),
        ]
    },
    ..BASE
};

/// `ValidatingAdmissionPolicyBinding`.
pub(super) static VALIDATING_ADMISSION_POLICY_BINDING: Kind = Kind {
    kind: "ValidatingAdmissionPolicyBinding",
    plural: "validatingadmissionpolicybindings",
    singular: "validatingadmissionpolicybinding",
    storage_prefix: "validatingadmissionpolicybindings",
    default: default_match,
    validate: |binding, _| {
        let mut errs = binding_faults(binding);
        if list_at(binding, &["spec", "validationActions"]).is_empty() {
            errs.push(field::required(&Path::new("spec.validationActions"), ""));
        }
        errs
    },
    validate_update: |new, _, context| (VALIDATING_ADMISSION_POLICY_BINDING.validate)(new, context),
    columns: BINDING_COLUMNS,
    row: binding_row,
    ..BASE
};

/// `MutatingAdmissionPolicy`.
pub(super) static MUTATING_ADMISSION_POLICY: Kind = Kind {
    kind: "MutatingAdmissionPolicy",
    plural: "mutatingadmissionpolicies",
    singular: "mutatingadmissionpolicy",
    storage_prefix: "mutatingadmissionpolicies",
    default: default_policy,
    validate: |policy, _| {
        let mut errs = policy_faults(policy);
        if list_at(policy, &["spec", "mutations"]).is_empty() {
            errs.push(field::required(
                &Path::new("spec.mutations"),
                "mutations must contain at least one item",
            ));
        }
        errs.extend(mutation_faults(policy));
        if str_at(policy, &["spec", "reinvocationPolicy"]).is_empty() {
            errs.push(field::required(&Path::new("spec.reinvocationPolicy"), ""));
        }
        errs
    },
    validate_update: |new, _, context| (MUTATING_ADMISSION_POLICY.validate)(new, context),
    columns: &[
        NAME,
        integer(
            "Mutations",
            "Mutation indicates the number of mutations rules defined in this configuration",
        ),
        text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
        AGE,
    ],
    row: |policy: &Value, context: &RowContext| {
        vec![
            name_cell(policy),
            list_at(policy, &["spec", "mutations"]).len().into(),
            param_kind(policy),
            age_cell(policy, context),
        ]
    },
    ..BASE
};

/// `MutatingAdmissionPolicyBinding`.
pub(super) static MUTATING_ADMISSION_POLICY_BINDING: Kind = Kind {
    kind: "MutatingAdmissionPolicyBinding",
    plural: "mutatingadmissionpolicybindings",
    singular: "mutatingadmissionpolicybinding",
    storage_prefix: "mutatingadmissionpolicybindings",
    default: default_match,
    validate: |binding, _| binding_faults(binding),
    validate_update: |new, _, _| binding_faults(new),
    columns: BINDING_COLUMNS,
    row: binding_row,
    ..BASE
};

/// Faults of the expressions of a validating policy.
fn expression_faults(policy: &Value) -> ErrorList {
    let (environment, mut errs) = expressions::of_policy(policy, false);
    let path = Path::new("spec");
    errs.extend(match_condition_faults(policy, &environment));
    for (i, v) in list_at(policy, &["spec", "validations"]).iter().enumerate() {
        let at = path.child("validations").index(i);
        let text = |name: &str| str_at(v, &[name]);
        let expression = text("expression");
        if expression.trim().is_empty() {
            errs.push(field::required(&at.child("expression"), "expression is not specified"));
        } else {
            errs.extend(environment.fault(expression, Gives::Bool, &at.child("expression")));
        }
        let breaks = |text: &str| text.trim().contains(['\n', '\r']);
        if !text("messageExpression").is_empty() {
            let at = at.child("messageExpression");
            if text("messageExpression").trim().is_empty() {
                errs.push(field::invalid(&at, text("messageExpression"), "must be non-empty if specified"));
            } else {
                let without = Environment { authorizer: false, ..environment.clone() };
                errs.extend(without.fault(text("messageExpression"), Gives::Text, &at));
            }
        }
        if !text("message").is_empty() && text("message").trim().is_empty() {
            errs.push(field::invalid(
                &at.child("message"),
                text("message"),
                "message must be non-empty if specified",
            ));
        } else if breaks(text("message")) {
            errs.push(field::invalid(
                &at.child("message"),
                text("message"),
                "message must not contain line breaks",
            ));
        } else if breaks(expression) && text("message").is_empty() {
            let why = "message must be specified if expression contains line breaks";
            errs.push(field::required(&at.child("message"), why));
        }
        let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
        if !text("reason").is_empty() && !reasons.contains(&text("reason")) {
            errs.push(field::not_supported(&at.child("reason"), text("reason"), &reasons));
        }
    }
    for (i, annotation) in list_at(policy, &["spec", "auditAnnotations"]).iter().enumerate() {
        let at = path.child("auditAnnotations").index(i);
        if str_at(annotation, &["key"]).is_empty() {
            errs.push(field::required(&at.child("key"), ""));
        }
        let expression = str_at(annotation, &["valueExpression"]);
        if expression.trim().is_empty() {
            errs.push(field::required(&at.child("valueExpression"), "valueExpression is not specified"));
        } else {
            errs.extend(environment.fault(expression, Gives::TextOrNull, &at.child("valueExpression")));
        }
    }
    errs
}

/// Faults of the expressions of a mutating policy.
fn mutation_faults(policy: &Value) -> ErrorList {
    let (environment, mut errs) = expressions::of_policy(policy, true);
    errs.extend(match_condition_faults(policy, &environment));
    for (i, mutation) in list_at(policy, &["spec", "mutations"]).iter().enumerate() {
        let at = Path::new("spec").child("mutations").index(i);
        let kinds = ["ApplyConfiguration", "JSONPatch"];
        let kind = str_at(mutation, &["patchType"]);
        let holder = match kind {
            "" => {
                errs.push(field::required(&at.child("patchType"), ""));
                continue;
            }
            "ApplyConfiguration" => "applyConfiguration",
            "JSONPatch" => "jsonPatch",
            other => {
                errs.push(field::not_supported(&at.child("patchType"), other, &kinds));
                continue;
            }
        };
        let expression = str_at(mutation, &[holder, "expression"]);
        let at = at.child(holder);
        if !has(mutation, &[holder]) {
            let why = format!("must be specified when patchType is {kind}");
            errs.push(field::required(&at, &why));
        } else if expression.trim().is_empty() {
            errs.push(field::required(&at.child("expression"), "expression is not specified"));
        } else {
            errs.extend(environment.fault(expression, Gives::Any, &at.child("expression")));
        }
    }
    errs
}

fn match_condition_faults(policy: &Value, environment: &Environment) -> ErrorList {
    let plain =
        Environment { variables: Vec::new(), namespace: false, patches: false, ..environment.clone() };
    let conditions = list_at(policy, &["spec", "matchConditions"]);
    expressions::condition_faults(conditions, &plain, &Path::new("spec").child("matchConditions"))
}

const BINDING_COLUMNS: &[crate::kinds::Column] = &[
    NAME,
    text("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
    text("ParamRef", "ParamRef indicates the param resource which sets the configration param"),
    AGE,
];

fn param_kind(policy: &Value) -> Value {
    match get(policy, &["spec", "paramKind"]) {
        Value::Null => or_unset(""),
        kind => format!("{}/{}", str_at(kind, &["apiVersion"]), str_at(kind, &["kind"])).into(),
    }
}

fn binding_row(binding: &Value, context: &RowContext) -> Vec<Value> {
    let reference = get(binding, &["spec", "paramRef"]);
    let param = if reference.is_null() {
        or_unset("")
    } else {
        let (namespace, name) = (str_at(reference, &["namespace"]), str_at(reference, &["name"]));
        if namespace.is_empty() { or_unset(name) } else { format!("{namespace}/{name}").into() }
    };
    vec![
        name_cell(binding),
        str_at(binding, &["spec", "policyName"]).into(),
        param,
        age_cell(binding, context),
    ]
}

fn default_policy(policy: &mut Value, _context: &Context) {
    set_default(policy, &["spec", "failurePolicy"], "Fail");
    default_resources(policy, "matchConstraints");
}

fn default_match(binding: &mut Value, _context: &Context) {
    default_resources(binding, "matchResources");
    if has(binding, &["spec", "paramRef"]) {
        set_default(binding, &["spec", "paramRef", "parameterNotFoundAction"], "Deny");
    }
}

fn default_resources(object: &mut Value, name: &str) {
    let Some(resources) = object.get_mut("spec").and_then(|s| s.get_mut(name)).filter(|r| r.is_object())
    else {
        return;
    };
    set_default(resources, &["matchPolicy"], "Equivalent");
    set_default(resources, &["namespaceSelector"], json!({}));
    set_default(resources, &["objectSelector"], json!({}));
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in list_mut(resources, &[list]) {
            set_default(rule, &["scope"], "*");
        }
    }
}

fn policy_faults(policy: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let policy_name = str_at(policy, &["spec", "failurePolicy"]);
    if !["Fail", "Ignore"].contains(&policy_name) {
        errs.push(field::not_supported(&path.child("failurePolicy"), policy_name, &["Fail", "Ignore"]));
    }
    if list_at(policy, &["spec", "matchConstraints", "resourceRules"]).is_empty() {
        let at = path.child("matchConstraints");
        if has(policy, &["spec", "matchConstraints"]) {
            errs.push(field::required(&at.child("resourceRules"), ""));
        } else {
            errs.push(field::required(&at, ""));
        }
    }
    errs
}

fn binding_faults(binding: &Value) -> ErrorList {
    if str_at(binding, &["spec", "policyName"]).is_empty() {
        vec![field::required(&Path::new("spec.policyName"), "")]
    } else {
        ErrorList::new()
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;

    #[test]
    fn policies() {
        let context = Context {
            release: NEWEST,
            subresource: "",
            api_version: "admissionregistration.k8s.io/v1",
            allow_privileged: true,
            gates: &[],
        };
        let mut policy = json!({"spec": {"matchConstraints": {"resourceRules": [{"resources": ["pods"]}]}, "validations": [{"expression": "true"}]}});
        default_policy(&mut policy, &context);
        assert_eq!(policy["spec"]["matchConstraints"]["resourceRules"][0]["scope"], "*");
        assert!((VALIDATING_ADMISSION_POLICY.validate)(&policy, &context).is_empty());
        assert_eq!((VALIDATING_ADMISSION_POLICY_BINDING.validate)(&json!({"spec": {}}), &context).len(), 2);
    }
}
