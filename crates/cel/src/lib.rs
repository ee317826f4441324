//! The Common Expression Language (<https://cel.dev>) as Kubernetes has it
//! (<https://kubernetes.io/docs/reference/using-api/cel/>). The grammar is the crate `cel`'s; types, evaluation and the
//! functions are here, because Kubernetes checks expressions against schemas, and bounds what an evaluation may cost.
//! No I/O: what an expression asks of an authorizer is asked of a [`Host`].

mod check;
mod eval;
mod functions;
mod libraries;
mod parse;
mod signatures;
mod time;
mod types;
mod value;

pub use check::uses;
pub use eval::{Bindings, Budget, Error, Evaluated, Lazy};
pub use libraries::authorizer::{Answer, Check, Host, Nobody};
pub use types::{Field, ObjectType, Type, escape};
pub use value::{Authorizer, Native, Value};

use cel::IdedExpr;
use std::collections::BTreeMap;

/// The most that one expression may cost, as in Kubernetes.
pub const PER_CALL_LIMIT: u64 = 1_000_000;

/// The longest expression, in characters.
const MAX_LENGTH: usize = 100_000;

/// An expression that has been checked.
#[derive(Debug, Clone)]
pub struct Program {
    expr: IdedExpr,
    /// The type of what it gives.
    pub output: Type,
}

impl Program {
    /// Parses and checks an expression; `variables` are those it may use. The error is in the words of Kubernetes'
    /// compiler, one or more lines.
    pub fn compile(source: &str, variables: &BTreeMap<String, Type>) -> Result<Program, String> {
        let length = source.chars().count();
        if length > MAX_LENGTH {
            return Err(format!(
                "ERROR: <input>:-1:0: expression code point size exceeds limit: size: {length}, limit {MAX_LENGTH}"
            ));
        }
        parse::parsed(source, |parsed| {
            let output = check::check(&parsed, source, variables)?;
            Ok(Program { expr: parsed.expr, output })
        })
    }

    /// Whether the expression uses a variable.
    pub fn uses(&self, variable: &str) -> bool {
        uses(&self.expr, variable)
    }

    /// Evaluates the expression. `budget` shrinks by what that costs.
    pub fn evaluate<'a>(&'a self, bindings: &Bindings<'a>, budget: &Budget) -> Result<Value<'a>, Error> {
        eval::evaluate(&self.expr, bindings, budget)
    }
}

#[cfg(test)]
mod tests;
