//! `ValidatingAdmissionPolicy`: requests are held against expressions.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use pilothouse_api::kinds::admissionregistration::expressions::{Environment, Gives};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use super::{Compiled, OUT_OF_BUDGET, Policies};
use crate::admission::expressions::{Asked, Evaluation, Input, Outcome, POLICY_BUDGET};
use crate::json::{list_at, str_at, texts};
use crate::request::{AdmissionRequest, Objects, Validation};

/// The longest message that an expression may give.
const MAX_MESSAGE: usize = 5 * 1024;
/// The longest audit annotation.
const MAX_ANNOTATION: usize = 10 * 1024;
/// How many failures the audit log tells of.
const MAX_FAILURES: usize = 50;

/// The plug-in.
pub struct Validating(pub Arc<Policies>);

/// What a policy has against a request.
struct Fault {
    /// Which of its expressions; none where it is not about one.
    index: usize,
    reason: String,
    message: String,
}

/// What a policy says of a request.
#[derive(Default)]
struct Verdict {
    faults: Vec<Fault>,
    annotations: Vec<(String, String)>,
    /// Faults of annotations: always refused.
    annotation_faults: Vec<String>,
}

impl Validating {
    /// Evaluates a policy with one parameter.
    async fn evaluate(&self, policy: &Value, compiled: &Compiled, input: &Input, asked: &Asked) -> Verdict {
        let ignores = str_at(policy, &["spec", "failurePolicy"]) == "Ignore";
        let mut verdict = Verdict::default();
        let failed = |verdict: &mut Verdict, index: usize, message: String| {
            if !ignores {
                verdict.faults.push(Fault { index, reason: String::new(), message });
            }
        };
        match self.0.holds(policy, compiled, input, asked).await {
            Ok(true) => {}
            Ok(false) => return verdict,
            Err(why) => {
                failed(&mut verdict, 0, why);
                return verdict;
            }
        }
        let mut evaluation = Evaluation::new(input, asked, &compiled.variables, POLICY_BUDGET);
        let without = Environment { authorizer: false, ..compiled.environment.clone() };
        for (index, validation) in list_at(policy, &["spec", "validations"]).iter().enumerate() {
            let text = |name: &str| str_at(validation, &[name]);
            let program = self.0.programs.get(text("expression"), &compiled.environment, Gives::Bool);
            match evaluation.run(text("expression"), &program).await {
                Outcome::Gives(Value::Bool(true)) => {}
                Outcome::Gives(_) => {
                    let mut message = String::new();
                    if !text("messageExpression").is_empty() {
                        let program = self.0.programs.get(text("messageExpression"), &without, Gives::Text);
                        let outcome = evaluation.run(text("messageExpression"), &program).await;
                        if let Outcome::Gives(Value::String(told)) = outcome {
                            let told = told.trim();
                            if told.len() <= MAX_MESSAGE && !told.contains('\n') {
                                message = told.to_string();
                            }
                        }
                    }
                    if message.is_empty() {
                        message = text("message").trim().to_string();
                    }
                    if message.is_empty() {
                        message = format!("failed expression: {}", text("expression").trim());
                    }
                    let reason = if text("reason").is_empty() { "Invalid" } else { text("reason") };
                    verdict.faults.push(Fault { index, reason: reason.to_string(), message });
                }
                Outcome::Fails(why) => failed(&mut verdict, index, why),
                Outcome::OutOfBudget => {
                    failed(&mut verdict, index, OUT_OF_BUDGET.into());
                    return verdict;
                }
            }
        }
        for annotation in list_at(policy, &["spec", "auditAnnotations"]) {
            let expression = str_at(annotation, &["valueExpression"]);
            let program = self.0.programs.get(expression, &compiled.environment, Gives::TextOrNull);
            match evaluation.run(expression, &program).await {
                Outcome::Gives(Value::String(value)) if !value.trim().is_empty() => {
                    let mut value = value.trim().to_string();
                    while value.len() > MAX_ANNOTATION {
                        value.pop();
                    }
                    verdict.annotations.push((str_at(annotation, &["key"]).to_string(), value));
                }
                Outcome::Gives(_) => {}
                Outcome::Fails(_) | Outcome::OutOfBudget if ignores => {}
                Outcome::Fails(why) => verdict.annotation_faults.push(why),
                Outcome::OutOfBudget => verdict.annotation_faults.push(OUT_OF_BUDGET.into()),
            }
        }
        verdict
    }
}

/// What refuses a request, in the order in which it was found.
#[derive(Default)]
struct Findings {
    denials: Vec<(String, String)>,
    failures: Vec<Value>,
    annotations: BTreeMap<String, Vec<String>>,
}

impl Findings {
    /// A policy or binding that cannot be used as it is.
    fn misconfigured(&mut self, policy: &Value, binding: Option<&Value>, why: &str) {
        if str_at(policy, &["spec", "failurePolicy"]) == "Ignore" {
            return;
        }
        let what = if binding.is_some() { "binding" } else { "policy" };
        self.deny(policy, binding, "", &format!("failed to configure {what}: {why}"));
    }

    fn deny(&mut self, policy: &Value, binding: Option<&Value>, reason: &str, message: &str) {
        let name = str_at(policy, &["metadata", "name"]);
        let by = match binding {
            Some(b) => {
                format!(
                    "ValidatingAdmissionPolicy '{name}' with binding '{}' denied request: ",
                    str_at(b, &["metadata", "name"])
                )
            }
            None => format!("ValidatingAdmissionPolicy '{name}' denied request: "),
        };
        self.denials.push((reason.to_string(), format!("{by}{message}")));
    }

    fn add(&mut self, policy: &Value, binding: &Value, verdict: Verdict, r: &AdmissionRequest) {
        let names = (str_at(policy, &["metadata", "name"]), str_at(binding, &["metadata", "name"]));
        let actions = texts(binding, &["spec", "validationActions"]);
        for fault in verdict.faults {
            for action in &actions {
                match action.as_str() {
                    "Deny" => self.deny(policy, Some(binding), &fault.reason, &fault.message),
                    "Warn" => r.warnings.add(&format!(
                        "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                        names.0, names.1, fault.message
                    )),
                    _ => self.failures.push(json!({
                        "message": fault.message, "policy": names.0, "binding": names.1,
                        "expressionIndex": fault.index, "validationActions": actions,
                    })),
                }
            }
        }
        for (key, value) in verdict.annotations {
            let values = self.annotations.entry(format!("{}/{key}", names.0)).or_default();
            if !values.contains(&value) {
                values.push(value);
            }
        }
        for why in verdict.annotation_faults {
            self.deny(policy, Some(binding), "", &why);
        }
    }

    fn finish(mut self, r: &AdmissionRequest) -> Result<(), Status> {
        for (key, values) in self.annotations {
            r.warnings.annotate(&key, &values.join(", "));
        }
        if !self.failures.is_empty() {
            self.failures.truncate(MAX_FAILURES);
            let value = Value::from(self.failures).to_string();
            r.warnings.annotate("validation.policy.admission.k8s.io/validation_failure", &value);
        }
        let Some((reason, message)) = self.denials.into_iter().next() else { return Ok(()) };
        let mut status = crate::admission::forbidden(r, &message).cause("", &message, "");
        let reason = if reason.is_empty() { "Invalid".to_string() } else { reason };
        status.code = match reason.as_str() {
            "Unauthorized" => 401,
            "Forbidden" => 403,
            "RequestEntityTooLarge" => 413,
            _ => 422,
        };
        status.reason = reason;
        Err(status)
    }
}

#[async_trait]
impl Validation for Validating {
    async fn validate(&self, r: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let of = ("validatingadmissionpolicies", "validatingadmissionpolicybindings");
        let (invocations, faults) = self.0.invocations(of.0, of.1, r, objects).await;
        if invocations.is_empty() && faults.is_empty() {
            return Ok(());
        }
        let asked = Asked::new(self.0.authorizer.clone(), r.user.clone());
        let mut findings = Findings::default();
        for fault in faults {
            findings.misconfigured(&fault.policy, Some(&fault.binding), &fault.why);
        }
        for invocation in invocations {
            let (policy, binding) = (&*invocation.policy, &*invocation.binding);
            match self.0.input(&invocation, r, objects).await {
                Ok(input) => {
                    let compiled = self.0.compiled(policy, false);
                    let verdict = self.evaluate(policy, &compiled, &input, &asked).await;
                    findings.add(policy, binding, verdict, r);
                }
                Err(why) => findings.misconfigured(policy, Some(binding), &why),
            }
        }
        findings.finish(r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::expressions::Programs;
    use crate::admission::test_create;
    use crate::admission::webhook::{GROUP, Webhooks};
    use crate::request::{Attributes, Authorizer, Decision, UserInfo};
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::version::NEWEST;

    struct OnlyRoot;

    #[async_trait]
    impl Authorizer for OnlyRoot {
        async fn authorize(&self, a: Attributes<'_>) -> Decision {
            if a.user.name == "root" { Decision::Allow } else { Decision::NoOpinion("no".into()) }
        }
        async fn rules_for(&self, _: &UserInfo, _: &str) -> (Vec<Value>, Vec<Value>, bool) {
            (Vec::new(), Vec::new(), true)
        }
    }

    async fn judge(
        spec: Value,
        binding: Value,
        change: impl Fn(&mut AdmissionRequest),
    ) -> (Result<(), Status>, AdmissionRequest) {
        let objects = Arc::new(FakeObjects::default());
        objects.put("", "namespaces", json!({"metadata": {"name": "n", "labels": {"env": "prod"}}}));
        objects.put(
            "",
            "configmaps",
            json!({"metadata": {"name": "limits", "namespace": "n"}, "data": {"max": "3"}}),
        );
        let mut policy = json!({"metadata": {"name": "p"}, "spec": {"failurePolicy": "Fail", "matchConstraints": {"matchPolicy": "Equivalent", "resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"], "scope": "*"}]}}});
        for (k, v) in spec.as_object().unwrap() {
            policy["spec"][k] = v.clone();
        }
        let mut bound =
            json!({"metadata": {"name": "b"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}});
        for (k, v) in binding.as_object().unwrap() {
            bound["spec"][k] = v.clone();
        }
        objects.put(GROUP, "validatingadmissionpolicies", policy);
        objects.put(GROUP, "validatingadmissionpolicybindings", bound);
        let mut r = test_create(
            "apps",
            "deployments",
            "Deployment",
            json!({"metadata": {"name": "d", "namespace": "n", "labels": {"a": "b"}}, "spec": {"replicas": 5}}),
        );
        change(&mut r);
        let plugin = Validating(Arc::new(Policies {
            webhooks: Arc::new(Webhooks::new(
                objects.clone(),
                Arc::new(OnlyRoot),
                NEWEST,
                Default::default(),
            )),
            authorizer: Arc::new(OnlyRoot),
            programs: Programs::default(),
        }));
        (plugin.validate(&r, &*objects).await, r)
    }

    #[tokio::test]
    async fn refuses_in_kubernetes_words() {
        let spec = || json!({"validations": [{"expression": "object.spec.replicas <= 3", "messageExpression": "'at most 3, not ' + string(object.spec.replicas)"}]});
        let (outcome, _) = judge(spec(), json!({}), |_| {}).await;
        let e = outcome.unwrap_err();
        assert_eq!((e.code, e.reason.as_str()), (422, "Invalid"));
        assert_eq!(
            e.message,
            "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: at most 3, not 5"
        );
        assert!(judge(spec(), json!({}), |r| r.object["spec"]["replicas"] = json!(2)).await.0.is_ok());
        assert!(
            judge(
                spec(),
                json!({"matchResources": {"namespaceSelector": {"matchLabels": {"env": "test"}}}}),
                |_| {}
            )
            .await
            .0
            .is_ok()
        );
        assert!(judge(spec(), json!({"matchResources": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"], "resourceNames": ["other"]}]}}), |_| {}).await.0.is_ok());
        assert!(judge(json!({"validations": [{"expression": "false"}], "matchConditions": [{"name": "c", "expression": "request.userInfo.username == 'x'"}]}), json!({}), |_| {}).await.0.is_ok());
    }

    #[tokio::test]
    async fn warns_and_notes() {
        let spec = json!({"validations": [{"expression": "variables.small", "reason": "Forbidden"}], "variables": [{"name": "small", "expression": "object.spec.replicas < 3"}],
            "auditAnnotations": [{"key": "count", "valueExpression": "string(object.spec.replicas)"}]});
        let (outcome, r) = judge(spec.clone(), json!({"validationActions": ["Warn", "Audit"]}), |_| {}).await;
        assert!(outcome.is_ok());
        assert_eq!(
            r.warnings.take(),
            [
                "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': failed expression: variables.small"
            ]
        );
        let notes: BTreeMap<String, String> = r.warnings.take_annotations().into_iter().collect();
        assert_eq!(notes["p/count"], "5");
        assert!(
            notes["validation.policy.admission.k8s.io/validation_failure"].contains("\"expressionIndex\":0")
        );
        let e = judge(spec, json!({}), |_| {}).await.0.unwrap_err();
        assert_eq!((e.code, e.reason.as_str()), (403, "Forbidden"));
    }

    #[tokio::test]
    async fn parameters_and_the_authorizer() {
        let spec = |expression: &str| json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [{"expression": expression}]});
        let by_name = |name: &str| json!({"paramRef": {"name": name, "parameterNotFoundAction": "Deny"}});
        let over = "object.spec.replicas <= int(params.data.max)";
        assert!(
            judge(spec(over), by_name("limits"), |_| {})
                .await
                .0
                .unwrap_err()
                .message
                .ends_with("denied request: failed expression: object.spec.replicas <= int(params.data.max)")
        );
        assert!(judge(spec(over), by_name("none"), |_| {}).await.0.unwrap_err().message.ends_with(
            "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"
        ));
        assert!(
            judge(
                spec(over),
                json!({"paramRef": {"name": "none", "parameterNotFoundAction": "Allow"}}),
                |_| {}
            )
            .await
            .0
            .is_ok()
        );
        let may = spec(
            "authorizer.requestResource.check('custom').allowed() && namespaceObject.metadata.labels.env == 'prod'",
        );
        assert!(judge(may.clone(), json!({}), |_| {}).await.0.is_err());
        assert!(judge(may, json!({}), |r| r.user.name = "root".into()).await.0.is_ok());
    }

    #[tokio::test]
    async fn failures_follow_the_policy() {
        let spec = |policy: &str| json!({"failurePolicy": policy, "validations": [{"expression": "object.spec.nope == 1"}]});
        let e = judge(spec("Fail"), json!({}), |_| {}).await.0.unwrap_err();
        assert!(
            e.message.ends_with("expression 'object.spec.nope == 1' resulted in error: no such key: nope"),
            "{}",
            e.message
        );
        assert!(judge(spec("Ignore"), json!({}), |_| {}).await.0.is_ok());
    }
}
