//! What expressions ask of the authorizer.

use crate::eval::{Error, Evaluated};
use crate::functions::text;
use crate::value::{Authorizer, Native, Value};

/// A question to the authorizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What is asked about.
    pub about: Authorizer,
    /// The verb.
    pub verb: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
}

/// Answers for the authorizer.
pub trait Host {
    /// The answer; none where it is not known yet: evaluation ends then, to be done again when it is.
    fn authorize(&self, check: &Check) -> Option<Answer>;
}

/// Where there is no authorizer.
pub struct Nobody;

impl Host for Nobody {
    fn authorize(&self, _: &Check) -> Option<Answer> {
        Some(Answer { allowed: false, reason: String::new() })
    }
}

/// Steps of a question, and its end.
pub fn member<'a>(name: &str, a: &Authorizer, rest: &[Value<'a>], host: &dyn Host) -> Option<Evaluated<'a>> {
    let mut next = a.clone();
    let given = match rest.first().map(text) {
        Some(Ok(given)) => given.to_string(),
        _ => return Some(Err(Error::NoSuchOverload)),
    };
    match (name, rest.len()) {
        ("path", 1) => next.path = Some(given),
        ("group", 1) => next.group = given,
        ("serviceAccount", 2) => match rest.get(1).map(text) {
            Some(Ok(account)) => next.service_account = Some((given, account.to_string())),
            _ => return Some(Err(Error::NoSuchOverload)),
        },
        ("resource", 1) => next.resource = Some(given),
        ("subresource", 1) => next.subresource = given,
        ("namespace", 1) => next.namespace = given,
        ("name", 1) => next.name = given,
        ("check", 1) => {
            let check = Check { about: next, verb: given };
            return Some(match host.authorize(&check) {
                Some(answer) => Ok(Value::native(Native::Decision(answer.allowed, answer.reason))),
                None => Err(Error::Pending(Box::new(check))),
            });
        }
        _ => return None,
    }
    Some(Ok(Value::native(Native::Authorizer(next))))
}

/// What the authorizer said.
pub fn of_decision<'a>(name: &str, allowed: bool, reason: &str) -> Option<Evaluated<'a>> {
    Some(Ok(match name {
        "allowed" => Value::Bool(allowed),
        "reason" => Value::text(reason),
        "errored" => Value::Bool(false),
        "error" => Value::text(""),
        _ => return None,
    }))
}
