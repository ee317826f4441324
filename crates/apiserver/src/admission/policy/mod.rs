//! Admission policies: requests are held against expressions, and changed by them
//! (<https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>,
//! <https://kubernetes.io/docs/reference/access-authn-authz/mutating-admission-policy/>).

pub mod mutating;
pub mod params;
pub mod validating;

use std::sync::Arc;

use pilothouse_api::kinds::admissionregistration::expressions::{Environment, Gives, of_policy};
use pilothouse_apimachinery::json::Value;
use pilothouse_cel::Program;

use super::expressions::{Asked, Input, Programs, conditions_hold};
use super::webhook::rules::{self, GroupVersion};
use super::webhook::{GROUP, Webhooks};
use crate::json::{get, list_at, str_at};
use crate::request::{AdmissionRequest, Authorizer, Objects};

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// What both plug-ins need.
pub struct Policies {
    /// Knows versions of objects.
    pub webhooks: Arc<Webhooks>,
    /// Is asked by expressions.
    pub authorizer: Arc<dyn Authorizer>,
    /// Compiled expressions.
    pub programs: Programs,
}

/// A policy that is to look at a request, with a binding and a parameter.
struct Invocation {
    policy: Arc<Value>,
    binding: Arc<Value>,
    param: Value,
    /// In which version it sees the object.
    seen: GroupVersion,
}

/// A policy or a binding that cannot be used as it is.
struct Misconfigured {
    policy: Arc<Value>,
    binding: Arc<Value>,
    why: String,
}

/// Policies are not asked about policies.
fn concerns(r: &AdmissionRequest) -> bool {
    let own = [
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
        "mutatingadmissionpolicies",
        "mutatingadmissionpolicybindings",
    ];
    !(r.group == GROUP && own.contains(&r.resource.as_str()))
}

/// The group and version in which `resources` (`matchConstraints` or `matchResources`) want a request.
fn matched(
    resources: &Value,
    r: &AdmissionRequest,
    others: &[GroupVersion],
    objects: &dyn Objects,
) -> Option<GroupVersion> {
    let own = || GroupVersion { group: r.group.clone(), version: r.version.clone() };
    if !resources.is_object() {
        return Some(own());
    }
    let policy = str_at(resources, &["matchPolicy"]);
    if rules::version_of(list_at(resources, &["excludeResourceRules"]), policy, r, others).is_some()
        || !rules::selected(resources, r, objects)
    {
        return None;
    }
    match list_at(resources, &["resourceRules"]) {
        [] => Some(own()),
        wanted => rules::version_of(wanted, policy, r, others),
    }
}

/// A policy's environment, and its variables compiled.
struct Compiled {
    environment: Environment,
    variables: Vec<(String, Arc<Result<Program, String>>)>,
}

fn by_name(all: &mut [Arc<Value>]) {
    all.sort_by(|a, b| str_at(a, &["metadata", "name"]).cmp(str_at(b, &["metadata", "name"])));
}

impl Policies {
    fn compiled(&self, policy: &Value, patches: bool) -> Compiled {
        let (environment, _) = of_policy(policy, patches);
        let mut variables = Vec::new();
        for (i, v) in list_at(policy, &["spec", "variables"]).iter().enumerate() {
            // A variable knows those before it.
            let mut before = environment.clone();
            before.variables.truncate(i);
            let program = self.programs.get(str_at(v, &["expression"]), &before, Gives::Any);
            variables.push((str_at(v, &["name"]).to_string(), program));
        }
        Compiled { environment, variables }
    }

    /// The policies of a resource (`validatingadmissionpolicies`) that are to look at a request, through its bindings.
    async fn invocations(
        &self,
        policies: &str,
        bindings: &str,
        r: &AdmissionRequest,
        objects: &dyn Objects,
    ) -> (Vec<Invocation>, Vec<Misconfigured>) {
        let (mut found, mut faults) = (Vec::new(), Vec::new());
        if objects.revision(GROUP, bindings) == 0 || !concerns(r) {
            return (found, faults);
        }
        let mut bindings = objects.list(GROUP, bindings, "");
        if bindings.is_empty() {
            return (found, faults);
        }
        by_name(&mut bindings);
        let mut policies = objects.list(GROUP, policies, "");
        by_name(&mut policies);
        let others = self.webhooks.others(r);
        for policy in &policies {
            let constraints = get(policy, &["spec", "matchConstraints"]);
            let name = str_at(policy, &["metadata", "name"]);
            let Some(seen) = matched(constraints, r, &others, objects) else { continue };
            for binding in bindings.iter().filter(|b| str_at(b, &["spec", "policyName"]) == name) {
                if matched(get(binding, &["spec", "matchResources"]), r, &others, objects).is_none() {
                    continue;
                }
                match params::of(policy, binding, r, objects).await {
                    Ok(params) => found.extend(params.into_iter().map(|param| Invocation {
                        policy: policy.clone(),
                        binding: binding.clone(),
                        param,
                        seen: seen.clone(),
                    })),
                    Err(why) => {
                        faults.push(Misconfigured { policy: policy.clone(), binding: binding.clone(), why });
                    }
                }
            }
        }
        (found, faults)
    }

    /// What the expressions of an invocation are told.
    async fn input(
        &self,
        invocation: &Invocation,
        r: &AdmissionRequest,
        objects: &dyn Objects,
    ) -> Result<Input, String> {
        let failed = |why: String| format!("failed to convert object version: {why}");
        let object = self.webhooks.versioned(r, &invocation.seen, &r.object).await.map_err(failed)?;
        let old = self.webhooks.versioned(r, &invocation.seen, &r.old_object).await.map_err(failed)?;
        let mut input = Input::new(r, &invocation.seen, object, old);
        input.params = invocation.param.clone();
        let is_namespace = r.group.is_empty() && r.resource == "namespaces";
        if !r.namespace.is_empty() && !is_namespace {
            let namespace = objects.get("", "namespaces", "", &r.namespace);
            input.namespace = namespace.map_or(Value::Null, |n| (*n).clone());
        }
        Ok(input)
    }

    /// Whether a policy's match conditions hold.
    async fn holds(
        &self,
        policy: &Value,
        compiled: &Compiled,
        input: &Input,
        asked: &Asked,
    ) -> Result<bool, String> {
        let conditions = list_at(policy, &["spec", "matchConditions"]);
        if conditions.is_empty() {
            return Ok(true);
        }
        let plain = Environment {
            variables: Vec::new(),
            namespace: false,
            patches: false,
            ..compiled.environment.clone()
        };
        conditions_hold(conditions, &plain, &self.programs, input, asked).await
    }
}
