//! `quantity()`.

use std::cmp::Ordering;

use pilothouse_apimachinery::quantity::Quantity;

use crate::eval::{Error, Evaluated};
use crate::value::{Native, Value};

const NANOS: i128 = 1_000_000_000;

/// By a name of its own.
pub fn global<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let [Value::String(text)] = args else { return None };
    let parsed = Quantity::parse(text);
    match name {
        "quantity" => {
            Some(parsed.map(|q| Value::native(Native::Quantity(q))).map_err(|e| Error::other(e.to_string())))
        }
        "isQuantity" => Some(Ok(Value::Bool(parsed.is_ok()))),
        _ => None,
    }
}

/// On a quantity.
pub fn member<'a>(name: &str, q: &Quantity, rest: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let other = match rest.first() {
        Some(Value::Native(n)) => match &**n {
            Native::Quantity(q) => Some(q.clone()),
            _ => None,
        },
        Some(Value::Int(i)) => Some(Quantity::from_value(*i, q.format())),
        _ => None,
    };
    let whole = q.nanos() % NANOS == 0 && i64::try_from(q.nanos() / NANOS).is_ok();
    let order = |o: &Quantity| q.nanos().cmp(&o.nanos());
    Some(Ok(match (name, other) {
        ("sign", None) => Value::Int(q.nanos().signum() as i64),
        ("isInteger", None) => Value::Bool(whole),
        ("asInteger", None) if whole => Value::Int(q.value()),
        ("asInteger", None) => return Some(Err(Error::other("cannot convert value to integer"))),
        ("asApproximateFloat", None) => Value::Double(q.as_f64()),
        ("add", Some(o)) => {
            let mut sum = q.clone();
            sum.add(&o);
            Value::native(Native::Quantity(sum))
        }
        ("sub", Some(o)) => {
            let mut rest = q.clone();
            rest.sub(&o);
            Value::native(Native::Quantity(rest))
        }
        ("isGreaterThan", Some(o)) => Value::Bool(order(&o) == Ordering::Greater),
        ("isLessThan", Some(o)) => Value::Bool(order(&o) == Ordering::Less),
        ("compareTo", Some(o)) => Value::Int(order(&o) as i64),
        _ => return None,
    }))
}
