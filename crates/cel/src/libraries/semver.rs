//! `semver()`.

use std::cmp::Ordering;
use std::fmt;

use crate::eval::{Error, Evaluated};
use crate::value::{Native, Value};

/// A version as <https://semver.org> has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    numbers: [u64; 3],
    pre: Vec<String>,
    build: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build)?;
        }
        Ok(())
    }
}

fn identifiers(text: &str) -> Option<Vec<String>> {
    let good = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    text.split('.').map(|p| good(p).then(|| p.to_string())).collect()
}

/// Reads a version; with `normalize` also `v1.2` and `01.2.3`.
pub fn parse(text: &str, normalize: bool) -> Option<Version> {
    let text = if normalize { text.strip_prefix('v').unwrap_or(text) } else { text };
    let (rest, build) = text.split_once('+').map_or((text, ""), |(r, b)| (r, b));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(c, p)| (c, Some(p)));
    let mut parts: Vec<&str> = core.split('.').collect();
    while normalize && parts.len() < 3 {
        parts.push("0");
    }
    let [major, minor, patch] = parts.as_slice() else { return None };
    let number = |p: &&str| {
        let plain = !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
        let leading = p.len() > 1 && p.starts_with('0') && !normalize;
        if plain && !leading { p.parse().ok() } else { None }
    };
    let pre = match pre {
        Some(pre) => identifiers(pre)?,
        None => Vec::new(),
    };
    if !build.is_empty() {
        identifiers(build)?;
    } else if text.ends_with('+') {
        return None;
    }
    Some(Version { numbers: [number(major)?, number(minor)?, number(patch)?], pre, build: build.to_string() })
}

fn order(a: &Version, b: &Version) -> Ordering {
    a.numbers.cmp(&b.numbers).then_with(|| match (a.pre.is_empty(), b.pre.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => {
            for (x, y) in a.pre.iter().zip(&b.pre) {
                let by = match (x.parse::<u64>(), y.parse::<u64>()) {
                    (Ok(x), Ok(y)) => x.cmp(&y),
                    (Ok(_), Err(_)) => Ordering::Less,
                    (Err(_), Ok(_)) => Ordering::Greater,
                    _ => x.cmp(y),
                };
                if by != Ordering::Equal {
                    return by;
                }
            }
            a.pre.len().cmp(&b.pre.len())
        }
    })
}

/// By a name of its own.
pub fn global<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let (text, normalize) = match args {
        [Value::String(text)] => (text, false),
        [Value::String(text), Value::Bool(normalize)] => (text, *normalize),
        _ => return None,
    };
    match name {
        "semver" => Some(
            parse(text, normalize)
                .map(|v| Value::native(Native::Semver(v)))
                .ok_or_else(|| Error::other(format!("parse error: invalid semver {text:?}"))),
        ),
        "isSemver" => Some(Ok(Value::Bool(parse(text, normalize).is_some()))),
        _ => None,
    }
}

/// On a version.
pub fn member<'a>(name: &str, v: &Version, rest: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let part = |i: usize| Value::Int(i64::try_from(v.numbers[i]).unwrap_or(i64::MAX));
    let other = match rest.first() {
        Some(Value::Native(n)) => match &**n {
            Native::Semver(o) => Some(o),
            _ => None,
        },
        _ => None,
    };
    Some(Ok(match (name, other) {
        ("major", None) => part(0),
        ("minor", None) => part(1),
        ("patch", None) => part(2),
        ("isLessThan", Some(o)) => Value::Bool(order(v, o).is_lt()),
        ("isGreaterThan", Some(o)) => Value::Bool(order(v, o).is_gt()),
        ("compareTo", Some(o)) => Value::Int(order(v, o) as i64),
        _ => return None,
    }))
}
