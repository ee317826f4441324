//! The difference of two pod specs, for the error of an update that changes too much. It has the look of
//! `github.com/google/go-cmp`, whose own output varies from run to run.

use pilothouse_apimachinery::json::{Text, Value};

/// The difference between the spec of an update and the old one.
pub(super) fn pod_spec(new: &Value, old: &Value) -> String {
    of_structs("core.PodSpec", new, old)
}

/// The difference between two structs of a Go type.
pub(in crate::kinds) fn of_structs(type_: &str, new: &Value, old: &Value) -> String {
    let mut out = format!("  {type_}{{\n");
    fields(new, old, 1, &mut out);
    out.push_str("  }\n");
    out
}

fn field_name(key: &str) -> String {
    let mut chars = key.chars();
    chars.next().map(|c| c.to_uppercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

fn line(sign: char, depth: usize, text: &str, out: &mut String) {
    out.push(sign);
    out.push(' ');
    out.push_str(&"\t".repeat(depth));
    out.push_str(text);
    out.push('\n');
}

fn show(v: &Value) -> String {
    match v {
        Value::Null => "nil".into(),
        other => other.to_string(),
    }
}

fn fields(new: &Value, old: &Value, depth: usize, out: &mut String) {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return };
    let mut keys: Vec<&Text> = new.keys().chain(old.keys().filter(|k| !new.contains_key(k))).collect();
    keys.sort();
    let mut identical = 0;
    let skipped = |n: &mut usize, out: &mut String| {
        if *n > 0 {
            line(' ', depth, &format!("... // {n} identical field{}", if *n == 1 { "" } else { "s" }), out);
            *n = 0;
        }
    };
    for key in keys {
        let (n, o) = (new.get(key).unwrap_or(&Value::Null), old.get(key).unwrap_or(&Value::Null));
        if n == o {
            identical += 1;
            continue;
        }
        skipped(&mut identical, out);
        value(&field_name(key), n, o, depth, out);
    }
    skipped(&mut identical, out);
}

fn value(name: &str, new: &Value, old: &Value, depth: usize, out: &mut String) {
    match (new, old) {
        (Value::Object(_), Value::Object(_)) => {
            line(' ', depth, &format!("{name}: {{"), out);
            fields(new, old, depth + 1, out);
            line(' ', depth, "},", out);
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            line(' ', depth, &format!("{name}: {{"), out);
            for (n, o) in a.iter().zip(b) {
                if n == o {
                    line(' ', depth + 1, &format!("{},", show(n)), out);
                } else if n.is_object() && o.is_object() {
                    line(' ', depth + 1, "{", out);
                    fields(n, o, depth + 2, out);
                    line(' ', depth + 1, "},", out);
                } else {
                    line('-', depth + 1, &format!("{},", show(n)), out);
                    line('+', depth + 1, &format!("{},", show(o)), out);
                }
            }
            line(' ', depth, "},", out);
        }
        _ => {
            line('-', depth, &format!("{name}: {},", show(new)), out);
            line('+', depth, &format!("{name}: {},", show(old)), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn shows_what_differs() {
        let new = json!({"containers": [{"name": "c", "tty": true}], "hostname": "a", "x": 1});
        let old = json!({"containers": [{"name": "c"}], "hostname": "a", "x": 1});
        assert_eq!(
            pod_spec(&new, &old),
            "  core.PodSpec{\n  \tContainers: {\n  \t\t{\n  \t\t\t... // 1 identical field\n- \t\t\tTty: true,\n+ \t\t\tTty: nil,\n  \t\t},\n  \t},\n  \t... // 2 identical fields\n  }\n"
        );
    }
}
