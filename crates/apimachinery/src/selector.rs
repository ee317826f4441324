//! Label selectors: their string form (`a=b,c in (d,e),!f`), their structured form (`matchLabels`,
//! `matchExpressions`), and matching. Error texts are v1.20's.

use std::collections::BTreeSet;
use std::fmt;

use crate::json::Value;

use crate::json::{get, list_at, str_at, strings_at};
use crate::names;

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `a=b`
    Equals,
    /// `a==b`
    DoubleEquals,
    /// `a!=b`
    NotEquals,
    /// `a in (b,c)`
    In,
    /// `a notin (b,c)`
    NotIn,
    /// `a`
    Exists,
    /// `!a`
    DoesNotExist,
    /// `a>1`
    GreaterThan,
    /// `a<1`
    LessThan,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

/// Conditions that must all hold; or the selector that nothing fulfils.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

fn check_key(key: &str) -> Result<(), String> {
    let errs = names::qualified_name(key);
    if errs.is_empty() { Ok(()) } else { Err(format!("invalid label key {key:?}: {}", errs.join("; "))) }
}

fn check_value(key: &str, value: &str) -> Result<(), String> {
    let errs = names::label_value(value);
    if errs.is_empty() {
        Ok(())
    } else {
        Err(format!("invalid label value: {value:?}: at key: {key:?}: {}", errs.join("; ")))
    }
}

impl Requirement {
    /// A checked requirement.
    pub fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Requirement, String> {
        check_key(key)?;
        let fault = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            Operator::GreaterThan | Operator::LessThan if values[0].parse::<i64>().is_err() => {
                Some("for 'Gt', 'Lt' operators, the value must be an integer")
            }
            _ => None,
        };
        if let Some(fault) = fault {
            return Err(fault.into());
        }
        for value in &values {
            check_value(key, value)?;
        }
        Ok(Requirement { key: key.into(), operator, values })
    }

    /// The label it is about.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How it compares.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// What it compares with.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// Whether it holds for a label's value.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        match self.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In => value.is_some_and(listed),
            Operator::NotEquals | Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                let (Some(have), Some(want)) = (
                    value.and_then(|v| v.parse::<i64>().ok()),
                    self.values.first().and_then(|v| v.parse::<i64>().ok()),
                ) else {
                    return false;
                };
                if self.operator == Operator::GreaterThan { have > want } else { have < want }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.operator == Operator::DoesNotExist {
            f.write_str("!")?;
        }
        f.write_str(&self.key)?;
        let sign = match self.operator {
            Operator::Equals => "=",
            Operator::DoubleEquals => "==",
            Operator::NotEquals => "!=",
            Operator::In => " in ",
            Operator::NotIn => " notin ",
            Operator::GreaterThan => ">",
            Operator::LessThan => "<",
            Operator::Exists | Operator::DoesNotExist => return Ok(()),
        };
        let mut values = self.values.clone();
        values.sort();
        let values = values.join(",");
        match self.operator {
            Operator::In | Operator::NotIn => write!(f, "{sign}({values})"),
            _ => write!(f, "{sign}{values}"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            r.fmt(f)?;
        }
        Ok(())
    }
}

impl Selector {
    /// The selector of everything.
    pub fn everything() -> Selector {
        Selector { requirements: Vec::new(), nothing: false }
    }

    /// The selector of nothing.
    pub fn nothing() -> Selector {
        Selector { requirements: Vec::new(), nothing: true }
    }

    /// A selector of requirements.
    pub fn new(mut requirements: Vec<Requirement>) -> Selector {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Selector { requirements, nothing: false }
    }

    /// Its requirements, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether it selects nothing, whatever the labels.
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// Whether it selects an object, whose labels are looked up with a function.
    pub fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Whether it selects an object with these labels (a JSON object, or `Null`).
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// The value that the selector demands for a label, if it demands exactly one.
    pub fn requires_exact_match(&self, key: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.key == key).and_then(|r| match r.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In if r.values.len() == 1 => {
                r.values.first().map(String::as_str)
            }
            _ => None,
        })
    }

    /// Parses the string form.
    pub fn parse(text: &str) -> Result<Selector, String> {
        Parser { tokens: scan(text), position: 0 }.parse().map(Selector::new)
    }

    /// A selector of equal labels, as `spec.selector` of a Service or ReplicationController holds it. Nothing is
    /// selected where it is absent or empty.
    pub fn from_equality_map(map: &Value) -> Selector {
        let requirements: Vec<Requirement> = strings_at(map, &[])
            .map(|(k, v)| Requirement { key: k.into(), operator: Operator::Equals, values: vec![v.into()] })
            .collect();
        if requirements.is_empty() { Selector::nothing() } else { Selector::new(requirements) }
    }

    /// A `metav1.LabelSelector`: absent selects nothing, empty selects everything.
    pub fn from_label_selector(selector: &Value) -> Result<Selector, String> {
        if selector.is_null() {
            return Ok(Selector::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in strings_at(selector, &["matchLabels"]) {
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.into()])?);
        }
        for expression in list_at(selector, &["matchExpressions"]) {
            let operator = match str_at(expression, &["operator"]) {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid pod selector operator")),
            };
            let values = list_at(expression, &["values"]).iter();
            let values: Vec<String> = values.filter_map(Value::as_str).map(String::from).collect();
            requirements.push(Requirement::new(str_at(expression, &["key"]), operator, values)?);
        }
        Ok(Selector::new(requirements))
    }
}

/// A `metav1.LabelSelector` in string form: `<none>` where it is empty, `<error>` where it is malformed.
pub fn format_label_selector(selector: &Value) -> String {
    match Selector::from_label_selector(selector).map(|s| s.to_string()) {
        Ok(text) if text.is_empty() => "<none>".into(),
        Ok(text) => text,
        Err(_) => "<error>".into(),
    }
}

/// Labels as `a=b,c=d`, sorted; `<none>` where there are none.
pub fn format_labels(labels: &Value) -> String {
    let mut pairs: Vec<String> = strings_at(labels, &[]).map(|(k, v)| format!("{k}={v}")).collect();
    if pairs.is_empty() {
        return "<none>".into();
    }
    pairs.sort();
    pairs.join(",")
}

/// Faults of a `metav1.LabelSelector` (`ValidateLabelSelector`).
pub fn validate_label_selector(selector: &Value, path: &crate::field::Path) -> crate::field::ErrorList {
    use crate::field;
    let mut errs = field::ErrorList::new();
    if selector.is_null() {
        return errs;
    }
    errs.extend(crate::names::labels(get(selector, &["matchLabels"]), &path.child("matchLabels")));
    for (i, expression) in list_at(selector, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = list_at(expression, &["values"]);
        match str_at(expression, &["operator"]) {
            "In" | "NotIn" => {
                if values.is_empty() {
                    errs.push(field::required(
                        &path.child("values"),
                        "must be specified when `operator` is 'In' or 'NotIn'",
                    ));
                }
            }
            "Exists" | "DoesNotExist" => {
                if !values.is_empty() {
                    errs.push(field::forbidden(
                        &path.child("values"),
                        "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                    ));
                }
            }
            other => {
                errs.push(field::invalid(&path.child("operator"), other, "not a valid selector operator"));
            }
        }
        errs.extend(crate::names::label_name(str_at(expression, &["key"]), &path.child("key")));
    }
    errs
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Error,
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

fn special(s: &str) -> Option<Token> {
    Some(match s {
        ")" => Token::Close,
        "," => Token::Comma,
        "!" => Token::Not,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::Greater,
        "<" => Token::Less,
        "!=" => Token::NotEquals,
        "(" => Token::Open,
        _ => return None,
    })
}

fn scan(text: &str) -> Vec<(Token, String)> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        let Some(c) = rest.chars().next() else { break };
        if is_special(c) {
            // Two-character signs are the longest there are.
            let long = rest.get(..2).and_then(|s| special(s).map(|t| (t, s)));
            let (token, literal) = match long.or_else(|| special(&rest[..1]).map(|t| (t, &rest[..1]))) {
                Some(found) => found,
                None => (Token::Error, rest),
            };
            tokens.push((token, literal.to_string()));
            rest = &rest[literal.len()..];
        } else {
            let is_end = |c: char| is_special(c) || matches!(c, ' ' | '\t' | '\r' | '\n');
            let end = rest.find(is_end).unwrap_or(rest.len());
            let word = &rest[..end];
            let token = match word {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Identifier,
            };
            tokens.push((token, word.to_string()));
            rest = &rest[end..];
        }
    }
    tokens.push((Token::End, String::new()));
    tokens
}

struct Parser {
    tokens: Vec<(Token, String)>,
    position: usize,
}

impl Parser {
    /// The next token without taking it; `in` and `notin` are identifiers where values are expected.
    fn look(&self) -> (Token, &str) {
        let (token, literal) = &self.tokens[self.position.min(self.tokens.len() - 1)];
        match token {
            Token::In | Token::NotIn => (Token::Identifier, literal),
            t => (*t, literal),
        }
    }

    fn take_raw(&mut self) -> (Token, String) {
        let found = self.tokens[self.position.min(self.tokens.len() - 1)].clone();
        self.position += 1;
        found
    }

    fn take(&mut self) -> (Token, String) {
        match self.take_raw() {
            (Token::In | Token::NotIn, literal) => (Token::Identifier, literal),
            other => other,
        }
    }

    fn parse(mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.look() {
                (Token::Identifier | Token::Not, _) => {
                    let r = self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                    requirements.push(r);
                    match self.take() {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => {
                            let (next, literal) = self.look();
                            if next != Token::Identifier && next != Token::Not {
                                return Err(format!("found '{literal}', expected: identifier after ','"));
                            }
                        }
                        (_, literal) => {
                            return Err(format!("found '{literal}', expected: ',' or 'end of string'"));
                        }
                    }
                }
                (Token::End, _) => return Ok(requirements),
                (_, literal) => {
                    return Err(format!("found '{literal}', expected: !, identifier, or 'end of string'"));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut token, mut key) = self.take();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.take();
        }
        if token != Token::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        check_key(&key)?;
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.look().0, Token::End | Token::Comma) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let (token, literal) = self.take_raw();
        let operator = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return Err(format!("found '{literal}', expected: '=', '!=', '==', 'in', notin'")),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => self.exact_value()?,
        };
        Requirement::new(&key, operator, values.into_iter().collect())
    }

    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        let (token, literal) = self.take();
        if token != Token::Open {
            return Err(format!("found '{literal}' expected: '('"));
        }
        match self.look() {
            (Token::Identifier | Token::Comma, first) => {
                let first = first.to_string();
                let set = self.identifiers()?;
                if self.take().0 != Token::Close {
                    return Err(format!("found '{first}', expected: ')'"));
                }
                Ok(set)
            }
            (Token::Close, _) => {
                self.take();
                // No value is the empty one.
                Ok(BTreeSet::from([String::new()]))
            }
            (_, literal) => Err(format!("found '{literal}', expected: ',', ')' or identifier")),
        }
    }

    fn identifiers(&mut self) -> Result<BTreeSet<String>, String> {
        let mut set = BTreeSet::new();
        loop {
            match self.take() {
                (Token::Identifier, literal) => {
                    set.insert(literal);
                    match self.look() {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(set),
                        (_, literal) => return Err(format!("found '{literal}', expected: ',' or ')'")),
                    }
                }
                (Token::Comma, _) => {
                    if set.is_empty() {
                        set.insert(String::new());
                    }
                    match self.look().0 {
                        Token::Close => {
                            set.insert(String::new());
                            return Ok(set);
                        }
                        Token::Comma => {
                            self.take();
                            set.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, literal) => return Err(format!("found '{literal}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<BTreeSet<String>, String> {
        if matches!(self.look().0, Token::End | Token::Comma) {
            return Ok(BTreeSet::from([String::new()]));
        }
        match self.take() {
            (Token::Identifier, literal) => Ok(BTreeSet::from([literal])),
            (_, literal) => Err(format!("found '{literal}', expected: identifier")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, printed) in [
            ("", ""),
            ("x=a,y=b,z=c", "x=a,y=b,z=c"),
            ("x!=a,y==b", "x!=a,y==b"),
            (" x in (b, a) , !y", "x in (a,b),!y"),
            ("x notin (a,)", "x notin (,a)"),
            ("x in (),y", "x in (),y"),
            ("x=", "x="),
            ("in in (in)", "in in (in)"),
            ("x>1,x<5", "x>1,x<5"),
            ("x=a||y=b", "E"),
            ("x==a==b", "E"),
            ("!x=a", "E"),
            ("x>a", "E"),
            ("x,", "E"),
            ("example.com/x", "example.com/x"),
        ] {
            match Selector::parse(text) {
                Ok(s) => assert_eq!(s.to_string(), printed, "{text}"),
                Err(e) => assert_eq!("E", printed, "{text}: {e}"),
            }
        }
        assert_eq!(Selector::parse("x=,,").unwrap_err(), "found ',', expected: identifier after ','");
        assert_eq!(
            Selector::parse("x in a").unwrap_err(),
            "unable to parse requirement: found 'a' expected: '('"
        );
    }

    #[test]
    fn selects() {
        let labels = json!({"foo": "bar", "n": "7"});
        for (text, selected) in [
            ("", true),
            ("foo=bar", true),
            ("foo!=bar", false),
            ("baz!=bar", true),
            ("foo in (bar,x)", true),
            ("foo notin (bar)", false),
            ("foo", true),
            ("!foo", false),
            ("!baz", true),
            ("n>6,n<8", true),
            ("foo>6", false),
        ] {
            assert_eq!(Selector::parse(text).unwrap().matches(&labels), selected, "{text}");
        }
    }

    #[test]
    fn structured() {
        let s = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["y", "x"]}]});
        assert_eq!(Selector::from_label_selector(&s).unwrap().to_string(), "a=b,c in (x,y)");
        assert!(Selector::from_label_selector(&json!({})).unwrap().is_everything());
        assert!(Selector::from_label_selector(&Value::Null).unwrap().is_nothing());
        assert_eq!(
            format_label_selector(&json!({"matchExpressions": [{"key": "c", "operator": "?"}]})),
            "<error>"
        );
        assert_eq!(format_labels(&json!({"b": "1", "a": "2"})), "a=2,b=1");
        let bad = json!({"matchExpressions": [{"key": "c", "operator": ""}]});
        let errs = validate_label_selector(&bad, &crate::field::Path::new("spec").child("selector"));
        assert_eq!(
            errs[0].to_string(),
            "spec.selector.matchExpressions[0].operator: Invalid value: \"\": not a valid selector operator"
        );
    }
}
