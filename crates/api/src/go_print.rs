//! Values as Go's `%#v` prints them: some errors of validation show structs, lists and maps in that form.

use pilothouse_apimachinery::json::{Text, Value, strings_at};

/// `[]string{"a", "b"}`, `[]string(nil)` where there is no list.
pub fn strings(value: &Value) -> String {
    list("string", value, |v| quoted(v.as_str().unwrap_or("")))
}

/// `[]<type>{…}`, each item printed by `item`; `[]<type>(nil)` where there is no list.
pub fn list(item_type: &str, value: &Value, item: impl Fn(&Value) -> String) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(item).collect();
            format!("[]{item_type}{{{}}}", items.join(", "))
        }
        _ => format!("[]{item_type}(nil)"),
    }
}

/// `map[string]string{"a":"b"}`, sorted by key; `map[string]string(nil)` where there is no map.
pub fn string_map(value: &Value) -> String {
    if !value.is_object() {
        return "map[string]string(nil)".into();
    }
    let mut pairs: Vec<String> =
        strings_at(value, &[]).map(|(k, v)| format!("{}:{}", quoted(k), quoted(v))).collect();
    pairs.sort();
    format!("map[string]string{{{}}}", pairs.join(", "))
}

/// `[]byte{0x61, 0x62}`, `[]byte(nil)` where there are none.
pub fn bytes(value: Option<&[u8]>) -> String {
    match value {
        None => "[]byte(nil)".into(),
        Some(b) => {
            let b: Vec<String> = b.iter().map(|b| format!("{b:#x}")).collect();
            format!("[]byte{{{}}}", b.join(", "))
        }
    }
}

/// `<type>{A:…, B:…}`; the values are printed already.
pub fn structure(type_: &str, fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name}:{value}")).collect();
    format!("{type_}{{{}}}", fields.join(", "))
}

/// A string as `%q` prints it.
pub fn quoted(s: &str) -> String {
    pilothouse_apimachinery::field::show(&Value::from(s))
}

/// A `resource.Quantity`, given in its canonical form.
pub fn quantity(text: &str) -> String {
    if text == "0" {
        return "resource.Quantity{i:resource.int64Amount{value:0, scale:0}, \
                d:resource.infDecAmount{Dec:(*inf.Dec)(nil)}, s:\"0\", Format:\"\"}"
            .into();
    }
    let digits = text.trim_start_matches(['+', '-']);
    let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (scale, factor, format) = match suffix {
        "n" => (-9, 1, "DecimalSI"),
        "u" => (-6, 1, "DecimalSI"),
        "m" => (-3, 1, "DecimalSI"),
        "" => (0, 1, "DecimalSI"),
        "k" => (3, 1, "DecimalSI"),
        "M" => (6, 1, "DecimalSI"),
        "G" => (9, 1, "DecimalSI"),
        "T" => (12, 1, "DecimalSI"),
        "P" => (15, 1, "DecimalSI"),
        "E" => (18, 1, "DecimalSI"),
        "Ki" => (0, 1i64 << 10, "BinarySI"),
        "Mi" => (0, 1 << 20, "BinarySI"),
        "Gi" => (0, 1 << 30, "BinarySI"),
        "Ti" => (0, 1 << 40, "BinarySI"),
        "Pi" => (0, 1 << 50, "BinarySI"),
        "Ei" => (0, 1 << 60, "BinarySI"),
        exponent => (exponent[1..].parse().unwrap_or(0), 1, "DecimalExponent"),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let value = format!("{whole}{fraction}").parse::<i64>().unwrap_or(0).saturating_mul(factor);
    let value = if text.starts_with('-') { -value } else { value };
    let scale = scale - i32::try_from(fraction.len()).unwrap_or(0);
    format!(
        "resource.Quantity{{i:resource.int64Amount{{value:{value}, scale:{scale}}}, \
         d:resource.infDecAmount{{Dec:(*inf.Dec)(nil)}}, s:{}, Format:{}}}",
        quoted(text),
        quoted(format)
    )
}

/// A `core.ResourceList`, sorted by key.
pub fn resource_list(value: &Value) -> String {
    let Some(map) = value.as_object() else { return "core.ResourceList(nil)".into() };
    let mut keys: Vec<&Text> = map.keys().collect();
    keys.sort();
    let items: Vec<String> = keys
        .iter()
        .map(|k| format!("{}:{}", quoted(k), quantity(&quantity_text(&map[k.as_str()]))))
        .collect();
    format!("core.ResourceList{{{}}}", items.join(", "))
}

fn quantity_text(value: &Value) -> String {
    match value {
        Value::String(s) => s.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn quantities() {
        assert_eq!(
            quantity("200m"),
            "resource.Quantity{i:resource.int64Amount{value:200, scale:-3}, d:resource.infDecAmount{Dec:(*inf.Dec)(nil)}, s:\"200m\", Format:\"DecimalSI\"}"
        );
        assert!(quantity("5Gi").contains("value:5368709120, scale:0"));
        assert!(quantity("5Gi").ends_with("Format:\"BinarySI\"}"));
        assert!(quantity("1e3").contains("value:1, scale:3"));
    }

    #[test]
    fn lists_and_maps() {
        assert_eq!(strings(&Value::Null), "[]string(nil)");
        assert_eq!(strings(&json!(["*", "a\"b"])), "[]string{\"*\", \"a\\\"b\"}");
        assert_eq!(string_map(&json!({"b": "2", "a": "1"})), "map[string]string{\"a\":\"1\", \"b\":\"2\"}");
        assert_eq!(bytes(Some(b"a\n")), "[]byte{0x61, 0xa}");
        assert_eq!(resource_list(&Value::Null), "core.ResourceList(nil)");
        assert_eq!(structure("rbac.RoleRef", &[("Kind", quoted("Role"))]), "rbac.RoleRef{Kind:\"Role\"}");
    }
}
