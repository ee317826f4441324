//! Which functions there are, and for which types. The table is data: a line a signature.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::types::Type;

/// One signature of a function.
#[derive(Debug)]
pub struct Signature {
    /// Whether it is called on a value: that is the first argument then.
    pub member: bool,
    /// Types of the arguments.
    pub args: Vec<Type>,
    /// Type of the result.
    pub result: Type,
}

/// `name arguments -> result`; with a dot in front of the name where it is called on the first argument.
const TABLE: &str = include_str!("signatures.txt");

static ALL: LazyLock<HashMap<&'static str, Vec<Signature>>> = LazyLock::new(|| {
    let mut all: HashMap<&'static str, Vec<Signature>> = HashMap::new();
    for line in TABLE.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        let Some((left, result)) = line.split_once("->") else { continue };
        let mut words = left.split_whitespace();
        let Some(name) = words.next() else { continue };
        let member = name.starts_with('.');
        let name = name.trim_start_matches('.');
        let args = words.map(type_of).collect();
        all.entry(name).or_default().push(Signature { member, args, result: type_of(result.trim()) });
    }
    all
});

/// The signatures of a function.
pub fn of(name: &str) -> &'static [Signature] {
    ALL.get(name).map_or(&[], Vec::as_slice)
}

fn inner<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')
}

fn type_of(text: &str) -> Type {
    if let Some(of) = inner(text, "list") {
        return Type::list(type_of(of));
    }
    if let Some(of) = inner(text, "optional") {
        return Type::optional(type_of(of));
    }
    if let Some((key, value)) = inner(text, "map").and_then(|of| of.split_once(',')) {
        return Type::Map(Arc::new(type_of(key)), Arc::new(type_of(value)));
    }
    match text {
        "null" => Type::Null,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "type" => Type::Type,
        "url" => Type::Native("kubernetes.URL"),
        "quantity" => Type::Native("kubernetes.Quantity"),
        "ip" => Type::Native("net.IP"),
        "cidr" => Type::Native("net.CIDR"),
        "semver" => Type::Native("kubernetes.Semver"),
        "format" => Type::Native("kubernetes.NamedFormat"),
        "authorizer" => Type::Native("kubernetes.authorization.Authorizer"),
        "path_check" => Type::Native("kubernetes.authorization.PathCheck"),
        "group_check" => Type::Native("kubernetes.authorization.GroupCheck"),
        "resource_check" => Type::Native("kubernetes.authorization.ResourceCheck"),
        "decision" => Type::Native("kubernetes.authorization.Decision"),
        letter if letter.len() == 1 => Type::Param(letter.as_bytes()[0]),
        _ => Type::Dyn,
    }
}
