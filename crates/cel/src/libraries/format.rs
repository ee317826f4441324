//! `format`: named formats of texts.

use pilothouse_apimachinery::names;

use crate::eval::Evaluated;
use crate::time;
use crate::value::{Native, Value};

/// The formats.
const NAMES: &[&str] = &[
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

/// By a name of its own: `format.named('x')`, `format.x()`.
pub fn global<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let rest = name.strip_prefix("format.")?;
    let known = |wanted: &str| NAMES.iter().find(|n| **n == wanted);
    let native = |name: &'static str| Value::native(Native::Format(name));
    match (rest, args) {
        ("named", [Value::String(wanted)]) => {
            Some(Ok(known(wanted).map_or(Value::Optional(None), |n| Value::some(native(n)))))
        }
        (wanted, []) => known(wanted).map(|n| Ok(native(n))),
        _ => None,
    }
}

fn faults(format: &str, text: &str) -> Vec<String> {
    let when = |bad: bool, why: &str| if bad { vec![why.to_string()] } else { Vec::new() };
    let prefix = |text: &str| text.strip_suffix('-').map_or(text.to_string(), |t| format!("{t}a"));
    match format {
        "dns1123Label" => names::dns1123_label(text),
        "dns1123Subdomain" => names::dns1123_subdomain(text),
        "dns1035Label" => names::dns1035_label(text),
        "qualifiedName" => names::qualified_name(text),
        "dns1123LabelPrefix" => names::dns1123_label(&prefix(text)),
        "dns1123SubdomainPrefix" => names::dns1123_subdomain(&prefix(text)),
        "dns1035LabelPrefix" => names::dns1035_label(&prefix(text)),
        "labelValue" => names::label_value(text),
        "uri" => match super::url::parse(text) {
            Ok(_) => Vec::new(),
            Err(why) => {
                vec![why.trim_start_matches("URL parse error during conversion from string: ").to_string()]
            }
        },
        "uuid" => {
            let plain: String = text.chars().filter(|c| *c != '-').collect();
            let dashes =
                text.len() == 36 && [8, 13, 18, 23].iter().all(|i| text.as_bytes().get(*i) == Some(&b'-'));
            let bad = !dashes || plain.len() != 32 || !plain.bytes().all(|b| b.is_ascii_hexdigit());
            when(bad, "does not match the UUID format")
        }
        "byte" => when(time::base64(text).is_none(), "invalid base64"),
        "date" => when(text.len() != 10 || time::timestamp(text).is_none(), "invalid date"),
        _ => when(text.len() <= 10 || time::timestamp(text).is_none(), "invalid datetime"),
    }
}

/// On a format.
pub fn member<'a>(name: &str, format: &str, rest: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let ("validate", [Value::String(text)]) = (name, rest) else { return None };
    let faults = faults(format, text);
    Some(Ok(if faults.is_empty() {
        Value::Optional(None)
    } else {
        Value::some(Value::list(faults.into_iter().map(Value::text).collect()))
    }))
}
