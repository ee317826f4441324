//! The expressions of webhooks and admission policies: which variables they have, and what is wrong with them
//! (<https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/#validation-expression>).

use std::collections::BTreeMap;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, has, list_at, str_at};
use pilothouse_apimachinery::names;
use pilothouse_cel::{Program, Type};

/// The most match conditions of one webhook or policy.
const MAX_CONDITIONS: usize = 64;

/// What an expression may give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gives {
    /// `true` or `false`.
    Bool,
    /// A text.
    Text,
    /// A text or nothing.
    TextOrNull,
    /// Anything.
    Any,
}

impl Gives {
    fn fits(self, type_: &Type) -> Option<&'static str> {
        let fits = match self {
            Gives::Any => true,
            Gives::Bool => matches!(type_, Type::Bool | Type::Dyn),
            Gives::Text => matches!(type_, Type::String | Type::Dyn),
            Gives::TextOrNull => matches!(type_, Type::String | Type::Null | Type::Dyn),
        };
        (!fits).then_some(match self {
            Gives::Bool => "must evaluate to bool",
            Gives::Text => "must evaluate to string",
            _ => "must evaluate to one of the types: [string null_type]",
        })
    }
}

/// Which variables expressions have beside the request and its objects.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `params`.
    pub params: bool,
    /// `authorizer`.
    pub authorizer: bool,
    /// `namespaceObject`.
    pub namespace: bool,
    /// Names in `variables`, with their types.
    pub variables: Vec<(String, Type)>,
    /// Objects that a mutation may make: `Object{…}`, `JSONPatch{…}`.
    pub patches: bool,
}

fn request() -> Type {
    let texts = |name: &str, fields: &[&str]| {
        Type::object(name, fields.iter().map(|f| ((*f).to_string(), Type::String)))
    };
    let kind = || texts("kubernetes.GroupVersionKind", &["group", "version", "kind"]);
    let resource = || texts("kubernetes.GroupVersionResource", &["group", "version", "resource"]);
    let user = Type::object(
        "kubernetes.UserInfo",
        [
            ("username".to_string(), Type::String),
            ("uid".to_string(), Type::String),
            ("groups".to_string(), Type::list(Type::String)),
            ("extra".to_string(), Type::map(Type::list(Type::String))),
        ],
    );
    let mut fields = vec![
        ("kind", kind()),
        ("resource", resource()),
        ("requestKind", kind()),
        ("requestResource", resource()),
        ("userInfo", user),
        ("dryRun", Type::Bool),
        ("options", Type::Dyn),
    ];
    let plain = ["subResource", "requestSubResource", "name", "namespace", "operation"];
    fields.extend(plain.map(|name| (name, Type::String)));
    Type::object("kubernetes.AdmissionRequest", fields.into_iter().map(|(n, t)| (n.to_string(), t)))
}

/// The type of `request`.
pub fn request_type() -> Type {
    request()
}

impl Environment {
    /// The variables with their types.
    pub fn types(&self) -> BTreeMap<String, Type> {
        let authorizer = || Type::Native("kubernetes.authorization.Authorizer");
        let mut out = BTreeMap::from([
            ("object".to_string(), Type::Dyn),
            ("oldObject".to_string(), Type::Dyn),
            ("request".to_string(), request()),
        ]);
        if self.params {
            out.insert("params".into(), Type::Dyn);
        }
        if self.namespace {
            out.insert("namespaceObject".into(), Type::Dyn);
        }
        if self.authorizer {
            out.insert("authorizer".into(), authorizer());
            let check = Type::Native("kubernetes.authorization.ResourceCheck");
            out.insert("authorizer.requestResource".into(), check);
        }
        if self.patches {
            out.insert("@patches".into(), Type::Dyn);
        }
        let variables = self.variables.iter().cloned();
        out.insert("variables".into(), Type::object("kubernetes.variables", variables));
        out
    }

    /// Checks an expression. The error is what the compiler says.
    pub fn compile(&self, expression: &str, gives: Gives) -> Result<Program, String> {
        let program =
            Program::compile(expression, &self.types()).map_err(|e| format!("compilation failed: {e}"))?;
        match gives.fits(&program.output) {
            Some(why) => Err(why.into()),
            None => Ok(program),
        }
    }

    /// The fault of an expression that stands at `path`.
    pub fn fault(&self, expression: &str, gives: Gives, path: &Path) -> Option<field::Error> {
        self.compile(expression, gives).err().map(|why| field::invalid(path, expression, &why))
    }
}

/// The faults of match conditions at `path`.
pub fn condition_faults(conditions: &[Value], environment: &Environment, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    if conditions.len() > MAX_CONDITIONS {
        errs.push(field::too_many(path, conditions.len(), MAX_CONDITIONS));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (i, condition) in conditions.iter().enumerate() {
        let at = path.index(i);
        let expression = str_at(condition, &["expression"]);
        if expression.trim().is_empty() {
            errs.push(field::required(&at.child("expression"), ""));
        } else {
            errs.extend(environment.fault(expression.trim(), Gives::Bool, &at.child("expression")));
        }
        let name = str_at(condition, &["name"]);
        if name.is_empty() {
            errs.push(field::required(&at.child("name"), ""));
            continue;
        }
        for fault in names::qualified_name(name) {
            errs.push(field::invalid(&at.child("name"), name, &fault));
        }
        if seen.contains(&name) {
            errs.push(field::duplicate(&at.child("name"), name));
        }
        seen.push(name);
    }
    errs
}

/// The environment of a policy's expressions, with the faults of its variables at `spec.variables`. A variable may use
/// those before it.
pub fn of_policy(policy: &Value, patches: bool) -> (Environment, ErrorList) {
    let mut environment = Environment {
        params: has(policy, &["spec", "paramKind"]),
        authorizer: true,
        namespace: true,
        variables: Vec::new(),
        patches,
    };
    let mut errs = ErrorList::new();
    let path = Path::new("spec").child("variables");
    for (i, variable) in list_at(policy, &["spec", "variables"]).iter().enumerate() {
        let (name, expression) = (str_at(variable, &["name"]), str_at(variable, &["expression"]));
        let at = path.index(i);
        if name.is_empty() {
            errs.push(field::required(&at.child("name"), "name is not specified"));
        } else {
            if !names::c_identifier(name).is_empty() {
                let why = "name is not a valid CEL identifier";
                errs.push(field::invalid(&at.child("name"), name, why));
            }
            if environment.variables.iter().any(|(n, _)| n == name) {
                errs.push(field::duplicate(&at.child("name"), name));
            }
        }
        let mut type_ = Type::Dyn;
        if expression.trim().is_empty() {
            errs.push(field::required(&at.child("expression"), "expression is not specified"));
        } else {
            match environment.compile(expression, Gives::Any) {
                Ok(program) => type_ = program.output,
                Err(why) => errs.push(field::invalid(&at.child("expression"), expression, &why)),
            }
        }
        environment.variables.push((name.to_string(), type_));
    }
    (environment, errs)
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn conditions() {
        let environment = Environment { authorizer: true, ..Environment::default() };
        let texts = |conditions: Value| -> Vec<String> {
            condition_faults(conditions.as_array().unwrap(), &environment, &Path::new("m"))
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert!(
            texts(json!([{"name": "a", "expression": "request.userInfo.username != 'x' && !('system:nodes' in request.userInfo.groups)"},
                {"name": "b", "expression": "authorizer.group('').resource('pods').check('x').allowed() || authorizer.requestResource.check('y').allowed()"},
                {"name": "c", "expression": "object.metadata.name == oldObject.metadata.name"}])).is_empty()
        );
        assert_eq!(
            texts(json!([{"name": "a b", "expression": ""}, {"name": "x", "expression": "1"}, {"name": "x", "expression": "true"}]))
                .iter().map(|t| t.split(": ").take(2).collect::<Vec<_>>().join(": ")).collect::<Vec<_>>(),
            ["m[0].expression: Required value", "m[0].name: Invalid value", "m[1].expression: Invalid value", "m[2].name: Duplicate value"]
        );
        assert!(
            texts(json!([{"name": "a", "expression": "params.x == 1"}]))[0]
                .contains("undeclared reference to 'params'")
        );
        assert!(
            texts(json!([{"name": "a", "expression": "request.nope == 1"}]))[0]
                .contains("undefined field 'nope'")
        );
    }

    #[test]
    fn variables_build_on_each_other() {
        let policy = json!({"spec": {"variables": [{"name": "a", "expression": "object.spec.replicas"}, {"name": "b", "expression": "variables.a + 1"}, {"name": "c", "expression": "variables.d"}]}});
        let (environment, errs) = of_policy(&policy, false);
        assert_eq!(environment.variables.len(), 3);
        assert_eq!(errs.len(), 1);
        assert!(errs[0].to_string().contains("undefined field 'd'"));
        assert!(environment.compile("variables.b > 3", Gives::Bool).is_ok());
    }
}
