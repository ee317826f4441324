//! Numbers or percentages: `maxSurge: 1`, `maxSurge: 25%`; ports by number or name.

use crate::json::Value;

/// A percentage such as `25%`, as a number.
pub fn percent(v: &Value) -> Result<i64, String> {
    let text = v.as_str().unwrap_or("");
    let Some(digits) = text.strip_suffix('%') else {
        return Err("invalid type: string is not a percentage".into());
    };
    digits.parse().map_err(|_| {
        format!(
            "invalid value {}: strconv.Atoi: parsing {}: invalid syntax",
            crate::go::quote(text),
            crate::go::quote(digits)
        )
    })
}

/// The number itself, or the percentage of a total, rounded up or down.
pub fn scaled_value(v: &Value, total: i64, round_up: bool) -> Result<i64, String> {
    if let Some(n) = v.as_i64() {
        return Ok(n);
    }
    let product = percent(v)?.saturating_mul(total);
    Ok(if round_up {
        product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0)
    } else {
        product.div_euclid(100)
    })
}

/// As text: `8080` or `http`.
pub fn text(v: &Value) -> String {
    match v {
        Value::String(s) => s.to_string(),
        Value::Number(n) => n.to_string(),
        _ => "0".into(),
    }
}

#[cfg(test)]
mod tests {
    use crate::json::json;

    use super::*;

    #[test]
    fn scales() {
        assert_eq!(scaled_value(&json!(3), 10, true), Ok(3));
        assert_eq!(scaled_value(&json!("25%"), 10, true), Ok(3));
        assert_eq!(scaled_value(&json!("25%"), 10, false), Ok(2));
        assert!(scaled_value(&json!("25"), 10, false).is_err());
        assert!(scaled_value(&json!("x%"), 10, false).is_err());
    }
}
