//! Values written as compact JSON: what `serde_json` writes, without its calls for each token.

use super::{Map, Value};

/// A value as bytes.
pub fn to_vec(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write(value, &mut out);
    out
}

/// Appends a value.
pub fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        // Writing to memory cannot fail.
        Value::Number(number) => drop(serde_json::to_writer(out, number)),
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        Value::Object(map) => write_map(map, out),
    }
}

fn write_map(map: &Map, out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, (name, value)) in map.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_text(name, out);
        out.push(b':');
        write(value, out);
    }
    out.push(b'}');
}

/// Appends a text with its quotes.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    if is_plain(text.as_bytes()) {
        out.reserve(text.len() + 2);
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        // Writing to memory cannot fail.
        drop(serde_json::to_writer(out, text));
    }
}

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// Of each of eight bytes the highest bit: whether it is a quote, a backslash or a control character. The lowest bit that
/// is set is right; those above it need not be.
pub(super) fn special(word: u64) -> u64 {
    let is_zero = |word: u64| word.wrapping_sub(LOW) & !word;
    let control = word.wrapping_sub(LOW * 0x20) & !word;
    (control | is_zero(word ^ (LOW * 0x22)) | is_zero(word ^ (LOW * 0x5C))) & HIGH
}

/// Whether nothing in a text is to be escaped.
fn is_plain(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    // The last eight bytes once more, rather than those that are left.
    let tail = match bytes.last_chunk::<8>() {
        Some(tail) => u64::from_le_bytes(*tail),
        None => rest.iter().fold(LOW * 0x20, |word, byte| word << 8 | u64::from(*byte)),
    };
    words.iter().map(|word| u64::from_le_bytes(*word)).chain([tail]).all(|word| special(word) == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::json;

    fn written(value: &Value) -> String {
        String::from_utf8(to_vec(value)).unwrap()
    }

    #[test]
    fn every_kind_of_value() {
        let value = json!({"a": [null, true, false, 1, -2, 1.5, 1e30], "": {}, "b": {"c": []}, "d\"\n": "\u{1}\\é/\u{7f}"});
        assert_eq!(written(&value), serde_json::to_string(&value).unwrap());
    }

    proptest! {
        #[test]
        fn texts_as_serde_json_writes_them(text in "([a-z]{0,9}|[ -~]{0,9}|\\PC{0,3}|[\\x00-\\x22\\x5b-\\x5d\\x7e-\\x81]){0,4}") {
            let value = Value::from(text);
            prop_assert_eq!(written(&value), serde_json::to_string(&value).unwrap());
        }
    }
}
