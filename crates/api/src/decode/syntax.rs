//! What is wrong with a text that is no JSON, in the words of Go's `encoding/json`.

/// The fault of a text; nothing where it is JSON.
pub fn fault(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { text, at: 0 };
    match scanner.document() {
        Ok(()) => None,
        Err(context) => Some(match scanner.text.get(scanner.at) {
            None => "unexpected end of JSON input".into(),
            Some(b) => format!("invalid character {} {context}", quoted(*b)),
        }),
    }
}

fn quoted(b: u8) -> String {
    match b {
        b'\'' => "'\\''".into(),
        b'"' => "'\"'".into(),
        // The second block of control characters, and the soft hyphen: Go prints their numbers.
        0x80..=0x9f | 0xad => format!("'\\u{b:04x}'"),
        _ => {
            let text = pilothouse_apimachinery::go::quote(&char::from(b).to_string());
            format!("'{}'", &text[1..text.len() - 1])
        }
    }
}

/// Stands at the byte that is wrong when a function fails with the words for it.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

type Outcome = Result<(), String>;

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// A whole document. Lists and objects are kept on a stack of our own.
    fn document(&mut self) -> Outcome {
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.space();
            // A value is due.
            match self.peek() {
                Some(b @ (b'{' | b'[')) => {
                    self.at += 1;
                    self.space();
                    if self.peek() == Some(if b == b'{' { b'}' } else { b']' }) {
                        self.at += 1;
                    } else {
                        open.push(b);
                        if b == b'{' {
                            self.key("looking for beginning of object key string")?;
                        }
                        continue;
                    }
                }
                Some(b'"') => self.string()?,
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                _ => return Err("looking for beginning of value".into()),
            }
            // A value has ended.
            loop {
                self.space();
                match (open.last(), self.peek()) {
                    (None, None) => return Ok(()),
                    (None, Some(_)) => return Err("after top-level value".into()),
                    (Some(b'{'), Some(b',')) => {
                        self.at += 1;
                        self.space();
                        self.key("looking for beginning of object key string")?;
                        break;
                    }
                    (Some(b'['), Some(b',')) => {
                        self.at += 1;
                        break;
                    }
                    (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']')) => {
                        self.at += 1;
                        open.pop();
                    }
                    (Some(b'{'), _) => return Err("after object key:value pair".into()),
                    _ => return Err("after array element".into()),
                }
            }
        }
    }

    fn key(&mut self, context: &str) -> Outcome {
        if self.peek() != Some(b'"') {
            return Err(context.into());
        }
        self.string()?;
        self.space();
        if self.peek() != Some(b':') {
            return Err("after object key".into());
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Outcome {
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"') => self.at += 1,
                        Some(b'u') => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.peek().is_some_and(|b| b.is_ascii_hexdigit()) {
                                    return Err("in \\u hexadecimal character escape".into());
                                }
                                self.at += 1;
                            }
                        }
                        _ => return Err("in string escape code".into()),
                    }
                }
                Some(b) if b >= 0x20 => self.at += 1,
                _ => return Err("in string literal".into()),
            }
        }
    }

    fn literal(&mut self, word: &'static [u8]) -> Outcome {
        for expected in word {
            if self.peek() != Some(*expected) {
                let word = String::from_utf8_lossy(word);
                return Err(format!("in literal {word} (expecting '{}')", char::from(*expected)));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn digits(&mut self, context: &str) -> Outcome {
        if !self.peek().is_some_and(|b| b.is_ascii_digit()) {
            return Err(context.into());
        }
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Outcome {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits("in numeric literal")?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (text, words) in [
            ("", "unexpected end of JSON input"),
            ("{", "unexpected end of JSON input"),
            ("not json", "invalid character 'o' in literal null (expecting 'u')"),
            ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 \"b\"}", "invalid character '\"' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("01", "invalid character '1' after top-level value"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("\"\n\"", "invalid character '\\n' in string literal"),
        ] {
            assert_eq!(fault(text.as_bytes()).as_deref(), Some(words), "{text}");
        }
        for text in ["{}", "[]", " {\"a\": [1, -0.5e+3, true, null, \"\\u00e9\"]} ", "1"] {
            assert_eq!(fault(text.as_bytes()), None, "{text}");
        }
        assert_eq!(fault(&b"[".repeat(100_000)).as_deref(), Some("unexpected end of JSON input"));
    }
}
