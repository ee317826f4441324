//! Operators and functions of CEL itself, and the way to the libraries.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use crate::eval::{Error, Evaluated};
use crate::libraries::authorizer::Host;
use crate::libraries::{self, lists, strings};
use crate::time;
use crate::value::{Native, Value};

/// What a call costs, by what its arguments hold, as Kubernetes counts.
pub fn cost(name: &str, args: &[Value<'_>]) -> u64 {
    let size = |v: &Value<'_>| match v {
        Value::String(s) => s.len() as u64,
        Value::Bytes(b) => b.len() as u64,
        other => other.len().unwrap_or(1) as u64,
    };
    let tenth = |n: u64| n.div_ceil(10).max(1);
    let all: u64 = args.iter().map(size).sum();
    let first = args.first().map_or(1, size);
    match name {
        "matches" | "find" | "findAll" => {
            let pattern = args.get(1).map_or(1, size);
            tenth(first + 1).saturating_mul(pattern.div_ceil(4).max(1))
        }
        "contains" => tenth(first).saturating_mul(tenth(args.get(1).map_or(1, size))),
        "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" => {
            tenth(args.iter().map(size).min().unwrap_or(1)).max(deep(args))
        }
        "@in" => args.get(1).map_or(1, size),
        "_+_" => match args.first() {
            Some(Value::String(_) | Value::Bytes(_)) => tenth(all),
            _ => 1,
        },
        "sets.contains" | "sets.equivalent" | "sets.intersects" => {
            first.saturating_mul(args.get(1).map_or(1, size)).max(1)
        }
        "distinct" => first.saturating_mul(first).max(1),
        "isSorted" | "sum" | "min" | "max" | "sort" | "flatten" => first.max(1),
        "lists.range" => {
            args.first().map_or(1, |v| if let Value::Int(n) = v { n.unsigned_abs() } else { 1 }).max(1)
        }
        "check" => 350_000,
        "size" | "charAt" | "_[_]" | "_[?_]" | "hasValue" | "value" | "orValue" | "or" => 1,
        "indexOf" | "lastIndexOf" => first.max(1),
        _ => tenth(all),
    }
}

/// How many values are in lists and maps that are compared.
fn deep(args: &[Value<'_>]) -> u64 {
    fn count(v: &Value<'_>, depth: u32) -> u64 {
        if depth > 64 {
            return 1;
        }
        match (v.items(), v.entries()) {
            (Some(items), _) => 1 + items.iter().map(|i| count(i, depth + 1)).sum::<u64>(),
            (_, Some(entries)) => 1 + entries.iter().map(|(_, v)| count(v, depth + 1)).sum::<u64>(),
            _ => 1,
        }
    }
    match args {
        [a, b] if a.len().is_some() && b.len().is_some() => {
            let (n, m) = (count(a, 0), count(b, 0));
            n.min(m)
        }
        _ => 1,
    }
}

/// A value in texts.
pub fn show(value: &Value<'_>) -> String {
    match value {
        Value::String(s) => s.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Uint(u) => u.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Double(d) => d.to_string(),
        other => other.to_json().map(|j| j.to_string()).unwrap_or_default(),
    }
}

/// The member of what may be missing.
pub fn optional_member<'a>(operand: &Value<'a>, key: &Value<'a>) -> Value<'a> {
    let operand = match operand {
        Value::Optional(None) => return Value::Optional(None),
        Value::Optional(Some(inner)) => (**inner).clone(),
        other => other.clone(),
    };
    let found = match (&operand, key) {
        (list, Value::Int(i)) if list.is_list() => usize::try_from(*i).ok().and_then(|i| list.item(i)),
        (map, key) => map.member(key),
    };
    match found {
        Some(Value::Optional(inner)) => Value::Optional(inner),
        found => Value::Optional(found.map(Arc::new)),
    }
}

fn overflow() -> Error {
    Error::other("integer overflow")
}

fn arithmetic<'a>(name: &str, a: &Value<'a>, b: &Value<'a>) -> Evaluated<'a> {
    Ok(match (a, b) {
        (Value::Int(x), Value::Int(y)) => Value::Int(match name {
            "_+_" => x.checked_add(*y).ok_or_else(overflow)?,
            "_-_" => x.checked_sub(*y).ok_or_else(overflow)?,
            "_*_" => x.checked_mul(*y).ok_or_else(overflow)?,
            "_/_" if *y == 0 => return Err(Error::other("division by zero")),
            "_/_" => x.checked_div(*y).ok_or_else(overflow)?,
            _ if *y == 0 => return Err(Error::other("modulus by zero")),
            _ => x.checked_rem(*y).ok_or_else(overflow)?,
        }),
        (Value::Uint(x), Value::Uint(y)) => {
            let overflow = || Error::other("unsigned integer overflow");
            Value::Uint(match name {
                "_+_" => x.checked_add(*y).ok_or_else(overflow)?,
                "_-_" => x.checked_sub(*y).ok_or_else(overflow)?,
                "_*_" => x.checked_mul(*y).ok_or_else(overflow)?,
                "_/_" => x.checked_div(*y).ok_or_else(|| Error::other("division by zero"))?,
                _ => x.checked_rem(*y).ok_or_else(|| Error::other("modulus by zero"))?,
            })
        }
        (Value::Double(x), Value::Double(y)) => Value::Double(match name {
            "_+_" => x + y,
            "_-_" => x - y,
            "_*_" => x * y,
            "_/_" => x / y,
            _ => return Err(Error::NoSuchOverload),
        }),
        (Value::String(x), Value::String(y)) if name == "_+_" => Value::text(format!("{x}{y}")),
        (Value::Bytes(x), Value::Bytes(y)) if name == "_+_" => Value::Bytes([&x[..], &y[..]].concat().into()),
        (x, y) if name == "_+_" && x.is_list() && y.is_list() => {
            let mut items = x.items().unwrap_or_default();
            items.extend(y.items().unwrap_or_default());
            Value::list(items)
        }
        (Value::Duration(x), Value::Duration(y)) => Value::Duration(
            match name {
                "_+_" => x.checked_add(*y),
                "_-_" => x.checked_sub(*y),
                _ => return Err(Error::NoSuchOverload),
            }
            .ok_or_else(|| Error::other("duration overflow"))?,
        ),
        (Value::Timestamp(t), Value::Duration(d)) | (Value::Duration(d), Value::Timestamp(t))
            if name == "_+_" =>
        {
            Value::Timestamp(t.checked_add(*d).map_err(|_| Error::other("timestamp overflow"))?)
        }
        (Value::Timestamp(t), Value::Duration(d)) if name == "_-_" => {
            Value::Timestamp(t.checked_sub(*d).map_err(|_| Error::other("timestamp overflow"))?)
        }
        (Value::Timestamp(x), Value::Timestamp(y)) if name == "_-_" => Value::Duration(x.duration_since(*y)),
        _ => return Err(Error::NoSuchOverload),
    })
}

fn ordered<'a>(name: &str, a: &Value<'a>, b: &Value<'a>) -> Evaluated<'a> {
    let comparable =
        (a.is_number() && b.is_number()) || std::mem::discriminant(a) == std::mem::discriminant(b);
    if !comparable
        || a.len().is_some()
        || matches!(a, Value::Null | Value::Optional(_) | Value::Native(_) | Value::Type(_))
    {
        return Err(Error::NoSuchOverload);
    }
    let order = a.compare(b);
    Ok(Value::Bool(match name {
        "_<_" => order.is_some_and(|o| o.is_lt()),
        "_<=_" => order.is_some_and(|o| o.is_le()),
        "_>_" => order.is_some_and(|o| o.is_gt()),
        _ => order.is_some_and(|o| o.is_ge()),
    }))
}

fn index<'a>(operand: &Value<'a>, key: &Value<'a>) -> Evaluated<'a> {
    match (operand, key) {
        (Value::Optional(_), _) => Ok(optional_member(operand, key)),
        (list, key) if list.is_list() => {
            let at = match key {
                Value::Int(i) => *i,
                Value::Uint(u) => i64::try_from(*u).unwrap_or(i64::MAX),
                Value::Double(d) if d.fract() == 0.0 => *d as i64,
                _ => return Err(Error::NoSuchOverload),
            };
            let found = usize::try_from(at).ok().and_then(|i| list.item(i));
            found.ok_or_else(|| Error::other(format!("index out of bounds: {at}")))
        }
        (map @ (Value::Map(_) | Value::JsonMap(..)), key) => {
            map.member(key).ok_or_else(|| Error::NoSuchKey(show(key)))
        }
        _ => Err(Error::NoSuchOverload),
    }
}

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null | Value::Optional(None) | Value::Bool(false) | Value::Int(0) | Value::Uint(0) => true,
        Value::Double(d) => *d == 0.0,
        Value::String(s) => s.is_empty(),
        Value::Bytes(b) => b.is_empty(),
        Value::Duration(d) => d.is_zero(),
        other => other.len() == Some(0),
    }
}

/// Calls a function. `member`: on its first argument.
pub fn call<'a>(name: &str, member: bool, args: Vec<Value<'a>>, host: &dyn Host) -> Evaluated<'a> {
    if let Some(done) = core(name, &args) {
        return done;
    }
    let found = match args.first() {
        Some(Value::String(_)) if member => strings::call(name, &args),
        Some(first) if member && first.is_list() => lists::member(name, &args),
        _ => None,
    };
    found.or_else(|| libraries::call(name, member, &args, host)).unwrap_or(Err(Error::NoSuchOverload))
}

fn core<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    Some(match (name, args) {
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", [a, b]) => arithmetic(name, a, b),
        ("_==_", [a, b]) => Ok(Value::Bool(a.equal(b))),
        ("_!=_", [a, b]) => Ok(Value::Bool(!a.equal(b))),
        ("_<_" | "_<=_" | "_>_" | "_>=_", [a, b]) => ordered(name, a, b),
        ("!_", [Value::Bool(b)]) => Ok(Value::Bool(!b)),
        ("-_", [Value::Int(i)]) => i.checked_neg().map(Value::Int).ok_or_else(overflow),
        ("-_", [Value::Double(d)]) => Ok(Value::Double(-d)),
        ("@in", [item, list]) if list.is_list() => {
            let n = list.len().unwrap_or(0);
            Ok(Value::Bool((0..n).any(|i| list.item(i).is_some_and(|v| v.equal(item)))))
        }
        ("@in", [key, map @ (Value::Map(_) | Value::JsonMap(..))]) => {
            Ok(Value::Bool(map.member(key).is_some()))
        }
        ("_[_]", [operand, key]) => index(operand, key),
        ("_[?_]", [operand, key]) => Ok(optional_member(operand, key)),
        ("size", [Value::String(s)]) => Ok(Value::Int(i64::try_from(s.chars().count()).unwrap_or(i64::MAX))),
        ("size", [Value::Bytes(b)]) => Ok(Value::Int(i64::try_from(b.len()).unwrap_or(i64::MAX))),
        ("size", [other]) if other.len().is_some() => {
            Ok(Value::Int(i64::try_from(other.len().unwrap_or(0)).unwrap_or(i64::MAX)))
        }
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Value::Type(value.type_name())),
        ("int" | "uint" | "double" | "string" | "bytes" | "bool" | "duration" | "timestamp", [value]) => {
            return convert(name, value);
        }
        ("optional.of", [value]) => Ok(Value::some(value.clone())),
        ("optional.ofNonZeroValue", [value]) => {
            Ok(if is_zero(value) { Value::Optional(None) } else { Value::some(value.clone()) })
        }
        ("optional.none", []) => Ok(Value::Optional(None)),
        ("hasValue", [Value::Optional(value)]) => Ok(Value::Bool(value.is_some())),
        ("value", [Value::Optional(value)]) => match value {
            Some(value) => Ok((**value).clone()),
            None => Err(Error::other("optional.none() dereference")),
        },
        ("or", [a @ Value::Optional(value), b]) => Ok(if value.is_some() { a.clone() } else { b.clone() }),
        ("orValue", [Value::Optional(value), other]) => {
            Ok(value.as_ref().map_or_else(|| other.clone(), |v| (**v).clone()))
        }
        ("matches", [Value::String(text), Value::String(pattern)]) => {
            strings::regex(pattern).map(|r| Value::Bool(r.is_match(text)))
        }
        (name, [Value::Timestamp(t)]) if name.starts_with("get") => calendar(name, t, "UTC"),
        (name, [Value::Timestamp(t), Value::String(zone)]) if name.starts_with("get") => {
            calendar(name, t, zone)
        }
        (name, [Value::Duration(d)]) if name.starts_with("get") => Ok(Value::Int(match name {
            "getHours" => d.as_hours(),
            "getMinutes" => d.as_mins(),
            "getSeconds" => d.as_secs(),
            "getMilliseconds" => i64::from(d.subsec_millis()),
            _ => return None,
        })),
        _ => return None,
    })
}

fn calendar<'a>(name: &str, t: &Timestamp, zone: &str) -> Evaluated<'a> {
    let zone = offset(zone)
        .map_or_else(|| TimeZone::get(zone), |o| Ok(o.to_time_zone()))
        .map_err(|_| Error::other(format!("unknown time zone {zone}")))?;
    let at = t.to_zoned(zone);
    Ok(Value::Int(i64::from(match name {
        "getFullYear" => at.year(),
        "getMonth" => i16::from(at.month()) - 1,
        "getDayOfYear" => at.day_of_year() - 1,
        "getDayOfMonth" => i16::from(at.day()) - 1,
        "getDate" => i16::from(at.day()),
        "getDayOfWeek" => i16::from(at.weekday().to_sunday_zero_offset()),
        "getHours" => i16::from(at.hour()),
        "getMinutes" => i16::from(at.minute()),
        "getSeconds" => i16::from(at.second()),
        "getMilliseconds" => at.millisecond(),
        _ => return Err(Error::NoSuchOverload),
    })))
}

/// `+02:00`, `-08:30`.
fn offset(text: &str) -> Option<Offset> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("-", rest) => (-1, rest),
        ("+", rest) => (1, rest),
        _ => (1, text),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let seconds =
        hours.parse::<i32>().ok()?.checked_mul(3600)? + minutes.parse::<i32>().ok()?.checked_mul(60)?;
    Offset::from_seconds(sign * seconds).ok()
}

fn convert<'a>(to: &str, value: &Value<'a>) -> Option<Evaluated<'a>> {
    let failed = || Error::other(format!("type conversion error from '{}' to '{to}'", value.type_name()));
    let range = || Error::other("range error");
    Some(match (to, value) {
        ("int", Value::Int(_)) | ("uint", Value::Uint(_)) | ("double", Value::Double(_)) => Ok(value.clone()),
        ("string", Value::String(_)) | ("bytes", Value::Bytes(_)) | ("bool", Value::Bool(_)) => {
            Ok(value.clone())
        }
        ("duration", Value::Duration(_)) | ("timestamp", Value::Timestamp(_)) => Ok(value.clone()),
        ("int", Value::Uint(u)) => i64::try_from(*u).map(Value::Int).map_err(|_| overflow()),
        ("int", Value::Double(d)) if d.abs() < 9.2e18 => Ok(Value::Int(*d as i64)),
        ("int", Value::Double(_)) => Err(overflow()),
        ("int", Value::String(s)) => s.parse().map(Value::Int).map_err(|_| failed()),
        ("int", Value::Timestamp(t)) => Ok(Value::Int(t.as_second())),
        ("int", Value::Duration(d)) => Ok(Value::Int(i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))),
        ("uint", Value::Int(i)) => {
            u64::try_from(*i).map(Value::Uint).map_err(|_| Error::other("unsigned integer overflow"))
        }
        ("uint", Value::Double(d)) if *d >= 0.0 && *d < 1.8e19 => Ok(Value::Uint(*d as u64)),
        ("uint", Value::Double(_)) => Err(Error::other("unsigned integer overflow")),
        ("uint", Value::String(s)) => s.parse().map(Value::Uint).map_err(|_| failed()),
        ("double", Value::Int(i)) => Ok(Value::Double(*i as f64)),
        ("double", Value::Uint(u)) => Ok(Value::Double(*u as f64)),
        ("double", Value::String(s)) => s.parse().map(Value::Double).map_err(|_| failed()),
        ("string", Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_)) => {
            Ok(Value::text(show(value)))
        }
        ("string", Value::Bytes(b)) => String::from_utf8(b.to_vec())
            .map(Value::text)
            .map_err(|_| Error::other("invalid UTF-8 in bytes, cannot convert to string")),
        ("string", Value::Timestamp(t)) => Ok(Value::text(t.to_string())),
        ("string", Value::Duration(d)) => Ok(Value::text(time::show_duration(d))),
        ("string", Value::Native(n)) => match &**n {
            Native::Quantity(q) => Ok(Value::text(q.canonical())),
            Native::Ip(ip) => Ok(Value::text(ip.to_string())),
            Native::Cidr(ip, bits) => Ok(Value::text(format!("{ip}/{bits}"))),
            Native::Semver(v) => Ok(Value::text(v.to_string())),
            _ => Err(Error::NoSuchOverload),
        },
        ("bytes", Value::String(s)) => Ok(Value::Bytes(s.as_bytes().into())),
        ("bool", Value::String(s)) => match s.as_ref() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(failed()),
        },
        ("duration", Value::String(s)) => time::duration(s).map(Value::Duration).ok_or_else(failed),
        ("timestamp", Value::String(s)) => s.parse().map(Value::Timestamp).map_err(|_| failed()),
        ("timestamp", Value::Int(i)) => Timestamp::from_second(*i).map(Value::Timestamp).map_err(|_| range()),
        _ => Err(Error::NoSuchOverload),
    })
}

/// A text of an argument.
pub fn text<'v>(value: &'v Value<'_>) -> Result<&'v str, Error> {
    if let Value::String(s) = value { Ok(s) } else { Err(Error::NoSuchOverload) }
}

/// A number of an argument.
pub fn int(value: &Value<'_>) -> Result<i64, Error> {
    if let Value::Int(i) = value { Ok(*i) } else { Err(Error::NoSuchOverload) }
}

/// A text that was borrowed or computed.
pub fn owned<'a>(text: &str) -> Value<'a> {
    Value::String(Cow::Owned(text.to_string()))
}

/// Nothing, as a length of time.
pub const NO_TIME: SignedDuration = SignedDuration::ZERO;
