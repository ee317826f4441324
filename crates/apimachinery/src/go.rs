//! How Go prints values in messages: `%q`, `%#v`.

use std::fmt::Write;

use crate::json::Value;

/// A string in quotes, as `%q` and `strconv.Quote` print it.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            // Writing to a String cannot fail.
            c if u32::from(c) < 0x20 || u32::from(c) == 0x7f => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `[]string{"a", "b"}`, or `[]string(nil)` where there is no list.
pub fn string_slice(v: &Value) -> String {
    match v.as_array() {
        None => "[]string(nil)".into(),
        Some(items) => {
            let items: Vec<String> = items.iter().map(|i| quote(i.as_str().unwrap_or(""))).collect();
            format!("[]string{{{}}}", items.join(", "))
        }
    }
}

/// `map[string]string{"a":"b", "c":"d"}`, or `map[string]string(nil)` where there is no map.
pub fn string_map(v: &Value) -> String {
    match v.as_object() {
        None => "map[string]string(nil)".into(),
        Some(map) => {
            let mut items: Vec<(&crate::json::Text, &Value)> = map.iter().collect();
            items.sort_by_key(|(k, _)| *k);
            let items: Vec<String> = items
                .iter()
                .map(|(k, v)| format!("{}:{}", quote(k), quote(v.as_str().unwrap_or(""))))
                .collect();
            format!("map[string]string{{{}}}", items.join(", "))
        }
    }
}

/// `intstr.IntOrString{Type:1, IntVal:0, StrVal:"25%"}`.
pub fn int_or_string(v: &Value) -> String {
    match v.as_str() {
        Some(s) => format!("intstr.IntOrString{{Type:1, IntVal:0, StrVal:{}}}", quote(s)),
        None => format!("intstr.IntOrString{{Type:0, IntVal:{}, StrVal:\"\"}}", v.as_i64().unwrap_or(0)),
    }
}

/// `v1.LabelSelector{MatchLabels:…, MatchExpressions:…}`, as validation prints a selector.
pub fn label_selector(v: &Value) -> String {
    let expressions = match v.get("matchExpressions").and_then(Value::as_array) {
        None => "[]v1.LabelSelectorRequirement(nil)".to_string(),
        Some(items) => {
            let items: Vec<String> = items
                .iter()
                .map(|e| {
                    format!(
                        "v1.LabelSelectorRequirement{{Key:{}, Operator:{}, Values:{}}}",
                        quote(crate::json::str_at(e, &["key"])),
                        quote(crate::json::str_at(e, &["operator"])),
                        string_slice(crate::json::get(e, &["values"]))
                    )
                })
                .collect();
            format!("[]v1.LabelSelectorRequirement{{{}}}", items.join(", "))
        }
    };
    let labels = string_map(crate::json::get(v, &["matchLabels"]));
    format!("v1.LabelSelector{{MatchLabels:{labels}, MatchExpressions:{expressions}}}")
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::*;

    #[test]
    fn prints() {
        assert_eq!(quote("a\"\\\n\u{1}é"), r#""a\"\\\n\x01é""#);
        assert_eq!(string_slice(&json!(["a"])), r#"[]string{"a"}"#);
        assert_eq!(string_slice(&Value::Null), "[]string(nil)");
        assert_eq!(string_map(&json!({"b": "1", "a": "2"})), r#"map[string]string{"a":"2", "b":"1"}"#);
        assert_eq!(int_or_string(&json!(3)), r#"intstr.IntOrString{Type:0, IntVal:3, StrVal:""}"#);
        assert_eq!(
            label_selector(&json!({"matchLabels": {"a": "b"}})),
            r#"v1.LabelSelector{MatchLabels:map[string]string{"a":"b"}, MatchExpressions:[]v1.LabelSelectorRequirement(nil)}"#
        );
    }
}
