//! `--token-auth-file`: lines of `token,user,uid,"group1,group2"`.

use std::collections::HashMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::request::UserInfo;

/// The users of a token file. Tokens are kept as hashes only.
#[derive(Debug)]
pub struct TokenFile(HashMap<[u8; 32], UserInfo>);

impl TokenFile {
    /// Reads a file. Errors name it and the line.
    pub fn load(path: &Path) -> Result<TokenFile, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("open {}: {e}", path.display()))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses a file's text; `name` is for errors.
    pub fn parse(text: &str, name: &str) -> Result<TokenFile, String> {
        let mut users = HashMap::new();
        for (i, line) in text.lines().enumerate().map(|(i, l)| (i + 1, l.trim_end_matches('\r'))) {
            if line.is_empty() {
                continue;
            }
            let fields = fields(line).map_err(|why| format!("token file '{name}', line {i}: {why}"))?;
            let [token, user, uid, rest @ ..] = fields.as_slice() else {
                return Err(format!(
                    "token file '{name}' must have at least 3 columns (token, user name, user uid), found {} in line {i}",
                    fields.len()
                ));
            };
            if token.is_empty() {
                tracing::warn!("empty token has been found in token file '{name}', record number '{i}'");
                continue;
            }
            let groups = rest.first().map(|g| g.split(',').map(String::from).collect()).unwrap_or_default();
            let info = UserInfo { name: user.clone(), uid: uid.clone(), groups, ..UserInfo::default() };
            if users.insert(Sha256::digest(token).into(), info).is_some() {
                tracing::warn!("duplicate token has been found in token file '{name}', record number '{i}'");
            }
        }
        Ok(TokenFile(users))
    }

    /// Whose a token is.
    pub fn user(&self, token: &str) -> Option<UserInfo> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        self.0.get(&hash).cloned()
    }
}

/// The fields of a CSV line, RFC 4180: a field in quotes may hold commas, and quotes written twice.
fn fields(line: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut rest = line;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            let mut chars = quoted.char_indices();
            let end = loop {
                match chars.next() {
                    None => return Err("extraneous or missing \" in quoted-field".into()),
                    Some((i, '"')) if quoted[i + 1..].starts_with('"') => {
                        field.push('"');
                        chars.next();
                    }
                    Some((i, '"')) => break i + 1,
                    Some((_, c)) => field.push(c),
                }
            };
            out.push(field);
            rest = &quoted[end..];
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            if rest[..end].contains('"') {
                return Err("bare \" in non-quoted-field".into());
            }
            out.push(rest[..end].to_string());
            rest = &rest[end..];
        }
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(out),
            None => return Err("extraneous or missing \" in quoted-field".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_users() {
        let f = TokenFile::parse("t1,alice,1,\"a,b\"\r\n\nt2,bob,2\n,nobody,3\n", "f").unwrap();
        let alice = f.user("t1").unwrap();
        assert_eq!((alice.name.as_str(), alice.uid.as_str()), ("alice", "1"));
        assert_eq!(alice.groups, ["a", "b"]);
        assert_eq!(f.user("t2").unwrap().groups, Vec::<String>::new());
        assert_eq!(f.user(""), None);
        assert_eq!(f.user("t3"), None);
    }

    #[test]
    fn names_the_bad_line_but_not_the_token() {
        let e = TokenFile::parse("t1,alice,1\nsecret,bob\n", "/etc/token.csv").unwrap_err();
        assert_eq!(
            e,
            "token file '/etc/token.csv' must have at least 3 columns (token, user name, user uid), found 2 in line 2"
        );
        let e = TokenFile::parse("secret,\"bob,1\n", "f").unwrap_err();
        assert!(e.contains("line 1") && !e.contains("secret"), "{e}");
    }
}
