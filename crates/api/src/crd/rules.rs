//! `x-kubernetes-validations`: rules in CEL that a schema has for its values, checked against the schema's types when the
//! definition is made, and evaluated for every write
//! (<https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#validation-rules>).

use std::collections::BTreeMap;

use pilothouse_apimachinery::field::{self, Error, ErrorList, ErrorType, Path};
use pilothouse_apimachinery::go;
use pilothouse_apimachinery::json::{Value, get, list_at, str_at};
use pilothouse_cel::{Bindings, Budget, Nobody, PER_CALL_LIMIT, Program, Type, Value as Cel};

use super::schema::{Additional, Schema};
use super::structural::map_at;
use crate::apply::path::equal;

/// What all rules may cost for one object.
const BUDGET: u64 = 10_000_000;
/// The longest message that an expression may give.
const MAX_MESSAGE: usize = 5 * 1024;
/// Reasons that a rule may give.
const REASONS: &[&str] =
    &["FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired", "FieldValueDuplicate"];

/// One rule as it is written.
#[derive(Debug, Clone, Default)]
pub struct Rule {
    /// The expression.
    pub rule: String,
    /// What is said where it does not hold.
    pub message: String,
    /// An expression that gives it.
    pub message_expression: String,
    /// Why a value is refused, in machines' words.
    pub reason: String,
    /// Where the fault is shown, below the place of the rule.
    pub field_path: String,
    /// Whether `oldSelf` may be missing; none where nothing is said.
    pub optional_old_self: Option<bool>,
}

impl Rule {
    /// The rules of a schema as it is written.
    pub fn all(schema: &Value) -> Vec<Rule> {
        let text = |rule: &Value, name: &str| str_at(rule, &[name]).to_string();
        let rules = list_at(schema, &["x-kubernetes-validations"]).iter();
        rules
            .map(|r| Rule {
                rule: text(r, "rule"),
                message: text(r, "message"),
                message_expression: text(r, "messageExpression"),
                reason: text(r, "reason"),
                field_path: text(r, "fieldPath"),
                optional_old_self: get(r, &["optionalOldSelf"]).as_bool(),
            })
            .collect()
    }

    fn shown(&self) -> &str {
        if self.message.is_empty() { self.rule.trim() } else { self.message.trim() }
    }

    fn message(&self) -> String {
        if self.message.is_empty() {
            format!("failed rule: {}", self.shown())
        } else {
            self.shown().to_string()
        }
    }
}

/// The type of a schema's values; none where expressions cannot know them. `resource`: of a whole object, which has
/// `apiVersion`, `kind` and `metadata` besides.
pub fn type_of(schema: &Schema, resource: bool, name: &str) -> Option<Type> {
    if schema.int_or_string {
        return Some(Type::Dyn);
    }
    Some(match schema.type_.as_str() {
        "array" => Type::list(type_of(schema.items.as_deref()?, false, &format!("{name}.@idx"))?),
        "object" => {
            if let Additional::Schema(additional) = &schema.additional {
                return Some(Type::map(type_of(
                    additional,
                    additional.embedded_resource,
                    &format!("{name}.@elem"),
                )?));
            }
            let mut fields: BTreeMap<String, Type> = BTreeMap::new();
            for (key, property) in &schema.properties {
                let below = format!("{name}.{key}");
                fields
                    .extend(type_of(property, property.embedded_resource, &below).map(|t| (key.clone(), t)));
            }
            if resource {
                fields.insert("apiVersion".into(), Type::String);
                fields.insert("kind".into(), Type::String);
                let names = ["name", "generateName"].map(|n| (n.to_string(), Type::String));
                fields.insert("metadata".into(), Type::object("metadata", names));
            }
            Type::object(name, fields)
        }
        "string" => match schema.format.as_str() {
            "byte" => Type::Bytes,
            "duration" => Type::Duration,
            "date" | "date-time" => Type::Timestamp,
            _ => Type::String,
        },
        "boolean" => Type::Bool,
        "number" => Type::Double,
        "integer" => Type::Int,
        _ => return None,
    })
}

fn variables(self_type: &Type, optional_old: bool) -> BTreeMap<String, Type> {
    let old = if optional_old { Type::optional(self_type.clone()) } else { self_type.clone() };
    BTreeMap::from([("self".to_string(), self_type.clone()), ("oldSelf".to_string(), old)])
}

/// A rule that has been checked.
#[derive(Debug, Clone)]
struct Compiled {
    rule: Rule,
    program: Result<Program, String>,
    message: Option<Program>,
    uses_old: bool,
    field_path: String,
}

fn compile_rule(rule: &Rule, type_: &Type) -> Result<Program, String> {
    let vars = variables(type_, rule.optional_old_self == Some(true));
    let program = Program::compile(&rule.rule, &vars).map_err(|e| format!("compilation failed: {e}"))?;
    match program.output {
        Type::Bool | Type::Dyn => Ok(program),
        _ => Err("cel expression must evaluate to a bool".into()),
    }
}

fn compile_message(rule: &Rule, type_: &Type) -> Result<Option<Program>, String> {
    if rule.message_expression.is_empty() {
        return Ok(None);
    }
    let vars = variables(type_, rule.optional_old_self == Some(true));
    let program = Program::compile(&rule.message_expression, &vars)
        .map_err(|e| format!("messageExpression compilation failed: {e}"))?;
    match program.output {
        Type::String | Type::Dyn => Ok(Some(program)),
        _ => Err("messageExpression must evaluate to a string".into()),
    }
}

/// The rules of a schema and of what is below it.
#[derive(Debug, Clone)]
pub struct Validator {
    rules: Vec<Compiled>,
    type_: Type,
    schema_type: String,
    list_map_keys: Option<Vec<String>>,
    properties: BTreeMap<String, Validator>,
    items: Option<Box<Validator>>,
    additional: Option<Box<Validator>>,
    all_of: Vec<Validator>,
}

impl Validator {
    /// The rules of a schema; none where it has no rules anywhere.
    pub fn new(schema: &Schema) -> Option<Validator> {
        Self::build(schema, schema, true, "object")
    }

    /// `rules` is where rules are looked for, `node` what says of the same values which type they have.
    fn build(rules: &Schema, node: &Schema, resource: bool, name: &str) -> Option<Validator> {
        let type_ = type_of(node, resource, name).unwrap_or(Type::Dyn);
        let mut properties = BTreeMap::new();
        for (key, below) in &rules.properties {
            let Some(own) = node.properties.get(key.as_str()) else { continue };
            let found = Self::build(below, own, own.embedded_resource, &format!("{name}.{key}"));
            properties.extend(found.map(|v| (key.clone(), v)));
        }
        let items = match (&rules.items, &node.items) {
            (Some(below), Some(own)) => {
                Self::build(below, own, own.embedded_resource, &format!("{name}.@idx")).map(Box::new)
            }
            _ => None,
        };
        let additional = match (rules.additional_schema(), node.additional_schema()) {
            (Some(below), Some(own)) => {
                Self::build(below, own, own.embedded_resource, &format!("{name}.@elem")).map(Box::new)
            }
            _ => None,
        };
        let all_of: Vec<Validator> =
            rules.all_of.iter().filter_map(|part| Self::build(part, node, resource, name)).collect();
        let own: Vec<Compiled> = rules
            .validations
            .iter()
            .filter(|r| !r.rule.trim().is_empty())
            .map(|rule| {
                let program = compile_rule(rule, &type_);
                Compiled {
                    uses_old: program.as_ref().is_ok_and(|p| p.uses("oldSelf")),
                    program,
                    message: compile_message(rule, &type_).ok().flatten(),
                    field_path: normalized(&rule.field_path, node).unwrap_or_default(),
                    rule: rule.clone(),
                }
            })
            .collect();
        let nothing = own.is_empty()
            && properties.is_empty()
            && items.is_none()
            && additional.is_none()
            && all_of.is_empty();
        (!nothing).then(|| Validator {
            rules: own,
            type_,
            schema_type: node.type_.clone(),
            list_map_keys: (node.list_type == "map").then(|| node.list_map_keys.clone()),
            properties,
            items,
            additional,
            all_of,
        })
    }

    /// The faults of an object, and texts for the client about faults that were there before. `old` is what it was.
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> (ErrorList, Vec<String>) {
        let mut run = Run { errors: ErrorList::new(), warnings: Vec::new(), left: Some(BUDGET) };
        let unchanged = old.is_some_and(|old| equal(object, old));
        self.visit(&Path::default(), object, old, unchanged, &mut run);
        (run.errors, run.warnings)
    }

    /// `unchanged`: whether the value, or the nearest value above that has a counterpart, is as it was.
    fn visit(&self, path: &Path, value: &Value, old: Option<&Value>, unchanged: bool, run: &mut Run) {
        if value.is_null() || run.left.is_none() {
            return;
        }
        let old = old.filter(|o| !o.is_null());
        self.rules(path, value, old, unchanged, run);
        for part in &self.all_of {
            part.visit(path, value, old, unchanged, run);
        }
        let state = |new: &Value, old: Option<&Value>| old.map_or(unchanged, |old| equal(new, old));
        match value {
            Value::Array(items) => {
                let Some(below) = &self.items else { return };
                for (i, item) in items.iter().enumerate() {
                    let before = self.counterpart(item, old);
                    below.visit(&path.index(i), item, before, state(item, before), run);
                }
            }
            Value::Object(map) => {
                for (key, item) in map {
                    let before = old.and_then(|o| o.get(key));
                    if let Some(below) = &self.additional {
                        below.visit(&path.key(key), item, before, state(item, before), run);
                    }
                    if let Some(below) = self.properties.get(key.as_str()) {
                        below.visit(&path.child(key), item, before, state(item, before), run);
                    }
                }
            }
            _ => {}
        }
    }

    /// The item of the old list that has the same keys, in a list of type map.
    fn counterpart<'v>(&self, item: &Value, old: Option<&'v Value>) -> Option<&'v Value> {
        let keys = self.list_map_keys.as_ref()?;
        let same = |other: &&Value| keys.iter().all(|k| equal(get(item, &[k]), get(other, &[k])));
        old?.as_array()?.iter().find(same)
    }

    fn rules<'v>(
        &'v self,
        path: &Path,
        value: &'v Value,
        old: Option<&'v Value>,
        unchanged: bool,
        run: &mut Run,
    ) {
        for compiled in &self.rules {
            let Some(left) = run.left else { return };
            let rule = &compiled.rule;
            let fault = |text: String| field::invalid(&place(path), self.schema_type.as_str(), &text);
            let program = match &compiled.program {
                Ok(program) => program,
                Err(why) => {
                    run.errors.push(fault(format!("rule compile error: {why}")));
                    continue;
                }
            };
            let optional = rule.optional_old_self == Some(true);
            if compiled.uses_old && old.is_none() && !optional {
                continue;
            }
            let bindings = self.bindings(value, old, optional);
            let budget = Budget::new(PER_CALL_LIMIT);
            let outcome = program.evaluate(&bindings, &budget);
            if budget.spent() > left {
                let text = "validation failed due to running out of cost budget, no further validation rules will be run";
                run.errors.push(fault(text.into()));
                run.left = None;
                return;
            }
            run.left = Some(left - budget.spent());
            match outcome {
                Ok(Cel::Bool(true)) => {}
                Ok(_) => {
                    let message = self.computed_message(compiled, &bindings, path, run);
                    let Some(message) = message else { return };
                    let at = if compiled.field_path.is_empty() {
                        place(path)
                    } else {
                        path.child(&compiled.field_path)
                    };
                    let error = self.refusal(&at, value, &message, &rule.reason);
                    if unchanged && !compiled.uses_old {
                        run.warnings.push(error.to_string());
                    } else {
                        run.errors.push(error);
                    }
                }
                Err(pilothouse_cel::Error::CostLimit) => {
                    let why = pilothouse_cel::Error::CostLimit;
                    run.errors.push(fault(format!(
                        "'{why}': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        rule.shown()
                    )));
                    run.left = None;
                    return;
                }
                Err(pilothouse_cel::Error::NoSuchOverload) => run.errors.push(fault(format!(
                    "'no such overload': call arguments did not match a supported operator, function or macro signature for rule: {}",
                    rule.shown()
                ))),
                Err(why) => run.errors.push(fault(format!("{why} evaluating rule: {}", rule.shown()))),
            }
        }
    }

    fn bindings<'v>(&'v self, value: &'v Value, old: Option<&'v Value>, optional: bool) -> Bindings<'v> {
        let shown = |v: &'v Value| Cel::of_json(v, &self.type_);
        let bindings = Bindings::new(&Nobody).with("self", shown(value));
        match (old, optional) {
            (Some(old), false) => bindings.with("oldSelf", shown(old)),
            (Some(old), true) => bindings.with("oldSelf", Cel::some(shown(old))),
            (None, true) => bindings.with("oldSelf", Cel::Optional(None)),
            (None, false) => bindings,
        }
    }

    /// What is said; none where that cost more than was left.
    fn computed_message<'v>(
        &self,
        compiled: &'v Compiled,
        bindings: &Bindings<'v>,
        path: &Path,
        run: &mut Run,
    ) -> Option<String> {
        let rule = &compiled.rule;
        let Some(program) = &compiled.message else { return Some(rule.message()) };
        let budget = Budget::new(PER_CALL_LIMIT);
        let outcome = program.evaluate(bindings, &budget).map(|v| match v {
            Cel::String(text) => Some(text.into_owned()),
            _ => None,
        });
        let left = run.left.unwrap_or(0);
        if budget.spent() > left || matches!(outcome, Err(pilothouse_cel::Error::CostLimit)) {
            let text = if budget.spent() > left {
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".to_string()
            } else {
                format!(
                    "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                    rule.message_expression
                )
            };
            run.errors.push(field::invalid(path, self.schema_type.as_str(), &text));
            run.left = None;
            return None;
        }
        run.left = Some(left - budget.spent());
        let good = |text: &String| {
            let trimmed = text.trim();
            !trimmed.is_empty() && !trimmed.contains(['\n', '\r']) && text.len() <= MAX_MESSAGE
        };
        Some(outcome.ok().flatten().filter(good).unwrap_or_else(|| rule.message()))
    }

    fn refusal(&self, at: &Path, value: &Value, message: &str, reason: &str) -> Error {
        match reason {
            "FieldValueForbidden" => field::forbidden(at, message),
            "FieldValueRequired" => field::required(at, message),
            "FieldValueDuplicate" if !self.is_composite() => field::duplicate(at, value.clone()),
            "FieldValueDuplicate" => Error {
                error_type: ErrorType::Duplicate,
                field: at.to_string(),
                body: "Duplicate value".into(),
            },
            // Objects and lists are not shown.
            _ if self.is_composite() => Error {
                error_type: ErrorType::Invalid,
                field: at.to_string(),
                body: format!("Invalid value: {message}"),
            },
            _ => field::invalid(at, value.clone(), message),
        }
    }

    fn is_composite(&self) -> bool {
        matches!(self.schema_type.as_str(), "object" | "array")
    }
}

/// What an evaluation of all rules has found, and may still cost: nothing once it has been ended.
struct Run {
    errors: ErrorList,
    warnings: Vec<String>,
    left: Option<u64>,
}

/// A rule's `fieldPath` as errors show it, without the dot in front; none where the schema has no such field.
fn normalized(path: &str, schema: &Schema) -> Option<String> {
    let mut out = String::new();
    let mut schema = schema;
    let mut rest = path;
    while !rest.is_empty() {
        let (name, tail) = if let Some(tail) = rest.strip_prefix("['") {
            let end = tail.find("']")?;
            (&tail[..end], &tail[end + 2..])
        } else {
            let tail = rest.strip_prefix('.')?;
            let end = tail.find(['.', '[']).unwrap_or(tail.len());
            (&tail[..end], &tail[end..])
        };
        if name.is_empty() {
            return None;
        }
        if schema.properties.is_empty() {
            schema = schema.additional_schema()?;
            out.push_str(&format!("[{name}]"));
        } else {
            schema = schema.properties.get(name)?;
            if !out.is_empty() {
                out.push('.');
            }
            out.push_str(name);
        }
        rest = tail;
    }
    Some(out)
}

/// A rule as Go prints it.
fn show(rule: &Rule) -> String {
    let reason = if rule.reason.is_empty() { "nil" } else { "0xc000000000" };
    let optional = if rule.optional_old_self.is_none() { "nil" } else { "0xc000000000" };
    format!(
        "apiextensions.ValidationRule{{Rule:{}, Message:{}, MessageExpression:{}, Reason:(*apiextensions.FieldValueErrorReason)({reason}), FieldPath:{}, OptionalOldSelf:(*bool)({optional})}}",
        go::quote(&rule.rule),
        go::quote(&rule.message),
        go::quote(&rule.message_expression),
        go::quote(&rule.field_path),
    )
}

/// A place as errors name it: the object itself has no name.
fn place(path: &Path) -> Path {
    if path.to_string().is_empty() { Path::new("<nil>") } else { path.clone() }
}

/// The faults of all rules of a schema as it is written, which stands at `path`. Rules are only checked for types where
/// `structural`: where nothing else is wrong.
pub fn check(schema: &Value, path: &Path, structural: bool) -> ErrorList {
    let mut errors = ErrorList::new();
    let parsed = Schema::parse(schema);
    check_node(
        schema,
        &parsed,
        path,
        &Place { root: true, structural, uncorrelatable: None, name: "object".into() },
        &mut errors,
    );
    errors
}

struct Place {
    root: bool,
    structural: bool,
    /// The list whose items have no counterpart in the old one.
    uncorrelatable: Option<String>,
    name: String,
}

fn check_node(schema: &Value, parsed: &Schema, path: &Path, place: &Place, errors: &mut ErrorList) {
    let resource = place.root || parsed.embedded_resource;
    for (i, rule) in parsed.validations.iter().enumerate() {
        let at = path.child("x-kubernetes-validations").index(i);
        let before = errors.len();
        form(rule, parsed, &at, errors);
        if !place.structural || errors.len() > before || rule.rule.trim().is_empty() {
            continue;
        }
        let shown = show(rule);
        let Some(type_) = type_of(parsed, resource, &place.name) else { continue };
        let program = compile_rule(rule, &type_);
        if let Err(why) = &program {
            errors.push(field::invalid_shown(&at.child("rule"), &shown, why));
        }
        if let Err(why) = compile_message(rule, &type_) {
            errors.push(field::invalid_shown(&at.child("messageExpression"), &shown, &why));
        }
        let Ok(program) = program else { continue };
        if program.uses("oldSelf") {
            if let Some(list) = &place.uncorrelatable {
                let why = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {list}"
                );
                errors.push(field::invalid(&at.child("rule"), rule.rule.as_str(), &why));
            }
        } else if let Some(given) = rule.optional_old_self {
            let why = "may not be set if oldSelf is not used in rule";
            errors.push(field::invalid(&at.child("optionalOldSelf"), given, why));
        }
    }
    let below = |name: &str, uncorrelatable: Option<String>| Place {
        root: false,
        structural: place.structural,
        uncorrelatable,
        name: format!("{}.{name}", place.name),
    };
    for (name, property) in map_at(schema, "properties") {
        if let Some(own) = parsed.properties.get(name.as_str()) {
            let next = below(name, place.uncorrelatable.clone());
            check_node(property, own, &path.child("properties").key(name), &next, errors);
        }
    }
    if let (Some(own), items) = (&parsed.items, get(schema, &["items"])) {
        let lost = (parsed.list_type != "map").then(|| path.to_string());
        let next = below("@idx", place.uncorrelatable.clone().or(lost));
        check_node(items, own, &path.child("items"), &next, errors);
    }
    if let Some(own) = parsed.additional_schema() {
        let next = below("@elem", place.uncorrelatable.clone());
        check_node(
            get(schema, &["additionalProperties"]),
            own,
            &path.child("additionalProperties"),
            &next,
            errors,
        );
    }
}

/// What of a rule's form is wrong.
fn form(rule: &Rule, schema: &Schema, at: &Path, errors: &mut ErrorList) {
    let breaks = |text: &str| text.contains(['\n', '\r']);
    let (text, message) = (rule.rule.trim(), rule.message.trim());
    if text.is_empty() {
        errors.push(field::required(&at.child("rule"), "rule is not specified"));
    } else if !rule.message.is_empty() && message.is_empty() {
        errors.push(field::invalid(
            &at.child("message"),
            rule.message.as_str(),
            "must be non-empty if specified",
        ));
    } else if breaks(message) {
        errors.push(field::invalid(
            &at.child("message"),
            rule.message.as_str(),
            "must not contain line breaks",
        ));
    } else if breaks(text) && message.is_empty() {
        let why = "message must be specified if rule contains line breaks";
        errors.push(field::required(&at.child("message"), why));
    }
    if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
        let why = "messageExpression must be non-empty if specified";
        errors.push(field::required(&at.child("messageExpression"), why));
    }
    if !rule.reason.is_empty() && !REASONS.contains(&rule.reason.as_str()) {
        let mut known = REASONS.to_vec();
        known.sort_unstable();
        errors.push(field::not_supported(&at.child("reason"), rule.reason.as_str(), &known));
    }
    if !rule.field_path.is_empty() {
        let shown = rule.field_path.as_str();
        let mut fault = |why: &str| errors.push(field::invalid(&at.child("fieldPath"), shown, why));
        if rule.field_path.trim().is_empty() {
            fault("must be non-empty if specified");
        }
        if breaks(&rule.field_path) {
            fault("must not contain line breaks");
        }
        if normalized(&rule.field_path, schema).is_none() {
            fault("must be a valid path");
        }
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "properties": {"spec": {
        "type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.replicas <= self.max", "message": "too many"},
            {"rule": "self.max >= oldSelf.max", "messageExpression": "'max must not shrink from ' + string(oldSelf.max)", "fieldPath": ".max"},
            {"rule": "!has(self.port) || self.port != 'bad'", "reason": "FieldValueForbidden", "message": "bad port"},
        ],
        "properties": {
            "replicas": {"type": "integer", "x-kubernetes-validations": [{"rule": "self % 2 == 1"}]},
            "max": {"type": "integer"},
            "port": {"x-kubernetes-int-or-string": true},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {
                "type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "v shrinks"}]}},
        }}}})
    }

    fn texts(object: Value, old: Option<Value>) -> Vec<String> {
        let validator = Validator::new(&Schema::parse(&schema())).unwrap();
        validator.validate(&object, old.as_ref()).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn values_are_held_against_rules() {
        assert!(texts(json!({"spec": {"replicas": 1, "max": 2}}), None).is_empty());
        assert_eq!(
            texts(json!({"spec": {"replicas": 4, "max": 2}}), None),
            ["spec: Invalid value: too many", "spec.replicas: Invalid value: 4: failed rule: self % 2 == 1"]
        );
        assert_eq!(
            texts(json!({"spec": {"replicas": 1, "max": 2, "port": "bad"}}), None),
            ["spec: Forbidden: bad port"]
        );
        assert!(texts(json!({"spec": {"replicas": 1, "max": 2, "port": 5}}), None).is_empty());
        assert_eq!(
            texts(json!({"spec": {"replicas": 1}}), None),
            ["spec: Invalid value: \"object\": no such key: max evaluating rule: too many"]
        );
    }

    #[test]
    fn rules_of_transitions() {
        let old =
            json!({"spec": {"replicas": 1, "max": 5, "list": [{"k": "a", "v": 3}, {"k": "b", "v": 9}]}});
        assert_eq!(
            texts(json!({"spec": {"replicas": 1, "max": 4}}), Some(old.clone())),
            ["spec.max: Invalid value: max must not shrink from 5"]
        );
        let new = json!({"spec": {"replicas": 1, "max": 5, "list": [{"k": "b", "v": 9}, {"k": "c", "v": 0}, {"k": "a", "v": 2}]}});
        assert_eq!(texts(new, Some(old)), ["spec.list[2]: Invalid value: v shrinks"]);
    }

    #[test]
    fn what_was_wrong_before_may_stay() {
        let validator = Validator::new(&Schema::parse(&schema())).unwrap();
        let old = json!({"spec": {"replicas": 4, "max": 5}});
        let (errors, warnings) = validator.validate(&json!({"spec": {"replicas": 4, "max": 6}}), Some(&old));
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(warnings, ["spec.replicas: Invalid value: 4: failed rule: self % 2 == 1"]);
    }

    #[test]
    fn definitions_are_checked() {
        let texts = |validations: Value| -> Vec<String> {
            let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}, "l": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}, "x-kubernetes-validations": validations.clone()}}}, "x-kubernetes-validations": validations});
            check(&schema, &Path::new("s"), true).iter().map(ToString::to_string).collect()
        };
        let found = texts(json!([{"rule": "self.a > 'x'"}]));
        assert!(found[0].starts_with("s.x-kubernetes-validations[0].rule: Invalid value: apiextensions.ValidationRule{Rule:\"self.a > 'x'\", Message:\"\", "), "{found:?}");
        assert!(found[0].contains("compilation failed: ERROR: <input>:1:8: found no matching overload for '_>_' applied to '(int, string)'"), "{found:?}");
        assert!(found[1].contains("undefined field 'a'"), "{found:?}");
        let found = texts(
            json!([{"rule": " "}, {"rule": "true", "message": "a\nb", "reason": "X", "fieldPath": ".nope"}]),
        );
        assert_eq!(found.len(), 8, "{found:?}");
        let found = texts(json!([{"rule": "oldSelf == self", "optionalOldSelf": false}]));
        assert_eq!(
            found,
            [
                "s.properties[l].items.x-kubernetes-validations[0].rule: Invalid value: \"oldSelf == self\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]"
            ]
        );
        let found = texts(json!([{"rule": "self == self", "optionalOldSelf": true}]));
        assert!(found[0].ends_with("may not be set if oldSelf is not used in rule"), "{found:?}");
        assert!(
            texts(json!([{"rule": "self.metadata.name != 'x' && 1 == 1"}]))[0]
                .contains("undefined field 'metadata'")
        );
        assert!(texts(json!([{"rule": "1 + 1"}]))[0].ends_with("cel expression must evaluate to a bool"));
    }

    #[test]
    fn evaluation_ends() {
        let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"},
            "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))", "message": "m"}]}}});
        let validator = Validator::new(&Schema::parse(&schema)).unwrap();
        let object = json!({"l": (0..1000).collect::<Vec<_>>()});
        let (errors, _) = validator.validate(&object, None);
        assert_eq!(
            errors[0].to_string(),
            "l: Invalid value: \"array\": 'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: m"
        );
    }
}
