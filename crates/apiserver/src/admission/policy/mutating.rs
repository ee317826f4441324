//! `MutatingAdmissionPolicy`: expressions change objects.

use std::sync::Arc;

use async_trait::async_trait;
use pilothouse_api::kinds::admissionregistration::expressions::Gives;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use super::{Invocation, OUT_OF_BUDGET, Policies};
use crate::admission::expressions::{Asked, Evaluation, Outcome, POLICY_BUDGET};
use crate::json::{list_at, str_at};
use crate::request::{AdmissionRequest, Mutation, Objects};

/// The plug-in.
pub struct Mutating(pub Arc<Policies>);

/// What a policy has against a request.
struct Refusal {
    policy: String,
    binding: String,
    reason: &'static str,
    why: String,
}

impl Refusal {
    fn of(policy: &Value, binding: &Value, reason: &'static str, why: String) -> Option<Refusal> {
        let name = |o: &Value| str_at(o, &["metadata", "name"]).to_string();
        let ignored = str_at(policy, &["spec", "failurePolicy"]) == "Ignore";
        (!ignored).then(|| Refusal { policy: name(policy), binding: name(binding), reason, why })
    }

    fn text(&self) -> String {
        format!("policy '{}' with binding '{}' denied request: {}", self.policy, self.binding, self.why)
    }
}

impl Mutating {
    /// Lets one policy change the object; whether it has.
    async fn mutate(
        &self,
        invocation: &Invocation,
        r: &mut AdmissionRequest,
        objects: &dyn Objects,
        asked: &Asked,
    ) -> Result<bool, String> {
        let policy = &*invocation.policy;
        let compiled = self.0.compiled(policy, true);
        let input = self.0.input(invocation, r, objects).await?;
        if !self.0.holds(policy, &compiled, &input, asked).await? {
            return Ok(false);
        }
        let before = r.object.clone();
        for mutation in list_at(policy, &["spec", "mutations"]) {
            if r.object.is_null() {
                break;
            }
            let input = self.0.input(invocation, r, objects).await?;
            let kind = str_at(mutation, &["patchType"]);
            let holder = if kind == "JSONPatch" { "jsonPatch" } else { "applyConfiguration" };
            let expression = str_at(mutation, &[holder, "expression"]);
            let program = self.0.programs.get(expression, &compiled.environment, Gives::Any);
            let mut evaluation = Evaluation::new(&input, asked, &compiled.variables, POLICY_BUDGET);
            let patch = match evaluation.run(expression, &program).await {
                Outcome::Gives(patch) => patch,
                Outcome::Fails(why) => return Err(why),
                Outcome::OutOfBudget => return Err(OUT_OF_BUDGET.into()),
            };
            let seen = &invocation.seen;
            let changed = if kind == "JSONPatch" {
                pilothouse_api::patch::json::apply(&input.object, patch.to_string().as_bytes())
                    .map_err(|e| format!("JSON Patch: {}", e.message))?
            } else {
                if !patch.is_object() {
                    return Err(format!("must evaluate to Object but got {patch}"));
                }
                objects
                    .merged((&seen.group, &seen.version, &r.resource), &input.object, &patch)
                    .ok_or_else(|| format!("Resource kind {} not found.", r.kind))?
            };
            r.object = self.0.webhooks.hub(r, seen, changed).await?;
        }
        Ok(r.object != before)
    }
}

/// The plug-in under whose name it is noted who is asked again.
const PLUGIN: &str = "MutatingAdmissionPolicy";

#[async_trait]
impl Mutation for Mutating {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let of = ("mutatingadmissionpolicies", "mutatingadmissionpolicybindings");
        let (invocations, faults) = self.0.invocations(of.0, of.1, r, objects).await;
        let mut refusals: Vec<Refusal> = faults
            .into_iter()
            .filter_map(|f| {
                let why = format!("failed to configure binding: {}", f.why);
                Refusal::of(&f.policy, &f.binding, "", why)
            })
            .collect();
        let asked = Asked::new(self.0.authorizer.clone(), r.user.clone());
        r.reinvocation.begin(PLUGIN, &r.object);
        for invocation in &invocations {
            let of = |v: &Value| str_at(v, &["metadata", "name"]).to_string();
            let param = str_at(&invocation.param, &["metadata", "uid"]);
            let id = format!("{}/{}/{param}", of(&invocation.policy), of(&invocation.binding));
            if r.reinvocation.skips(PLUGIN, &id) {
                continue;
            }
            match self.mutate(invocation, r, objects, &asked).await {
                Ok(changed) => {
                    let policy = str_at(&invocation.policy, &["spec", "reinvocationPolicy"]);
                    r.reinvocation.asked(PLUGIN, &id, changed, policy == "IfNeeded");
                }
                Err(why) => {
                    refusals.extend(Refusal::of(&invocation.policy, &invocation.binding, "Invalid", why));
                }
            }
        }
        r.reinvocation.end(PLUGIN, &r.object);
        let Some(first) = refusals.first() else { return Ok(()) };
        let mut status = crate::admission::forbidden(r, "admission request denied by policy");
        status.message = first.text();
        if !first.reason.is_empty() {
            status.reason = first.reason.into();
        }
        Err(refusals.iter().fold(status, |status, refusal| status.cause("", &refusal.text(), "")))
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;
    use crate::admission::expressions::Programs;
    use crate::admission::test_create;
    use crate::admission::webhook::{GROUP, Webhooks};
    use crate::request::{Attributes, Authorizer, Decision, UserInfo};
    use crate::testing::FakeObjects;

    struct No;

    #[async_trait]
    impl Authorizer for No {
        async fn authorize(&self, _: Attributes<'_>) -> Decision {
            Decision::NoOpinion(String::new())
        }
        async fn rules_for(&self, _: &UserInfo, _: &str) -> (Vec<Value>, Vec<Value>, bool) {
            (Vec::new(), Vec::new(), true)
        }
    }

    async fn changed(mutations: Value, extra: Value) -> Result<Value, Status> {
        let objects = Arc::new(FakeObjects::default());
        objects.put("", "namespaces", json!({"metadata": {"name": "n"}}));
        let mut policy = json!({"metadata": {"name": "p"}, "spec": {"failurePolicy": "Fail", "reinvocationPolicy": "Never", "mutations": mutations, "matchConstraints": {"matchPolicy": "Equivalent", "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"], "scope": "*"}]}}});
        for (k, v) in extra.as_object().unwrap() {
            policy["spec"][k] = v.clone();
        }
        objects.put(GROUP, "mutatingadmissionpolicies", policy);
        objects.put(
            GROUP,
            "mutatingadmissionpolicybindings",
            json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}}),
        );
        let plugin = Mutating(Arc::new(Policies {
            webhooks: Arc::new(Webhooks::new(objects.clone(), Arc::new(No), NEWEST, Default::default())),
            authorizer: Arc::new(No),
            programs: Programs::default(),
        }));
        let mut r = test_create(
            "",
            "pods",
            "Pod",
            json!({"metadata": {"name": "x", "namespace": "n"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        );
        plugin.admit(&mut r, &*objects).await.map(|()| r.object)
    }

    #[tokio::test]
    async fn configurations_are_merged() {
        let sidecar = json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
            "Object{metadata: Object.metadata{labels: {'a': 'b'}}, spec: Object.spec{initContainers: [Object.spec.initContainers{name: 'side', image: variables.image}]}}"}}]);
        let variables =
            json!({"variables": [{"name": "image", "expression": "object.spec.containers[0].image + ':1'"}]});
        let pod = changed(sidecar.clone(), variables).await.unwrap();
        assert_eq!(pod["metadata"]["labels"]["a"], "b");
        assert_eq!(pod["spec"]["initContainers"][0]["image"], "i:1");
        assert_eq!(pod["spec"]["containers"][0]["name"], "c");
        let skipped = changed(
            sidecar,
            json!({"matchConditions": [{"name": "m", "expression": "object.metadata.name != 'x'"}]}),
        )
        .await
        .unwrap();
        assert_eq!(skipped["metadata"].get("labels"), None);
    }

    #[tokio::test]
    async fn patches_are_applied() {
        let patch = json!([{"patchType": "JSONPatch", "jsonPatch": {"expression":
            "[JSONPatch{op: 'add', path: '/metadata/labels', value: {}}, JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 'c'}]"}}]);
        assert_eq!(changed(patch, json!({})).await.unwrap()["metadata"]["labels"]["a/b"], "c");
        let bad = json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": "[JSONPatch{op: 'remove', path: '/nope'}]"}}]);
        let e = changed(bad.clone(), json!({})).await.unwrap_err();
        assert!(e.message.starts_with("policy 'p' with binding 'b' denied request: "), "{}", e.message);
        assert!(changed(bad, json!({"failurePolicy": "Ignore"})).await.is_ok());
    }
}
