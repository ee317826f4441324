//! Lists and sets.

use std::cmp::Ordering;

use crate::eval::{Error, Evaluated};
use crate::functions::{NO_TIME, int};
use crate::value::Value;

/// The most items of a list that is computed from a number.
const MAX_RANGE: i64 = 100_000;

fn found<'a>(at: Option<usize>) -> Value<'a> {
    Value::Int(at.and_then(|i| i64::try_from(i).ok()).unwrap_or(-1))
}

/// On a list.
pub fn member<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let items = args.first()?.items()?;
    Some(match (name, &args[1..]) {
        ("isSorted", []) => {
            Ok(Value::Bool(items.windows(2).all(|w| w[0].compare(&w[1]) != Some(Ordering::Greater))))
        }
        ("sum", []) => sum(items),
        ("min" | "max", []) => {
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let best = items
                .into_iter()
                .reduce(|best, next| if next.compare(&best) == Some(wanted) { next } else { best });
            best.ok_or_else(|| Error::other(format!("{name} called on empty list")))
        }
        ("indexOf", [item]) => Ok(found(items.iter().position(|i| i.equal(item)))),
        ("lastIndexOf", [item]) => Ok(found(items.iter().rposition(|i| i.equal(item)))),
        ("flatten", []) => {
            let flat = items.into_iter().flat_map(|i| i.items().unwrap_or_else(|| vec![i]));
            Ok(Value::list(flat.collect()))
        }
        ("distinct", []) => {
            let mut once: Vec<Value<'a>> = Vec::new();
            for item in items {
                if !once.iter().any(|o| o.equal(&item)) {
                    once.push(item);
                }
            }
            Ok(Value::list(once))
        }
        ("reverse", []) => Ok(Value::list(items.into_iter().rev().collect())),
        ("sort", []) => {
            let mut sorted = items;
            sorted.sort_by(|a, b| a.compare(b).unwrap_or(Ordering::Equal));
            Ok(Value::list(sorted))
        }
        ("slice", [from, to]) => slice(&items, from, to),
        ("join", []) => super::strings::join(&items, ""),
        ("join", [Value::String(between)]) => super::strings::join(&items, between),
        _ => return None,
    })
}

fn sum(items: Vec<Value<'_>>) -> Evaluated<'_> {
    let overflow = || Error::other("integer overflow");
    let mut items = items.into_iter();
    let Some(mut total) = items.next() else { return Ok(Value::Int(0)) };
    for item in items {
        total = match (total, item) {
            (Value::Int(a), Value::Int(b)) => Value::Int(a.checked_add(b).ok_or_else(overflow)?),
            (Value::Uint(a), Value::Uint(b)) => Value::Uint(a.checked_add(b).ok_or_else(overflow)?),
            (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
            (Value::Duration(a), Value::Duration(b)) => Value::Duration(a.checked_add(b).unwrap_or(NO_TIME)),
            _ => return Err(Error::NoSuchOverload),
        };
    }
    Ok(total)
}

fn slice<'a>(items: &[Value<'a>], from: &Value<'a>, to: &Value<'a>) -> Evaluated<'a> {
    let (from, to) = (int(from)?, int(to)?);
    let bounds = (usize::try_from(from).ok(), usize::try_from(to).ok());
    match bounds {
        (Some(a), Some(b)) if a <= b && b <= items.len() => Ok(Value::list(items[a..b].to_vec())),
        _ => Err(Error::other(format!("cannot slice({from}, {to}), list is length {}", items.len()))),
    }
}

/// By a name of its own.
pub fn global<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let within = |a: &[Value<'a>], b: &[Value<'a>]| a.iter().all(|x| b.iter().any(|y| x.equal(y)));
    Some(Ok(match (name, args) {
        ("sets.contains", [a, b]) => Value::Bool(within(&b.items()?, &a.items()?)),
        ("sets.equivalent", [a, b]) => {
            let (a, b) = (a.items()?, b.items()?);
            Value::Bool(within(&a, &b) && within(&b, &a))
        }
        ("sets.intersects", [a, b]) => {
            let (a, b) = (a.items()?, b.items()?);
            Value::Bool(a.iter().any(|x| b.iter().any(|y| x.equal(y))))
        }
        ("lists.range", [Value::Int(n)]) if *n <= MAX_RANGE => Value::list((0..*n).map(Value::Int).collect()),
        ("lists.range", [Value::Int(_)]) => return Some(Err(Error::other("list is too long"))),
        _ => return None,
    }))
}
