//! Expressions about admission requests: their values, and the authorizer's answers to them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pilothouse_api::kinds::admissionregistration::expressions::{Environment, Gives, request_type};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_cel::{
    Answer, Authorizer as Question, Bindings, Budget, Check, Error, Host, Lazy, Native, PER_CALL_LIMIT,
    Program, Type, Value as Cel,
};

use super::webhook::rules::GroupVersion;
use crate::json::str_at;
use crate::request::{AdmissionRequest, Attributes, Authorizer, Decision, RequestInfo, UserInfo};

/// What all expressions of one policy may cost for one request.
pub const POLICY_BUDGET: u64 = 10_000_000;
/// What the match conditions of one webhook or policy may cost.
pub const CONDITIONS_BUDGET: u64 = 2_500_000;
/// How many compiled expressions are kept.
const KEPT: usize = 2_000;
/// How many questions the expressions of one policy may put to the authorizer.
const QUESTIONS: usize = 100;

/// An expression that has been compiled, or what the compiler says.
pub type Compiled = Arc<Result<Program, String>>;

/// Expressions that have been compiled, by themselves and their environment.
#[derive(Default)]
pub struct Programs(Mutex<HashMap<(String, String), Compiled>>);

impl Programs {
    /// An expression of an environment; the error is what the compiler says.
    pub fn get(
        &self,
        expression: &str,
        environment: &Environment,
        gives: Gives,
    ) -> Arc<Result<Program, String>> {
        let key = (expression.to_string(), format!("{environment:?} {gives:?}"));
        if let Some(known) = self.0.lock().get(&key) {
            return known.clone();
        }
        let made = Arc::new(environment.compile(expression, gives));
        let mut known = self.0.lock();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key, made.clone());
        made
    }
}

/// What expressions are told of a request.
pub struct Input {
    /// `object`.
    pub object: Value,
    /// `oldObject`.
    pub old: Value,
    /// `request`.
    pub request: Value,
    /// `params`.
    pub params: Value,
    /// `namespaceObject`.
    pub namespace: Value,
    /// What `authorizer.requestResource` is about.
    about: Question,
}

/// A request as it stands in reviews and in expressions: seen in a group's version.
pub fn request_value(r: &AdmissionRequest, seen: &GroupVersion) -> Value {
    let gvk = |group: &str, version: &str| json!({"group": group, "version": version, "kind": r.kind});
    let gvr =
        |group: &str, version: &str| json!({"group": group, "version": version, "resource": r.resource});
    let mut user = json!({"username": r.user.name});
    if !r.user.uid.is_empty() {
        user["uid"] = json!(r.user.uid);
    }
    if !r.user.groups.is_empty() {
        user["groups"] = json!(r.user.groups);
    }
    if !r.user.extra.is_empty() {
        user["extra"] = json!(r.user.extra);
    }
    let mut request = json!({
        "kind": gvk(&seen.group, &seen.version), "resource": gvr(&seen.group, &seen.version),
        "requestKind": gvk(&r.group, &r.version), "requestResource": gvr(&r.group, &r.version),
        "operation": r.operation.name(),
        "userInfo": user, "dryRun": r.dry_run, "options": r.options,
    });
    for (field, value) in [("name", &r.name), ("namespace", &r.namespace)] {
        if !value.is_empty() {
            request[field] = json!(value);
        }
    }
    if !r.subresource.is_empty() {
        request["subResource"] = json!(r.subresource);
        request["requestSubResource"] = json!(r.subresource);
    }
    request
}

impl Input {
    /// Of a request whose objects are in the version in which they are seen.
    pub fn new(r: &AdmissionRequest, seen: &GroupVersion, object: Value, old: Value) -> Input {
        let mut request = request_value(r, seen);
        for name in ["name", "namespace", "subResource", "requestSubResource"] {
            if request.get(name).is_none() {
                request[name] = json!("");
            }
        }
        Input {
            object,
            old,
            request,
            params: Value::Null,
            namespace: Value::Null,
            about: Question {
                group: r.group.clone(),
                resource: Some(r.resource.clone()),
                subresource: r.subresource.clone(),
                namespace: r.namespace.clone(),
                name: r.name.clone(),
                ..Question::default()
            },
        }
    }

    fn bindings<'a>(&'a self, host: &'a dyn Host, lazy: &'a Lazy<'a>) -> Bindings<'a> {
        let plain = |v: &'a Value| Cel::of_json(v, &Type::Dyn);
        Bindings::new(host)
            .with("object", plain(&self.object))
            .with("oldObject", plain(&self.old))
            .with("request", Cel::of_json(&self.request, &request_type()))
            .with("params", plain(&self.params))
            .with("namespaceObject", plain(&self.namespace))
            .with("authorizer", Cel::native(Native::Authorizer(Question::default())))
            .with("authorizer.requestResource", Cel::native(Native::Authorizer(self.about.clone())))
            .with_lazy(lazy)
    }
}

/// What has been asked of the authorizer for one request.
pub struct Asked {
    authorizer: Arc<dyn Authorizer>,
    user: UserInfo,
    answers: Mutex<Vec<(Check, Answer)>>,
}

impl Host for Asked {
    fn authorize(&self, check: &Check) -> Option<Answer> {
        self.answers.lock().iter().find(|(c, _)| c == check).map(|(_, answer)| answer.clone())
    }
}

impl Asked {
    /// Nothing yet, about a user.
    pub fn new(authorizer: Arc<dyn Authorizer>, user: UserInfo) -> Asked {
        Asked { authorizer, user, answers: Mutex::default() }
    }

    async fn ask(&self, check: Check) -> Result<(), Error> {
        if self.answers.lock().len() >= QUESTIONS {
            return Err(Error::other("too many questions to the authorizer"));
        }
        let about = &check.about;
        let user = match &about.service_account {
            None => self.user.clone(),
            Some((namespace, name)) => UserInfo {
                name: format!("system:serviceaccount:{namespace}:{name}"),
                groups: vec![
                    "system:serviceaccounts".into(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".into(),
                ],
                ..UserInfo::default()
            },
        };
        let request = RequestInfo {
            is_resource: about.path.is_none(),
            path: about.path.clone().unwrap_or_default(),
            verb: check.verb.clone(),
            group: about.group.clone(),
            version: "*".into(),
            namespace: about.namespace.clone(),
            resource: about.resource.clone().unwrap_or_default(),
            subresource: about.subresource.clone(),
            name: about.name.clone(),
            rest: String::new(),
        };
        let decision = self.authorizer.authorize(Attributes { user: &user, request: &request }).await;
        let answer = match decision {
            Decision::Allow => Answer { allowed: true, reason: String::new() },
            Decision::Deny(reason) | Decision::NoOpinion(reason) => Answer { allowed: false, reason },
        };
        self.answers.lock().push((check, answer));
        Ok(())
    }
}

/// An expression's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// What it gives, as JSON.
    Gives(Value),
    /// Why it gives nothing.
    Fails(String),
    /// All that may be spent is spent.
    OutOfBudget,
}

/// Evaluates expressions about one request, one after the other, within one budget.
pub struct Evaluation<'a> {
    /// What they are told.
    pub input: &'a Input,
    /// The authorizer.
    pub asked: &'a Asked,
    /// Variables with their expressions.
    pub variables: &'a [(String, Arc<Result<Program, String>>)],
    left: u64,
}

impl<'a> Evaluation<'a> {
    /// With a budget.
    pub fn new(
        input: &'a Input,
        asked: &'a Asked,
        variables: &'a [(String, Arc<Result<Program, String>>)],
        budget: u64,
    ) -> Evaluation<'a> {
        Evaluation { input, asked, variables, left: budget }
    }

    /// The value of an expression. Where the authorizer is to be asked, that is done in between.
    pub async fn run(&mut self, expression: &str, program: &Result<Program, String>) -> Outcome {
        let program = match program {
            Ok(program) => program,
            Err(why) => return Outcome::Fails(format!("compilation error: {why}")),
        };
        loop {
            let step = self.step(program);
            return match step {
                Ok(value) => Outcome::Gives(value),
                Err(Error::Pending(check)) => match self.asked.ask(*check).await {
                    Ok(()) => continue,
                    Err(e) => Outcome::Fails(format!("expression '{expression}' resulted in error: {e}")),
                },
                Err(Error::CostLimit) if self.left == 0 => Outcome::OutOfBudget,
                Err(e) => Outcome::Fails(format!("expression '{expression}' resulted in error: {e}")),
            };
        }
    }

    fn step(&mut self, program: &Program) -> Result<Value, Error> {
        let known = self.variables.iter().filter_map(|(name, p)| Some((name.as_str(), (**p).as_ref().ok()?)));
        let lazy = Lazy::new(known);
        let budget = Budget::new(self.left.min(PER_CALL_LIMIT));
        let bindings = self.input.bindings(self.asked, &lazy);
        let value = program.evaluate(&bindings, &budget);
        let outcome = value.and_then(|v| v.to_json().map_err(Error::other));
        if !matches!(outcome, Err(Error::Pending(_))) {
            self.left = self.left.saturating_sub(budget.spent());
        }
        outcome
    }
}

/// Whether all match conditions hold. `Err` says why that is not known.
pub async fn conditions_hold(
    conditions: &[Value],
    environment: &Environment,
    programs: &Programs,
    input: &Input,
    asked: &Asked,
) -> Result<bool, String> {
    let mut evaluation = Evaluation::new(input, asked, &[], CONDITIONS_BUDGET);
    let mut failures = Vec::new();
    for condition in conditions {
        let expression = str_at(condition, &["expression"]);
        let program = programs.get(expression, environment, Gives::Bool);
        match evaluation.run(expression, &program).await {
            Outcome::Gives(Value::Bool(false)) => return Ok(false),
            Outcome::Gives(_) => {}
            Outcome::Fails(why) => failures.push(why),
            Outcome::OutOfBudget => failures.push(
                "validation failed due to running out of cost budget, no further validation rules will be run".into(),
            ),
        }
    }
    match failures.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}
