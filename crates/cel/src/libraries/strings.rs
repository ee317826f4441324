//! Texts and regular expressions.

use std::cell::RefCell;
use std::collections::HashMap;

use regex::{Regex, RegexBuilder};

use crate::eval::{Error, Evaluated};
use crate::functions::{int, owned, show, text};
use crate::time;
use crate::value::Value;

/// How many compiled expressions are kept.
const KEPT: usize = 64;

thread_local! {
    static COMPILED: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// A regular expression, compiled once.
pub fn regex(pattern: &str) -> Result<Regex, Error> {
    if let Some(known) = COMPILED.with_borrow(|c| c.get(pattern).cloned()) {
        return Ok(known);
    }
    let made = RegexBuilder::new(pattern).size_limit(1 << 20).build().map_err(|e| {
        let text = e.to_string();
        let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string();
        Error::other(format!("error parsing regexp: {why}: `{pattern}`"))
    })?;
    COMPILED.with_borrow_mut(|c| {
        if c.len() >= KEPT {
            c.clear();
        }
        c.insert(pattern.to_string(), made.clone());
    });
    Ok(made)
}

/// Texts of a list in one.
pub fn join<'a>(items: &[Value<'a>], between: &str) -> Evaluated<'a> {
    let texts: Result<Vec<&str>, Error> = items.iter().map(text).collect();
    Ok(Value::text(texts?.join(between)))
}

fn range_error(at: i64) -> Error {
    Error::other(format!("index out of range: {at}"))
}

fn position(chars: &[char], wanted: &[char], from: usize) -> Option<usize> {
    if wanted.is_empty() {
        return Some(from);
    }
    (from..=chars.len().checked_sub(wanted.len())?).find(|i| chars[*i..].starts_with(wanted))
}

fn last_position(chars: &[char], wanted: &[char], from: usize) -> Option<usize> {
    if wanted.is_empty() {
        return Some(from);
    }
    (0..=chars.len().checked_sub(wanted.len())?.min(from)).rev().find(|i| chars[*i..].starts_with(wanted))
}

fn as_int<'a>(at: Option<usize>) -> Value<'a> {
    Value::Int(at.and_then(|i| i64::try_from(i).ok()).unwrap_or(-1))
}

/// On a text.
pub fn call<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let Value::String(subject) = args.first()? else { return None };
    of_text(name, subject, &args[1..]).transpose()
}

fn of_text<'a>(name: &str, s: &str, rest: &[Value<'a>]) -> Result<Option<Value<'a>>, Error> {
    let chars = || s.chars().collect::<Vec<char>>();
    let in_range =
        |at: i64, n: usize| usize::try_from(at).ok().filter(|i| *i <= n).ok_or_else(|| range_error(at));
    Ok(Some(match (name, rest) {
        ("contains", [x]) => Value::Bool(s.contains(text(x)?)),
        ("startsWith", [x]) => Value::Bool(s.starts_with(text(x)?)),
        ("endsWith", [x]) => Value::Bool(s.ends_with(text(x)?)),
        ("charAt", [at]) => {
            let chars = chars();
            let at = in_range(int(at)?, chars.len())?;
            Value::text(chars.get(at).map(char::to_string).unwrap_or_default())
        }
        ("indexOf", [x]) => as_int(position(&chars(), &text(x)?.chars().collect::<Vec<_>>(), 0)),
        ("indexOf", [x, from]) => {
            let chars = chars();
            let from = in_range(int(from)?, chars.len())?;
            as_int(position(&chars, &text(x)?.chars().collect::<Vec<_>>(), from))
        }
        ("lastIndexOf", [x]) => {
            let chars = chars();
            as_int(last_position(&chars, &text(x)?.chars().collect::<Vec<_>>(), chars.len()))
        }
        ("lastIndexOf", [x, from]) => {
            let chars = chars();
            let from = in_range(int(from)?, chars.len())?;
            as_int(last_position(&chars, &text(x)?.chars().collect::<Vec<_>>(), from))
        }
        ("lowerAscii", []) => Value::text(s.to_ascii_lowercase()),
        ("upperAscii", []) => Value::text(s.to_ascii_uppercase()),
        ("replace", [old, new]) => Value::text(s.replace(text(old)?, text(new)?)),
        ("replace", [old, new, n]) => {
            let n = int(n)?;
            Value::text(match usize::try_from(n) {
                Ok(n) => s.replacen(text(old)?, text(new)?, n),
                Err(_) => s.replace(text(old)?, text(new)?),
            })
        }
        ("split", [by]) => Value::list(pieces(s, text(by)?, -1)),
        ("split", [by, n]) => Value::list(pieces(s, text(by)?, int(n)?)),
        ("substring", [from]) => {
            let chars = chars();
            let from = in_range(int(from)?, chars.len())?;
            Value::text(chars[from..].iter().collect::<String>())
        }
        ("substring", [from, to]) => {
            let chars = chars();
            let (a, b) = (int(from)?, int(to)?);
            if a > b {
                return Err(Error::other(format!("invalid substring range. start: {a}, end: {b}")));
            }
            let (a, b) = (in_range(a, chars.len())?, in_range(b, chars.len())?);
            Value::text(chars[a..b].iter().collect::<String>())
        }
        ("trim", []) => owned(s.trim()),
        ("reverse", []) => Value::text(s.chars().rev().collect::<String>()),
        ("find", [pattern]) => owned(regex(text(pattern)?)?.find(s).map_or("", |m| m.as_str())),
        ("findAll", [pattern]) => {
            Value::list(regex(text(pattern)?)?.find_iter(s).map(|m| owned(m.as_str())).collect())
        }
        ("findAll", [pattern, n]) => {
            let limit = usize::try_from(int(n)?).unwrap_or(usize::MAX);
            Value::list(regex(text(pattern)?)?.find_iter(s).take(limit).map(|m| owned(m.as_str())).collect())
        }
        ("format", [list]) => Value::text(formatted(s, &list.items().ok_or(Error::NoSuchOverload)?)?),
        _ => return Ok(None),
    }))
}

fn pieces<'a>(s: &str, by: &str, n: i64) -> Vec<Value<'a>> {
    match usize::try_from(n) {
        Ok(0) => Vec::new(),
        Ok(n) if by.is_empty() => {
            let mut chars = s.chars();
            let mut out: Vec<Value<'a>> =
                chars.by_ref().take(n - 1).map(|c| owned(c.encode_utf8(&mut [0; 4]))).collect();
            if !chars.as_str().is_empty() {
                out.push(owned(chars.as_str()));
            }
            out
        }
        Err(_) if by.is_empty() => s.chars().map(|c| owned(c.encode_utf8(&mut [0; 4]))).collect(),
        Ok(n) => s.splitn(n, by).map(owned).collect(),
        Err(_) => s.split(by).map(owned).collect(),
    }
}

/// A value as `%s` shows it.
fn plain(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Duration(d) => time::show_duration(d),
        Value::Timestamp(t) => t.to_string(),
        Value::Bytes(b) => String::from_utf8_lossy(b).into_owned(),
        Value::Type(t) => t.to_string(),
        list if list.is_list() => {
            let items: Vec<String> = list.items().unwrap_or_default().iter().map(plain).collect();
            format!("[{}]", items.join(", "))
        }
        map @ (Value::Map(_) | Value::JsonMap(..)) => {
            let mut items: Vec<String> = map
                .entries()
                .unwrap_or_default()
                .iter()
                .map(|(k, v)| format!("{}: {}", plain(k), plain(v)))
                .collect();
            items.sort();
            format!("{{{}}}", items.join(", "))
        }
        other => show(other),
    }
}

fn formatted(template: &str, args: &[Value<'_>]) -> Result<String, Error> {
    let mut out = String::new();
    let mut args = args.iter().enumerate();
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                digits.push(d);
            }
            precision = digits.parse::<usize>().ok().filter(|p| *p <= 100);
        }
        let Some(verb) = chars.next() else {
            return Err(Error::other("could not parse formatting clause: unexpected end of string"));
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some((i, arg)) = args.next() else {
            let n = args.len();
            return Err(Error::other(format!("index {n} out of range")));
        };
        let wrong = |clause: &str| {
            Error::other(format!(
                "error during formatting: {clause} clause cannot be used on argument {i} of type {}",
                arg.type_name()
            ))
        };
        match verb {
            's' => out.push_str(&plain(arg)),
            'd' => match arg {
                Value::Int(n) => out.push_str(&n.to_string()),
                Value::Uint(n) => out.push_str(&n.to_string()),
                Value::Double(d) if d.is_nan() || d.is_infinite() => out.push_str(&plain(arg)),
                _ => return Err(wrong("decimal")),
            },
            'f' | 'e' => {
                let n = match arg {
                    Value::Int(n) => *n as f64,
                    Value::Uint(n) => *n as f64,
                    Value::Double(d) => *d,
                    _ => return Err(wrong("fixed-point")),
                };
                let p = precision.unwrap_or(6);
                out.push_str(&if verb == 'f' { format!("{n:.p$}") } else { format!("{n:.p$e}") });
            }
            'b' => match arg {
                Value::Bool(b) => out.push(if *b { '1' } else { '0' }),
                Value::Int(n) if *n < 0 => out.push_str(&format!("-{:b}", n.unsigned_abs())),
                Value::Int(n) => out.push_str(&format!("{n:b}")),
                Value::Uint(n) => out.push_str(&format!("{n:b}")),
                _ => return Err(wrong("binary")),
            },
            'o' => match arg {
                Value::Int(n) if *n < 0 => out.push_str(&format!("-{:o}", n.unsigned_abs())),
                Value::Int(n) => out.push_str(&format!("{n:o}")),
                Value::Uint(n) => out.push_str(&format!("{n:o}")),
                _ => return Err(wrong("octal")),
            },
            'x' | 'X' => {
                let hex = match arg {
                    Value::Int(n) if *n < 0 => format!("-{:x}", n.unsigned_abs()),
                    Value::Int(n) => format!("{n:x}"),
                    Value::Uint(n) => format!("{n:x}"),
                    Value::String(s) => s.bytes().map(|b| format!("{b:02x}")).collect(),
                    Value::Bytes(b) => b.iter().map(|b| format!("{b:02x}")).collect(),
                    _ => return Err(wrong("hex")),
                };
                out.push_str(&if verb == 'X' { hex.to_uppercase() } else { hex });
            }
            other => {
                return Err(Error::other(format!(
                    "could not parse formatting clause: unrecognized formatting clause \"{other}\""
                )));
            }
        }
    }
    Ok(out)
}

/// By a name of its own.
pub fn global<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    match (name, args) {
        ("strings.quote", [Value::String(s)]) => Some(Ok(Value::text(format!("{s:?}")))),
        ("jsonpatch.escapeKey", [Value::String(s)]) => {
            Some(Ok(Value::text(s.replace('~', "~0").replace('/', "~1"))))
        }
        _ => None,
    }
}
