//! Types of expressions, and what is wrong with them, in the words of Kubernetes' compiler.

use std::collections::{BTreeMap, HashMap};

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};

use crate::parse::{Parsed, issue};
use crate::signatures;
use crate::types::Type;

/// Names of types that are values.
pub const TYPE_NAMES: &[&str] = &[
    "bool",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "list",
    "map",
    "null_type",
    "type",
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
];

/// The type of an expression; the faults, each in a few lines.
pub fn check(parsed: &Parsed, source: &str, variables: &BTreeMap<String, Type>) -> Result<Type, String> {
    let mut checker = Checker { parsed, source, scopes: Vec::new(), variables, faults: Vec::new() };
    let found = checker.of(&parsed.expr);
    if checker.faults.is_empty() {
        return Ok(found);
    }
    checker.faults.sort();
    checker.faults.dedup();
    let shown = checker.faults.iter().map(|(line, column, text)| issue(source, *line, *column, text));
    Err(shown.collect::<Vec<_>>().join("\n"))
}

struct Checker<'c> {
    parsed: &'c Parsed,
    source: &'c str,
    scopes: Vec<(String, Type)>,
    variables: &'c BTreeMap<String, Type>,
    faults: Vec<(usize, usize, String)>,
}

type Known = HashMap<u8, Type>;

/// Whether a type can be had where another is wanted; parameters of the wanted one are found out.
fn fits(wanted: &Type, found: &Type, known: &mut Known) -> bool {
    match (wanted, found) {
        (Type::Param(letter), found) => match known.get(letter).cloned() {
            None => {
                known.insert(*letter, found.clone());
                true
            }
            Some(before) => match join(&before, found) {
                Some(both) => {
                    known.insert(*letter, both);
                    true
                }
                None => false,
            },
        },
        (Type::Dyn, _) | (_, Type::Dyn | Type::Param(_)) => true,
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => fits(a, b, known),
        (Type::Map(k, v), Type::Map(l, w)) => fits(k, l, known) && fits(v, w, known),
        (a, b) => a == b,
    }
}

/// The type that both are; none where they have nothing in common.
fn join(a: &Type, b: &Type) -> Option<Type> {
    Some(match (a, b) {
        (Type::Dyn, _) | (_, Type::Dyn) => Type::Dyn,
        (Type::Param(_), other) | (other, Type::Param(_)) => other.clone(),
        (Type::List(x), Type::List(y)) => Type::list(join(x, y)?),
        (Type::Optional(x), Type::Optional(y)) => Type::optional(join(x, y)?),
        (Type::Map(k, v), Type::Map(l, w)) => Type::Map(join(k, l)?.into(), join(v, w)?.into()),
        // Whatever has no value of its own can be compared with null.
        (
            Type::Null,
            other
            @ (Type::Object(_) | Type::Timestamp | Type::Duration | Type::Optional(_) | Type::Native(_)),
        )
        | (
            other
            @ (Type::Object(_) | Type::Timestamp | Type::Duration | Type::Optional(_) | Type::Native(_)),
            Type::Null,
        ) => other.clone(),
        (a, b) if a == b => a.clone(),
        _ => return None,
    })
}

fn settle(type_: &Type, known: &Known) -> Type {
    match type_ {
        Type::Param(letter) => known.get(letter).cloned().unwrap_or(Type::Dyn),
        Type::List(of) => Type::list(settle(of, known)),
        Type::Optional(of) => Type::optional(settle(of, known)),
        Type::Map(k, v) => Type::Map(settle(k, known).into(), settle(v, known).into()),
        other => other.clone(),
    }
}

/// The name that an expression spells: `a.b.c`.
pub fn path(expr: &IdedExpr) -> Option<String> {
    match &expr.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(s) if !s.test => Some(format!("{}.{}", path(&s.operand)?, s.field)),
        _ => None,
    }
}

/// Whether an expression uses a variable (one of its own of that name is taken for it, too).
pub fn uses(expr: &IdedExpr, variable: &str) -> bool {
    let any = |all: &[&IdedExpr]| all.iter().any(|e| uses(e, variable));
    match &expr.expr {
        Expr::Ident(name) => name == variable,
        Expr::Select(s) => uses(&s.operand, variable),
        Expr::Call(c) => {
            c.target.as_ref().is_some_and(|t| uses(t, variable)) || c.args.iter().any(|a| uses(a, variable))
        }
        Expr::List(l) => l.elements.iter().any(|e| uses(e, variable)),
        Expr::Map(m) => m.entries.iter().any(|e| entry_uses(&e.expr, variable)),
        Expr::Struct(s) => s.entries.iter().any(|e| entry_uses(&e.expr, variable)),
        Expr::Comprehension(c) => any(&[&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result]),
        Expr::Literal(_) | Expr::Unspecified => false,
    }
}

fn entry_uses(entry: &EntryExpr, variable: &str) -> bool {
    match entry {
        EntryExpr::MapEntry(e) => uses(&e.key, variable) || uses(&e.value, variable),
        EntryExpr::StructField(f) => uses(&f.value, variable),
    }
}

impl Checker<'_> {
    fn fault(&mut self, expr: &IdedExpr, text: String) -> Type {
        let offset = self.parsed.info.offset_for(expr.id).map_or(0, |(start, _)| start as usize);
        let before: String = self.source.chars().take(offset).collect();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        self.faults.push((line, column, text));
        Type::Dyn
    }

    fn variable(&self, name: &str) -> Option<Type> {
        let own = self.scopes.iter().rev().find(|(n, _)| n == name).map(|(_, t)| t.clone());
        own.or_else(|| self.variables.get(name).cloned())
    }

    fn of(&mut self, expr: &IdedExpr) -> Type {
        match &expr.expr {
            Expr::Unspecified => Type::Dyn,
            Expr::Literal(l) => match l {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Bytes(_) => Type::Bytes,
                LiteralValue::Double(_) => Type::Double,
                LiteralValue::Int(_) => Type::Int,
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::String,
                LiteralValue::UInt(_) => Type::Uint,
            },
            Expr::Ident(name) => match self.variable(name) {
                Some(found) => found,
                None if TYPE_NAMES.contains(&name.as_str()) => Type::Type,
                None => self.fault(expr, format!("undeclared reference to '{name}' (in container '')")),
            },
            Expr::Select(select) => {
                if let Some(dotted) = path(expr) {
                    if let Some(found) = self.variables.get(&dotted) {
                        return found.clone();
                    }
                    if TYPE_NAMES.contains(&dotted.as_str()) {
                        return Type::Type;
                    }
                }
                let operand = self.of(&select.operand);
                let found = self.field(expr, &operand, &select.field);
                if select.test { Type::Bool } else { found }
            }
            Expr::Call(call) => self.call(expr, call),
            Expr::List(list) => {
                let mut item: Option<Type> = None;
                for (i, element) in list.elements.iter().enumerate() {
                    let mut found = self.of(element);
                    if list.optional_indices.contains(&i)
                        && let Type::Optional(inner) = &found
                    {
                        found = (**inner).clone();
                    }
                    item = Some(match item {
                        None => found,
                        Some(before) => join(&before, &found).unwrap_or(Type::Dyn),
                    });
                }
                Type::list(item.unwrap_or(Type::Param(b'_')))
            }
            Expr::Map(map) => {
                let (mut key, mut value): (Option<Type>, Option<Type>) = (None, None);
                for entry in &map.entries {
                    let EntryExpr::MapEntry(e) = &entry.expr else { continue };
                    let k = self.of(&e.key);
                    let mut v = self.of(&e.value);
                    if e.optional
                        && let Type::Optional(inner) = &v
                    {
                        v = (**inner).clone();
                    }
                    key = Some(key.map_or(k.clone(), |b| join(&b, &k).unwrap_or(Type::Dyn)));
                    value = Some(value.map_or(v.clone(), |b| join(&b, &v).unwrap_or(Type::Dyn)));
                }
                let unknown = Type::Param(b'_');
                Type::Map(key.unwrap_or(unknown.clone()).into(), value.unwrap_or(unknown).into())
            }
            Expr::Struct(s) => {
                for entry in &s.entries {
                    if let EntryExpr::StructField(f) = &entry.expr {
                        self.of(&f.value);
                    }
                }
                let known = s.type_name.split('.').next().is_some_and(|n| n == "Object" || n == "JSONPatch");
                if known && self.variable("@patches").is_some() {
                    return Type::Dyn;
                }
                self.fault(expr, format!("undeclared reference to '{}' (in container '')", s.type_name))
            }
            Expr::Comprehension(c) => self.comprehension(c),
        }
    }

    fn field(&mut self, expr: &IdedExpr, operand: &Type, name: &str) -> Type {
        match operand.field(name) {
            Some(found) => found,
            None => match operand {
                Type::Param(_) => Type::Dyn,
                Type::Object(_) | Type::Optional(_) => self.fault(expr, format!("undefined field '{name}'")),
                other => self.fault(expr, format!("type '{other}' does not support field selection")),
            },
        }
    }

    fn call(&mut self, expr: &IdedExpr, call: &CallExpr) -> Type {
        if matches!(call.func_name.as_str(), operators::OPT_SELECT) {
            let operand = call.args.first().map_or(Type::Dyn, |a| self.of(a));
            let Some(Expr::Literal(LiteralValue::String(name))) = call.args.get(1).map(|a| &a.expr) else {
                return Type::optional(Type::Dyn);
            };
            let found = self.field(expr, &operand, name.inner());
            return if matches!(found, Type::Optional(_)) { found } else { Type::optional(found) };
        }
        // What stands in front of the dot may be a part of the function's name.
        let qualified = call.target.as_ref().and_then(|t| path(t)).filter(|p| {
            let root = p.split('.').next().unwrap_or(p);
            self.variable(root).is_none() && !signatures::of(&format!("{p}.{}", call.func_name)).is_empty()
        });
        let (name, member) = match &qualified {
            Some(namespace) => (format!("{namespace}.{}", call.func_name), false),
            None => (call.func_name.clone(), call.target.is_some()),
        };
        let mut args: Vec<Type> = Vec::new();
        if qualified.is_none()
            && let Some(target) = &call.target
        {
            args.push(self.of(target));
        }
        args.extend(call.args.iter().map(|a| self.of(a)).collect::<Vec<_>>());
        let signatures = signatures::of(&name);
        if signatures.is_empty() {
            return self.fault(expr, format!("undeclared reference to '{name}' (in container '')"));
        }
        let mut results = Vec::new();
        for s in signatures.iter().filter(|s| s.member == member && s.args.len() == args.len()) {
            let mut known = Known::new();
            if s.args.iter().zip(&args).all(|(wanted, found)| fits(wanted, found, &mut known)) {
                results.push(settle(&s.result, &known));
            }
        }
        match results.split_first() {
            Some((first, others)) if others.iter().all(|o| o == first) => first.clone(),
            Some(_) => Type::Dyn,
            None => {
                let shown =
                    |types: &[Type]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let applied = match args.split_first() {
                    Some((target, rest)) if member => format!("{target}.({})", shown(rest)),
                    _ => format!("({})", shown(&args)),
                };
                self.fault(expr, format!("found no matching overload for '{name}' applied to '{applied}'"))
            }
        }
    }

    fn comprehension(&mut self, c: &ComprehensionExpr) -> Type {
        let range = self.of(&c.iter_range);
        let (first, second) = match &range {
            Type::List(item) if c.iter_var2.is_some() => (Type::Int, (**item).clone()),
            Type::List(item) => ((**item).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Param(_) => (Type::Dyn, Type::Dyn),
            other => {
                let text = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.fault(&c.iter_range, text);
                (Type::Dyn, Type::Dyn)
            }
        };
        let depth = self.scopes.len();
        let init = self.of(&c.accu_init);
        self.scopes.push((c.accu_var.clone(), init.clone()));
        self.scopes.push((c.iter_var.clone(), first));
        if let Some(name) = &c.iter_var2 {
            self.scopes.push((name.clone(), second));
        }
        self.of(&c.loop_cond);
        let step = self.of(&c.loop_step);
        // What is collected is known once a step has been seen.
        let collected = join(&init, &step).unwrap_or(Type::Dyn);
        self.scopes.truncate(depth);
        self.scopes.push((c.accu_var.clone(), collected));
        let result = self.of(&c.result);
        self.scopes.truncate(depth);
        result
    }
}
