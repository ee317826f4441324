//! Field selectors: `metadata.name=x,status.phase!=Running`, with v1.20's error texts.

use std::fmt;

/// One condition on one field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    /// The field's label, such as `metadata.name`.
    pub field: String,
    /// The value it must (or must not) have.
    pub value: String,
    /// Whether it must not.
    pub not: bool,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct FieldSelector {
    /// The conditions.
    pub terms: Vec<Term>,
}

impl FieldSelector {
    /// Parses the string form.
    pub fn parse(text: &str) -> Result<FieldSelector, String> {
        let mut parts = split_terms(text);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            let Some((field, not, value)) = split_term(part) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{part}'"));
            };
            terms.push(Term { field: field.into(), value: unescape(value)?, not });
        }
        Ok(FieldSelector { terms })
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// Whether it selects an object whose fields are looked up with a function; an absent field is `""`.
    pub fn matches_with<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|t| (field(&t.field).unwrap_or("") == t.value) != t.not)
    }

    /// The value that the selector demands for a field, if it demands one.
    pub fn requires_exact_match(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.field == field && !t.not).map(|t| t.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.terms.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let sign = if t.not { "!=" } else { "=" };
            write!(f, "{comma}{}{sign}{}", t.field, escape(&t.value))?;
        }
        Ok(())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    term.char_indices().find_map(|(i, _)| {
        let rest = &term[i..];
        [("!=", true), ("==", false), ("=", false)]
            .into_iter()
            .find_map(|(sign, not)| rest.strip_prefix(sign).map(|value| (&term[..i], not, value)))
    })
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=")
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {}",
                    u32::from(c)
                ));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_matches_prints() {
        let s = FieldSelector::parse("status.phase!=Running,metadata.name==a\\,b").unwrap();
        assert_eq!(s.to_string(), "metadata.name=a\\,b,status.phase!=Running");
        assert!(s.matches_with(|f| (f == "metadata.name").then_some("a,b")));
        assert!(!s.matches_with(|f| Some(if f == "metadata.name" { "a,b" } else { "Running" })));
        assert_eq!(s.requires_exact_match("metadata.name"), Some("a,b"));
        assert_eq!(FieldSelector::parse("a").unwrap_err(), "invalid selector: 'a'; can't understand 'a'");
        assert!(FieldSelector::parse("a=b=c").is_err());
        assert!(FieldSelector::parse("").unwrap().is_everything());
    }
}
