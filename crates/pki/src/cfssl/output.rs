//! cfssljson: the PEM texts that cfssl prints, into files.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::args::Args;
use super::{Fault, read};
use crate::files;

/// The member of the JSON, the ending of its file's name, and whether it is a secret.
const PARTS: &[(&[&str], &str, bool)] = &[
    (&["cert", "certificate"], ".pem", false),
    (&["key", "private_key"], "-key.pem", true),
    (&["csr", "certificate_request"], ".csr", false),
    (&["bundle"], "-bundle.pem", false),
];

/// `cfssljson [-bare] [-f FILE] [-stdout] [NAME]`: writes `NAME.pem`, `NAME-key.pem` and `NAME.csr`. Nothing is
/// written where the input is not whole.
pub(super) fn main(args: &[String]) -> Result<String, Fault> {
    let args = Args::parse(&[("bare", false), ("f", true), ("stdout", false)], args)?;
    let source = if args.get("f").is_empty() { "-" } else { args.get("f") };
    let found = parts(&read(source)?, args.has("bare")).map_err(Fault::Input)?;
    if args.has("stdout") {
        return Ok(found.into_iter().map(|(_, _, text)| text).collect());
    }
    let base = args.rest.first().map_or("cert", String::as_str);
    for (ending, secret, text) in found {
        let path = PathBuf::from(format!("{base}{ending}"));
        let write: fn(&Path, &[u8]) -> _ = if secret { files::write_private } else { files::write_public };
        write(&path, text.as_bytes())?;
    }
    Ok(String::new())
}

fn parts(input: &str, bare: bool) -> Result<Vec<(&'static str, bool, String)>, String> {
    if input.trim().is_empty() {
        return Err("there is no input: the command before this one failed".into());
    }
    let mut input: Value = serde_json::from_str(input).map_err(|e| format!("Failed to parse input: {e}"))?;
    if !bare {
        if input["success"] == Value::Bool(false) {
            let errors: Vec<&str> = input["errors"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|e| e["message"].as_str())
                .collect();
            return Err(format!("Request failed: {}", errors.join("; ")));
        }
        if !input["result"].is_object() {
            return Err("the input is no answer of cfssl's server; cfssl's own output needs -bare".into());
        }
        input = input["result"].take();
    }
    let mut found = Vec::new();
    for (names, ending, secret) in PARTS {
        let text = names.iter().find_map(|n| input[*n].as_str()).filter(|t| !t.is_empty());
        if let Some(text) = text {
            found.push((*ending, *secret, text.to_string()));
        }
    }
    if found.is_empty() { Err("the input holds neither a certificate nor a key".into()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_and_wrapped() {
        let bare = r#"{"cert": "C", "csr": "R", "key": "K"}"#;
        let all = vec![
            (".pem", false, "C".to_string()),
            ("-key.pem", true, "K".to_string()),
            (".csr", false, "R".to_string()),
        ];
        assert_eq!(parts(bare, true).unwrap(), all);
        let wrapped = r#"{"success": true, "result": {"certificate": "C", "private_key": "K", "certificate_request": "R"}}"#;
        assert_eq!(parts(wrapped, false).unwrap(), all);
        for (input, is_bare, text) in [
            ("", true, "there is no input"),
            ("{", true, "Failed to parse input"),
            ("{}", true, "neither"),
            (bare, false, "-bare"),
            (r#"{"success": false, "errors": [{"message": "no"}]}"#, false, "Request failed: no"),
        ] {
            let e = parts(input, is_bare).unwrap_err();
            assert!(e.contains(text), "{e}");
        }
    }
}
