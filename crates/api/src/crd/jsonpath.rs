//! The JSONPath of printer columns: fields, indices, wildcards and filters by equality.

use pilothouse_apimachinery::json::Value;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// `[?(@.type=="Ready")]`
    Filter {
        path: Vec<Step>,
        operator: String,
        value: Value,
    },
}

/// A path, parsed.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses `.a.b[0]`, `.a['b']`, `.conditions[?(@.type=="Ready")].status`. `None` for what is no path.
    pub fn parse(text: &str) -> Option<JsonPath> {
        let mut parser = Parser { rest: text.strip_prefix('$').unwrap_or(text) };
        let steps = parser.steps()?;
        parser.rest.is_empty().then_some(JsonPath(steps))
    }

    /// The values found.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        walk(&self.0, value)
    }
}

fn walk<'v>(steps: &[Step], value: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![value];
    for step in steps {
        found = found
            .into_iter()
            .flat_map(|value| -> Vec<&'v Value> {
                match (step, value) {
                    (Step::Field(name), value) => value.get(name).into_iter().collect(),
                    (Step::Index(i), Value::Array(items)) => {
                        let at = if *i < 0 { i64::try_from(items.len()).unwrap_or(0) + i } else { *i };
                        usize::try_from(at).ok().and_then(|at| items.get(at)).into_iter().collect()
                    }
                    (Step::All, Value::Array(items)) => items.iter().collect(),
                    (Step::All, Value::Object(map)) => map.values().collect(),
                    (Step::Filter { path, operator, value: wanted }, Value::Array(items)) => items
                        .iter()
                        .filter(|item| {
                            walk(path, item).first().is_some_and(|found| holds(found, operator, wanted))
                        })
                        .collect(),
                    _ => Vec::new(),
                }
            })
            .collect();
    }
    found
}

fn holds(found: &Value, operator: &str, wanted: &Value) -> bool {
    let order = crate::apply::path::compare(found, wanted);
    let comparable = std::mem::discriminant(found) == std::mem::discriminant(wanted);
    match operator {
        "" => true,
        "==" => comparable && order.is_eq(),
        "!=" => !comparable || order.is_ne(),
        "<" => comparable && order.is_lt(),
        "<=" => comparable && order.is_le(),
        ">" => comparable && order.is_gt(),
        ">=" => comparable && order.is_ge(),
        _ => false,
    }
}

struct Parser<'t> {
    rest: &'t str,
}

impl<'t> Parser<'t> {
    fn steps(&mut self) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        loop {
            if let Some(rest) = self.rest.strip_prefix('.') {
                self.rest = rest;
                if rest.is_empty() || rest.starts_with('[') {
                    continue;
                }
                steps.push(self.name()?);
            } else if let Some(rest) = self.rest.strip_prefix('[') {
                self.rest = rest;
                steps.push(self.bracket()?);
            } else {
                return Some(steps);
            }
        }
    }

    fn name(&mut self) -> Option<Step> {
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let end = loop {
            match chars.next() {
                Some((_, '\\')) => name.push(chars.next()?.1),
                Some((i, '.' | '[' | ' ' | '=' | '!' | '<' | '>' | ')' | '}' | '{')) => break i,
                Some((_, c)) => name.push(c),
                None => break self.rest.len(),
            }
        };
        self.rest = &self.rest[end..];
        match name.as_str() {
            "" => None,
            "*" => Some(Step::All),
            _ => Some(Step::Field(name)),
        }
    }

    fn take_until(&mut self, end: &str) -> Option<&'t str> {
        let at = self.rest.find(end)?;
        let taken = &self.rest[..at];
        self.rest = &self.rest[at + end.len()..];
        Some(taken)
    }

    fn bracket(&mut self) -> Option<Step> {
        if let Some(rest) = self.rest.strip_prefix("?(@") {
            self.rest = rest;
            let body = self.take_until(")]")?;
            let mut inner = Parser { rest: body };
            let path = inner.steps()?;
            let tail = inner.rest.trim();
            let operator =
                ["==", "!=", "<=", ">=", "<", ">"].into_iter().find(|o| tail.starts_with(o)).unwrap_or("");
            let literal = tail[operator.len()..].trim();
            if operator.is_empty() != literal.is_empty() {
                return None;
            }
            let value = match literal.strip_prefix('\'').and_then(|l| l.strip_suffix('\'')) {
                Some(text) => Value::from(text),
                None if literal.is_empty() => Value::Null,
                None => serde_json::from_str(literal).ok()?,
            };
            return Some(Step::Filter { path, operator: operator.to_string(), value });
        }
        for quote in ['\'', '"'] {
            if let Some(rest) = self.rest.strip_prefix(quote) {
                self.rest = rest;
                let name = self.take_until(&format!("{quote}]"))?;
                return Some(Step::Field(name.replace("\\.", ".")));
            }
        }
        match self.take_until("]")? {
            "*" => Some(Step::All),
            index => index.parse().ok().map(Step::Index),
        }
    }
}
