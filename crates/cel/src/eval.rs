//! Evaluation. Every step costs; when the budget is used up, evaluation ends.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};

use crate::check;
use crate::functions;
use crate::libraries::authorizer::{Check, Host};
use crate::parse::INSERT;
use crate::value::Value;
use crate::{Program, signatures};

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// Arguments of types that a function does not take.
    #[error("no such overload")]
    NoSuchOverload,
    /// A map has no such key, an object no such field.
    #[error("no such key: {0}")]
    NoSuchKey(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
    /// One expression costs more than it may.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostLimit,
    /// The authorizer is to be asked first.
    #[error("the authorizer has not been asked yet")]
    Pending(Box<Check>),
}

impl Error {
    /// An error of a text.
    pub fn other(text: impl Into<String>) -> Error {
        Error::Other(text.into())
    }

    /// Whether evaluation ends whatever else the expression says.
    fn is_final(&self) -> bool {
        matches!(self, Error::CostLimit | Error::Pending(_))
    }
}

/// A value or why there is none.
pub type Evaluated<'a> = Result<Value<'a>, Error>;

/// What an evaluation may cost.
#[derive(Debug)]
pub struct Budget {
    /// What this expression has left.
    left: Cell<u64>,
    limit: u64,
}

impl Budget {
    /// A budget.
    pub fn new(limit: u64) -> Budget {
        Budget { left: Cell::new(limit), limit }
    }

    /// Takes something out of it.
    pub fn spend(&self, cost: u64) -> Result<(), Error> {
        match self.left.get().checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(Error::CostLimit)
            }
        }
    }

    /// What has been spent.
    pub fn spent(&self) -> u64 {
        self.limit - self.left.get()
    }
}

/// Variables that are only computed when they are used, each once.
#[derive(Default)]
pub struct Lazy<'a> {
    programs: BTreeMap<&'a str, &'a Program>,
    known: RefCell<BTreeMap<&'a str, Evaluated<'a>>>,
}

impl<'a> Lazy<'a> {
    /// Variables with their expressions.
    pub fn new(programs: impl IntoIterator<Item = (&'a str, &'a Program)>) -> Lazy<'a> {
        Lazy { programs: programs.into_iter().collect(), known: RefCell::default() }
    }
}

/// The values of an expression's variables.
pub struct Bindings<'a> {
    values: BTreeMap<&'a str, Value<'a>>,
    /// What `variables` stands for.
    lazy: Option<&'a Lazy<'a>>,
    pub(crate) host: &'a dyn Host,
}

impl<'a> Bindings<'a> {
    /// No variables. `host` answers for the authorizer.
    pub fn new(host: &'a dyn Host) -> Bindings<'a> {
        Bindings { values: BTreeMap::new(), lazy: None, host }
    }

    /// With a variable.
    pub fn with(mut self, name: &'a str, value: Value<'a>) -> Bindings<'a> {
        self.values.insert(name, value);
        self
    }

    /// With `variables`.
    pub fn with_lazy(mut self, lazy: &'a Lazy<'a>) -> Bindings<'a> {
        self.lazy = Some(lazy);
        self
    }
}

/// Evaluates a checked expression.
pub fn evaluate<'a>(expr: &'a IdedExpr, bindings: &Bindings<'a>, budget: &Budget) -> Evaluated<'a> {
    Evaluator { bindings, budget, scopes: RefCell::default() }.of(expr)
}

struct Evaluator<'e, 'a> {
    bindings: &'e Bindings<'a>,
    budget: &'e Budget,
    scopes: RefCell<Vec<(&'a str, Value<'a>)>>,
}

fn truth(value: &Value<'_>) -> Option<bool> {
    if let Value::Bool(b) = value { Some(*b) } else { None }
}

impl<'a> Evaluator<'_, 'a> {
    fn variable(&self, name: &str) -> Option<Value<'a>> {
        let own = self.scopes.borrow().iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
        own.or_else(|| self.bindings.values.get(name).cloned())
    }

    fn of(&self, expr: &'a IdedExpr) -> Evaluated<'a> {
        match &expr.expr {
            Expr::Unspecified => Err(Error::other("unspecified expression")),
            Expr::Literal(l) => Ok(match l {
                LiteralValue::Boolean(b) => Value::Bool(*b.inner()),
                LiteralValue::Bytes(b) => Value::Bytes(b.inner().into()),
                LiteralValue::Double(d) => Value::Double(*d.inner()),
                LiteralValue::Int(i) => Value::Int(*i.inner()),
                LiteralValue::Null => Value::Null,
                LiteralValue::String(s) => Value::String(Cow::Borrowed(s.inner())),
                LiteralValue::UInt(u) => Value::Uint(*u.inner()),
            }),
            Expr::Ident(name) => {
                self.budget.spend(1)?;
                match self.variable(name) {
                    Some(value) => Ok(value),
                    None if check::TYPE_NAMES.contains(&name.as_str()) => {
                        Ok(Value::Type(Cow::Owned(name.clone())))
                    }
                    None => Err(Error::other(format!("no such attribute(s): {name}"))),
                }
            }
            Expr::Select(select) => {
                self.budget.spend(1)?;
                if let (Expr::Ident(root), Some(lazy), false) =
                    (&select.operand.expr, self.bindings.lazy, select.test)
                    && root == "variables"
                    && self.variable(root).is_none()
                {
                    return self.lazily(lazy, &select.field);
                }
                if let Some(path) = check::path(expr) {
                    if let Some(value) = self.bindings.values.get(path.as_str()) {
                        return Ok(value.clone());
                    }
                    if check::TYPE_NAMES.contains(&path.as_str()) {
                        return Ok(Value::Type(Cow::Owned(path)));
                    }
                }
                let operand = self.of(&select.operand)?;
                let (operand, optional) = match operand {
                    Value::Optional(None) if select.test => return Ok(Value::Bool(false)),
                    Value::Optional(None) => return Ok(Value::Optional(None)),
                    Value::Optional(Some(inner)) => ((*inner).clone(), true),
                    other => (other, false),
                };
                let found = operand.member(&Value::String(Cow::Borrowed(&select.field)));
                if select.test {
                    let is_map = matches!(operand, Value::Map(_) | Value::JsonMap(..));
                    return if is_map {
                        Ok(Value::Bool(found.is_some()))
                    } else {
                        Err(Error::NoSuchOverload)
                    };
                }
                match found {
                    Some(value) if optional => Ok(Value::some(value)),
                    Some(value) => Ok(value),
                    None if optional => Ok(Value::Optional(None)),
                    None if matches!(operand, Value::Map(_) | Value::JsonMap(..)) => {
                        Err(Error::NoSuchKey(select.field.clone()))
                    }
                    None => Err(Error::NoSuchOverload),
                }
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                self.budget.spend(10)?;
                let mut items = Vec::with_capacity(list.elements.len());
                for (i, element) in list.elements.iter().enumerate() {
                    match self.of(element)? {
                        Value::Optional(value) if list.optional_indices.contains(&i) => {
                            items.extend(value.map(|v| (*v).clone()));
                        }
                        value => items.push(value),
                    }
                }
                Ok(Value::list(items))
            }
            Expr::Map(map) => {
                self.budget.spend(30)?;
                let mut entries: Vec<(Value<'a>, Value<'a>)> = Vec::with_capacity(map.entries.len());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(e) = &entry.expr else { continue };
                    let key = self.of(&e.key)?;
                    let value = match self.of(&e.value)? {
                        Value::Optional(None) if e.optional => continue,
                        Value::Optional(Some(value)) if e.optional => (*value).clone(),
                        value => value,
                    };
                    if entries.iter().any(|(k, _)| k.equal(&key)) {
                        return Err(Error::other(format!(
                            "Failed with repeated key: {}",
                            functions::show(&key)
                        )));
                    }
                    entries.push((key, value));
                }
                Ok(Value::Map(Arc::new(entries)))
            }
            Expr::Struct(s) => {
                self.budget.spend(40)?;
                let mut entries = Vec::new();
                for entry in &s.entries {
                    let EntryExpr::StructField(f) = &entry.expr else { continue };
                    let value = match self.of(&f.value)? {
                        Value::Optional(None) if f.optional => continue,
                        Value::Optional(Some(value)) if f.optional => (*value).clone(),
                        value => value,
                    };
                    entries.push((Value::String(Cow::Borrowed(f.field.as_str())), value));
                }
                Ok(Value::Map(Arc::new(entries)))
            }
            Expr::Comprehension(c) => self.comprehension(c),
        }
    }

    fn lazily(&self, lazy: &'a Lazy<'a>, name: &str) -> Evaluated<'a> {
        if let Some(known) = lazy.known.borrow().get(name) {
            return known.clone();
        }
        let Some((name, program)) = lazy.programs.get_key_value(name) else {
            return Err(Error::NoSuchKey(name.to_string()));
        };
        let value = evaluate(&program.expr, self.bindings, self.budget);
        if !value.as_ref().is_err_and(Error::is_final) {
            lazy.known.borrow_mut().insert(name, value.clone());
        }
        value
    }

    /// `&&` and `||`: what one side says may make the other's failure of no account.
    fn logic(&self, call: &'a CallExpr, decisive: bool) -> Evaluated<'a> {
        let mut failure = None;
        for arg in &call.args {
            match self.of(arg) {
                Ok(value) => match truth(&value) {
                    Some(b) if b == decisive => return Ok(value),
                    Some(_) => {}
                    None => failure = failure.or(Some(Error::NoSuchOverload)),
                },
                Err(e) if e.is_final() => return Err(e),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        failure.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn call(&self, call: &'a CallExpr) -> Evaluated<'a> {
        match call.func_name.as_str() {
            operators::LOGICAL_AND => return self.logic(call, false),
            operators::LOGICAL_OR => return self.logic(call, true),
            operators::NOT_STRICTLY_FALSE => {
                let held = call.args.first().map(|a| self.of(a));
                return match held {
                    Some(Err(e)) if e.is_final() => Err(e),
                    Some(Ok(Value::Bool(false))) => Ok(Value::Bool(false)),
                    _ => Ok(Value::Bool(true)),
                };
            }
            operators::CONDITIONAL => {
                let [condition, yes, no] = call.args.as_slice() else { return Err(Error::NoSuchOverload) };
                return match truth(&self.of(condition)?) {
                    Some(true) => self.of(yes),
                    Some(false) => self.of(no),
                    None => Err(Error::NoSuchOverload),
                };
            }
            operators::ADD | INSERT => {
                if let Some(grown) = self.grow(call)? {
                    return Ok(grown);
                }
            }
            operators::OPT_SELECT => {
                self.budget.spend(1)?;
                let [operand, name] = call.args.as_slice() else { return Err(Error::NoSuchOverload) };
                let (operand, name) = (self.of(operand)?, self.of(name)?);
                return Ok(functions::optional_member(&operand, &name));
            }
            _ => {}
        }
        let qualified = call.target.as_ref().and_then(|t| check::path(t)).and_then(|namespace| {
            let root = namespace.split('.').next().unwrap_or(&namespace).to_string();
            let name = format!("{namespace}.{}", call.func_name);
            (self.variable(&root).is_none() && !signatures::of(&name).is_empty()).then_some(name)
        });
        let mut args = Vec::with_capacity(call.args.len() + 1);
        let mut member = false;
        if qualified.is_none()
            && let Some(target) = &call.target
        {
            member = true;
            args.push(self.of(target)?);
        }
        for arg in &call.args {
            args.push(self.of(arg)?);
        }
        let name = qualified.as_deref().unwrap_or(&call.func_name);
        self.budget.spend(functions::cost(name, &args))?;
        functions::call(name, member, args, self.bindings.host)
    }

    /// What a comprehension collects grows in place: copying it for each item would make its cost the square of it.
    fn grow(&self, call: &'a CallExpr) -> Result<Option<Value<'a>>, Error> {
        let Some((Expr::Ident(name), rest)) =
            call.args.split_first().map(|(first, rest)| (&first.expr, rest))
        else {
            return Ok(None);
        };
        if !name.starts_with('@') {
            return Ok(None);
        }
        let mut added = Vec::with_capacity(rest.len());
        for arg in rest {
            added.push(self.of(arg)?);
        }
        self.budget.spend(1)?;
        let taken = {
            let mut scopes = self.scopes.borrow_mut();
            let slot = scopes.iter_mut().rev().find(|(n, _)| n == name);
            slot.map(|(_, value)| std::mem::replace(value, Value::Null))
        };
        match (taken, added.as_slice()) {
            (Some(Value::List(mut items)), [more]) if more.is_list() => {
                Arc::make_mut(&mut items).extend(more.items().unwrap_or_default());
                Ok(Some(Value::List(items)))
            }
            (Some(Value::Map(mut entries)), [map]) => {
                for (key, value) in map.entries().unwrap_or_default() {
                    insert(Arc::make_mut(&mut entries), key, value)?;
                }
                Ok(Some(Value::Map(entries)))
            }
            (Some(Value::Map(mut entries)), [key, value]) => {
                insert(Arc::make_mut(&mut entries), key.clone(), value.clone())?;
                Ok(Some(Value::Map(entries)))
            }
            (Some(other), [more]) => {
                functions::call(operators::ADD, false, vec![other, more.clone()], self.bindings.host)
                    .map(Some)
            }
            _ => Err(Error::NoSuchOverload),
        }
    }

    fn comprehension(&self, c: &'a ComprehensionExpr) -> Evaluated<'a> {
        let range = self.of(&c.iter_range)?;
        let init = self.of(&c.accu_init)?;
        let depth = self.scopes.borrow().len();
        self.scopes.borrow_mut().push((&c.accu_var, init));
        let outcome = self.iterate(c, &range, depth);
        let result = outcome.and_then(|()| self.of(&c.result));
        self.scopes.borrow_mut().truncate(depth);
        result
    }

    fn iterate(&self, c: &'a ComprehensionExpr, range: &Value<'a>, depth: usize) -> Result<(), Error> {
        let count = range.len().ok_or(Error::NoSuchOverload)?;
        let entries = if range.is_list() { None } else { range.entries() };
        let mut failure: Option<Error> = None;
        for i in 0..count {
            self.budget.spend(1)?;
            let (first, second) = match &entries {
                Some(entries) => match entries.get(i) {
                    Some((key, value)) => (key.clone(), value.clone()),
                    None => break,
                },
                None => {
                    let item = range.item(i).unwrap_or(Value::Null);
                    let at = Value::Int(i64::try_from(i).unwrap_or(i64::MAX));
                    if c.iter_var2.is_some() { (at, item) } else { (item, Value::Null) }
                }
            };
            {
                let mut scopes = self.scopes.borrow_mut();
                scopes.truncate(depth + 1);
                scopes.push((&c.iter_var, first));
                if let Some(name) = &c.iter_var2 {
                    scopes.push((name, second));
                }
            }
            if failure.is_none() && truth(&self.of(&c.loop_cond)?) == Some(false) {
                break;
            }
            match self.of(&c.loop_step) {
                Ok(value) => {
                    // Another item has decided it, or else the first failure stands.
                    if failure.is_some() && self.decides(c, &value) {
                        failure = None;
                        self.scopes.borrow_mut()[depth].1 = value;
                        break;
                    }
                    if failure.is_none() {
                        self.scopes.borrow_mut()[depth].1 = value;
                    }
                }
                Err(e) if e.is_final() || !absorbs(c) => return Err(e),
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        self.scopes.borrow_mut().truncate(depth + 1);
        failure.map_or(Ok(()), Err)
    }

    /// Whether a step's value ends a quantifier: true for `exists`, false for `all`.
    fn decides(&self, c: &ComprehensionExpr, value: &Value<'a>) -> bool {
        match &c.loop_step.expr {
            Expr::Call(call) if call.func_name == operators::LOGICAL_AND => truth(value) == Some(false),
            Expr::Call(call) if call.func_name == operators::LOGICAL_OR => truth(value) == Some(true),
            _ => false,
        }
    }
}

/// Whether a failure of one item may be of no account: in `all` and `exists`.
fn absorbs(c: &ComprehensionExpr) -> bool {
    matches!(&c.loop_step.expr, Expr::Call(call) if matches!(call.func_name.as_str(), operators::LOGICAL_AND | operators::LOGICAL_OR))
}

fn insert<'a>(
    entries: &mut Vec<(Value<'a>, Value<'a>)>,
    key: Value<'a>,
    value: Value<'a>,
) -> Result<(), Error> {
    if entries.iter().any(|(k, _)| k.equal(&key)) {
        return Err(Error::other(format!("insert failed: key {} already exists", functions::show(&key))));
    }
    entries.push((key, value));
    Ok(())
}
