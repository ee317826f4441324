//! Values read from compact JSON that was written here, in one pass. What is unusual is left to `serde_json`.

use super::write::special;
use super::{Map, Number, Text, Value};

/// How deep lists and objects are read here; `serde_json` goes no deeper than 127.
const MAX_DEPTH: usize = 127;

/// Reads a value: as `serde_json` does, whose errors these are, and faster.
pub fn from_slice(json: &[u8]) -> Result<Value, serde_json::Error> {
    let read = std::str::from_utf8(json).ok().and_then(|text| {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.skip_space();
        (reader.at == text.len()).then_some(value)
    });
    read.map_or_else(|| serde_json::from_slice(json), Ok)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    /// The next byte that is no space.
    fn next(&mut self) -> Option<u8> {
        self.skip_space();
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn word(&mut self, word: &str, value: Value) -> Option<Value> {
        let rest = self.text.get(self.at - 1..)?;
        self.at += word.len() - 1;
        rest.starts_with(word).then_some(value)
    }

    /// A value; none where `serde_json` has to look at the whole.
    fn value(&mut self, depth: usize) -> Option<Value> {
        match self.next()? {
            b'"' => self.string().map(Value::String),
            b'{' | b'[' if depth == MAX_DEPTH => None,
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'0'..=b'9' | b'-' => self.number(),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            b'n' => self.word("null", Value::Null),
            _ => None,
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        let mut members: Vec<(Text, Value)> = Vec::new();
        let more = self.items(b'}', |reader| {
            if reader.next()? != b'"' {
                return None;
            }
            let name = reader.string()?;
            if reader.next()? != b':' {
                return None;
            }
            members.push((name, reader.value(depth + 1)?));
            Some(())
        });
        more.map(|()| Value::Object(Map::from(members)))
    }

    fn array(&mut self, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        let more = self.items(b']', |reader| {
            items.push(reader.value(depth + 1)?);
            Some(())
        });
        more.map(|()| Value::Array(items.into()))
    }

    /// Items between commas up to a closing bracket.
    fn items(&mut self, end: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.skip_space();
        if self.peek()? == end {
            self.at += 1;
            return Some(());
        }
        loop {
            item(self)?;
            match self.next()? {
                b',' => {}
                byte => return (byte == end).then_some(()),
            }
        }
    }

    /// A string behind its opening quote.
    fn string(&mut self) -> Option<Text> {
        let start = self.at;
        let mut escaped = false;
        loop {
            match self.find_special()? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.at += 2;
                }
                _ => return None,
            }
        }
        let end = self.at;
        self.at += 1;
        if escaped {
            return serde_json::from_str::<String>(self.text.get(start - 1..=end)?).ok().map(Text::from);
        }
        self.text.get(start..end).map(Text::from)
    }

    /// Goes on to the next quote, backslash or control character.
    fn find_special(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(word) = bytes.get(self.at..)?.first_chunk::<8>() {
            let found = special(u64::from_le_bytes(*word));
            if found != 0 {
                self.at += found.trailing_zeros() as usize / 8;
                return self.peek();
            }
            self.at += 8;
        }
        let rest = bytes.get(self.at..)?;
        self.at += rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
        self.peek()
    }

    /// A number behind its first byte.
    fn number(&mut self) -> Option<Value> {
        let start = self.at - 1;
        let bytes = self.text.as_bytes();
        while let Some(b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E') = bytes.get(self.at) {
            self.at += 1;
        }
        let text = self.text.get(start..self.at)?;
        let plain = text.len() < 19
            && text.bytes().all(|b| b.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'));
        if plain {
            return text.parse::<u64>().ok().map(Value::from);
        }
        serde_json::from_str::<Number>(text).ok().map(Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::to_vec;

    fn same(text: &str) {
        let (here, there) = (from_slice(text.as_bytes()), serde_json::from_slice::<Value>(text.as_bytes()));
        assert_eq!(here.map_err(|e| e.to_string()), there.map_err(|e| e.to_string()), "{text}");
    }

    #[test]
    fn what_serde_json_reads_and_refuses() {
        for text in [
            r#"{"b":1,"a":[],"b":{"c":null},"":true}"#,
            " [ 0 , -0, 1.50, 1e3, 18446744073709551615, 999999999999999999, 01 ] ",
            r#"[0,-0,-12,1.50,1e3,18446744073709551615,999999999999999999,1234567890123456789]"#,
            r#""a\"b\u00e9\ud83d\ude00\n and eight more bytes""#,
            "\"é control \u{1}\"",
            r#"{"a":1,}"#,
            "[1,]",
            "[1 2]",
            "{1:2}",
            "tru",
            "nulll",
            "",
            "-",
            "1.",
            "\"abc",
            r#""\"#,
            r#""\x""#,
            "[",
            "{\"a\"",
            "{}x",
            r#"{"a" : false , "c":[ "x" , {} ] }"#,
        ] {
            same(text);
        }
        for depth in [100, 127, 128, 129, 10_000] {
            same(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
        }
        assert!(from_slice(b"\"\xff\"").is_err());
    }

    proptest! {
        #[test]
        fn any_text(text in r#"[\[\]{}",:0-9a-z\\ .eE+-]{0,12}"#) {
            same(&text);
        }

        #[test]
        fn what_is_written(text in "([ -~]{0,12}|\\PC{0,4}){0,4}", number in any::<i64>()) {
            let value = crate::json::json!({"list": [text.clone(), number, {text: number}]});
            prop_assert_eq!(from_slice(&to_vec(&value)).unwrap(), value);
        }
    }
}
