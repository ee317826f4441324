//! From text to a tree, macros expanded.

use std::sync::LazyLock;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, ListExpr, LiteralValue, MapExpr, SourceInfo, operators,
};
use cel::parser::{Macro, MacroExprHelper};
use cel::{Env, IdedExpr, ParseError};

/// A parsed expression, and where its parts stand in the text.
pub struct Parsed {
    /// The tree.
    pub expr: IdedExpr,
    /// Places by the parts' numbers.
    pub info: SourceInfo,
}

/// How deep expressions may be nested in brackets.
const MAX_DEPTH: u16 = 60;
/// How deep a tree may be: evaluation goes down into it on the stack of whoever asks.
const MAX_TREE_DEPTH: usize = 80;
/// How many operators, dots, commas and brackets an expression may have.
const MAX_SIGNS: usize = 4_000;
/// The stack of the thread that parses: the parser goes down once for each sign at worst.
const STACK: usize = 256 << 20;
/// The name of what a comprehension collects.
const RESULT: &str = "@result";

static ENV: LazyLock<Env> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    let macros = [
        Macro::receiver("all", 3, |h, t, a| quantify(h, t, a, Quantifier::All)),
        Macro::receiver("exists", 3, |h, t, a| quantify(h, t, a, Quantifier::Exists)),
        Macro::receiver("existsOne", 3, |h, t, a| quantify(h, t, a, Quantifier::One)),
        Macro::receiver("exists_one", 3, |h, t, a| quantify(h, t, a, Quantifier::One)),
        Macro::receiver("transformList", 3, |h, t, a| transform(h, t, a, Into::List)),
        Macro::receiver("transformList", 4, |h, t, a| transform(h, t, a, Into::List)),
        Macro::receiver("transformMap", 3, |h, t, a| transform(h, t, a, Into::Map)),
        Macro::receiver("transformMap", 4, |h, t, a| transform(h, t, a, Into::Map)),
        Macro::receiver("transformMapEntry", 3, |h, t, a| transform(h, t, a, Into::Entries)),
        Macro::receiver("transformMapEntry", 4, |h, t, a| transform(h, t, a, Into::Entries)),
    ];
    for m in macros {
        // None of these is there already.
        let _ = env.add_macro(m);
    }
    env
});

/// Parses an expression and does `work` with it. The error is in the words of Kubernetes' parser.
///
/// The parser recurses as deep as the text says, so it runs on a stack of its own; what comes out is not deep.
pub fn parsed<T: Send>(
    source: &str,
    work: impl FnOnce(Parsed) -> Result<T, String> + Send,
) -> Result<T, String> {
    const DEEP: &str = "ERROR: <input>:-1:0: expression recursion limit exceeded: 250";
    if signs(source) > MAX_SIGNS {
        return Err(DEEP.into());
    }
    let task = || {
        let parsed = parse(source)?;
        if depth(&parsed.expr) > MAX_TREE_DEPTH { Err(DEEP.into()) } else { work(parsed) }
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, task);
        match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err("ERROR: <input>:-1:0: the expression cannot be parsed".into()),
            Err(e) => Err(format!("ERROR: <input>:-1:0: {e}")),
        }
    })
}

fn signs(source: &str) -> usize {
    source.bytes().filter(|b| b.is_ascii_punctuation() && !matches!(b, b'_' | b'"' | b'\'')).count()
        + source.matches(" in ").count()
}

/// How deep a tree is.
fn depth(expr: &IdedExpr) -> usize {
    let of_entry = |entry: &EntryExpr| match entry {
        EntryExpr::MapEntry(e) => depth(&e.key).max(depth(&e.value)),
        EntryExpr::StructField(f) => depth(&f.value),
    };
    1 + match &expr.expr {
        Expr::Call(c) => {
            let args = c.args.iter().map(depth).max().unwrap_or(0);
            args.max(c.target.as_deref().map_or(0, depth))
        }
        Expr::Select(s) => depth(&s.operand),
        Expr::List(l) => l.elements.iter().map(depth).max().unwrap_or(0),
        Expr::Map(m) => m.entries.iter().map(|e| of_entry(&e.expr)).max().unwrap_or(0),
        Expr::Struct(s) => s.entries.iter().map(|e| of_entry(&e.expr)).max().unwrap_or(0),
        Expr::Comprehension(c) => [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result]
            .into_iter()
            .map(depth)
            .max()
            .unwrap_or(0),
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => 0,
    }
}

fn parse(source: &str) -> Result<Parsed, String> {
    let parser = ENV.parser().max_recursion_depth(MAX_DEPTH).enable_ident_escape_syntax(true);
    match parser.parse_with_source_info(source) {
        Ok((expr, info)) => Ok(Parsed { expr, info }),
        Err(errors) => {
            let shown = errors.errors.iter().map(|e| {
                let (line, column) = (e.pos.0.max(1), e.pos.1.max(1));
                issue(source, line.unsigned_abs(), column.unsigned_abs(), &e.msg)
            });
            Err(shown.collect::<Vec<_>>().join("\n"))
        }
    }
}

/// A fault as Kubernetes' compiler shows it: where, what, and the line with a mark. Lines and columns count from 1.
pub fn issue(source: &str, line: usize, column: usize, text: &str) -> String {
    let shown = source.lines().nth(line - 1).unwrap_or("");
    let dots = ".".repeat(column - 1);
    format!("ERROR: <input>:{line}:{column}: {text}\n | {shown}\n | {dots}^")
}

enum Quantifier {
    All,
    Exists,
    One,
}

enum Into {
    List,
    Map,
    Entries,
}

type Lent<'x> = (&'x mut Option<IdedExpr>, &'x mut Vec<IdedExpr>);

fn name_of(h: &MacroExprHelper<'_>, e: &IdedExpr) -> Result<String, ParseError> {
    match &e.expr {
        Expr::Ident(name) => Ok(name.clone()),
        _ => Err(h.new_error(e.id, "argument must be a simple name")),
    }
}

fn call(h: &mut MacroExprHelper<'_>, func_name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    h.next_expr(Expr::Call(CallExpr { func_name: func_name.into(), target: None, args }))
}

fn ident(h: &mut MacroExprHelper<'_>, name: &str) -> IdedExpr {
    h.next_expr(Expr::Ident(name.into()))
}

fn boolean(h: &mut MacroExprHelper<'_>, value: bool) -> IdedExpr {
    h.next_expr(Expr::Literal(LiteralValue::Boolean(value.into())))
}

fn int(h: &mut MacroExprHelper<'_>, value: i64) -> IdedExpr {
    h.next_expr(Expr::Literal(LiteralValue::Int(value.into())))
}

struct Parts {
    init: IdedExpr,
    condition: IdedExpr,
    step: IdedExpr,
    result: IdedExpr,
}

fn comprehension(
    h: &mut MacroExprHelper<'_>,
    lent: Lent<'_>,
    vars: (String, String),
    parts: Parts,
) -> Option<IdedExpr> {
    let range = lent.0.take()?;
    Some(h.next_expr(Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: range,
        iter_var: vars.0,
        iter_var2: Some(vars.1),
        accu_var: RESULT.into(),
        accu_init: parts.init,
        loop_cond: parts.condition,
        loop_step: parts.step,
        result: parts.result,
    }))))
}

fn quantify(
    h: &mut MacroExprHelper<'_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
    what: Quantifier,
) -> Result<Option<IdedExpr>, ParseError> {
    let vars = (name_of(h, &args[0])?, name_of(h, &args[1])?);
    let Some(predicate) = args.pop() else { return Ok(None) };
    let result = ident(h, RESULT);
    let parts = match what {
        Quantifier::All => {
            let init = boolean(h, true);
            let so_far = ident(h, RESULT);
            let condition = call(h, operators::NOT_STRICTLY_FALSE, vec![so_far]);
            let so_far = ident(h, RESULT);
            let step = call(h, operators::LOGICAL_AND, vec![so_far, predicate]);
            Parts { init, condition, step, result }
        }
        Quantifier::Exists => {
            let init = boolean(h, false);
            let so_far = ident(h, RESULT);
            let not = call(h, operators::LOGICAL_NOT, vec![so_far]);
            let condition = call(h, operators::NOT_STRICTLY_FALSE, vec![not]);
            let so_far = ident(h, RESULT);
            let step = call(h, operators::LOGICAL_OR, vec![so_far, predicate]);
            Parts { init, condition, step, result }
        }
        Quantifier::One => {
            let init = int(h, 0);
            let condition = boolean(h, true);
            let (so_far, one) = (ident(h, RESULT), int(h, 1));
            let more = call(h, operators::ADD, vec![so_far, one]);
            let so_far = ident(h, RESULT);
            let step = call(h, operators::CONDITIONAL, vec![predicate, more, so_far]);
            let one = int(h, 1);
            let result = call(h, operators::EQUALS, vec![result, one]);
            Parts { init, condition, step, result }
        }
    };
    Ok(comprehension(h, (target, args), vars, parts))
}

fn transform(
    h: &mut MacroExprHelper<'_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
    into: Into,
) -> Result<Option<IdedExpr>, ParseError> {
    let vars = (name_of(h, &args[0])?, name_of(h, &args[1])?);
    let Some(value) = args.pop() else { return Ok(None) };
    let filter = (args.len() == 3).then(|| args.pop()).flatten();
    let so_far = ident(h, RESULT);
    let (init, more) = match into {
        Into::List => {
            let init = h.next_expr(Expr::List(ListExpr::new(Vec::new())));
            let one = h.next_expr(Expr::List(ListExpr::new(vec![value])));
            (init, call(h, operators::ADD, vec![so_far, one]))
        }
        Into::Map => {
            let init = h.next_expr(Expr::Map(MapExpr { entries: Vec::new() }));
            let key = ident(h, &vars.0);
            (init, call(h, INSERT, vec![so_far, key, value]))
        }
        Into::Entries => {
            let init = h.next_expr(Expr::Map(MapExpr { entries: Vec::new() }));
            (init, call(h, INSERT, vec![so_far, value]))
        }
    };
    let step = match filter {
        Some(filter) => {
            let so_far = ident(h, RESULT);
            call(h, operators::CONDITIONAL, vec![filter, more, so_far])
        }
        None => more,
    };
    let (condition, result) = (boolean(h, true), ident(h, RESULT));
    Ok(comprehension(h, (target, args), vars, Parts { init, condition, step, result }))
}

/// The call that puts a key into a map.
pub const INSERT: &str = "cel.@mapInsert";
