//! What the resource version, its match and the continue token of a list ask for.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pilothouse_apimachinery::status::Status;
use serde::{Deserialize, Serialize};

use crate::options::ListOptions;

/// Which state of the store a list wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The newest.
    MostRecent,
    /// Any, the cache's.
    Any,
    /// At least as new as a revision.
    NotOlderThan(u64),
    /// Exactly that of a revision.
    Exact(u64),
    /// A following page.
    Page {
        /// The revision of the first page; 0 for the newest, when that one is gone.
        revision: u64,
        /// First key that the page may hold, without the prefix of its keys.
        start: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Token {
    #[serde(default)]
    v: String,
    #[serde(default)]
    rv: i64,
    #[serde(default)]
    start: String,
}

/// The token for the page after `last` (a key without the prefix of the list's keys).
pub fn continue_token(revision: i64, last: &str) -> String {
    // The first key that may come after the last one.
    let token = Token { v: "meta.k8s.io/v1".into(), rv: revision, start: format!("{last}\0") };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

fn decode(token: &str) -> Result<(i64, String), String> {
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|e| format!("continue key is not valid: {e}"))?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|e| {
        let fault = pilothouse_api::decode::json_fault(&bytes).unwrap_or_else(|| e.to_string());
        format!("continue key is not valid: {fault}")
    })?;
    if token.v != "meta.k8s.io/v1" {
        return Err(format!(
            "continue key is not valid: server does not recognize this encoded version {:?}",
            token.v
        ));
    }
    if token.rv == 0 {
        return Err(
            "continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)"
                .into(),
        );
    }
    if token.start.is_empty() {
        return Err("continue key is not valid: encoded start key empty (version meta.k8s.io/v1)".into());
    }
    let start = token.start.strip_prefix('/').unwrap_or(&token.start);
    // A token must not climb out of the list's own keys.
    if start.split('/').any(|p| matches!(p, "" | "." | "..")) {
        return Err(format!("continue key is not valid: {}", token.start));
    }
    Ok((token.rv, start.to_string()))
}

/// A resource version as a number.
pub fn parse_version(text: &str) -> Result<u64, Status> {
    text.parse().map_err(|_| {
        let why = unreadable_version(text).message;
        Status::failure(500, "", format!("resourceVersion: Invalid value: {text:?}: {why}"))
    })
}

/// The complaint about an object's resource version that is no number.
pub fn unreadable_version(text: &str) -> Status {
    let why = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        "value out of range"
    } else {
        "invalid syntax"
    };
    Status::failure(500, "", format!("strconv.ParseUint: parsing {text:?}: {why}"))
}

/// What a list's options ask for.
pub fn wanted(options: &ListOptions) -> Result<Wanted, Status> {
    let rv = options.resource_version.as_str();
    if !options.continue_token.is_empty() {
        if !matches!(rv, "" | "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let (revision, start) = decode(&options.continue_token)
            .map_err(|e| Status::bad_request(format!("invalid continue token: {e}")))?;
        return Ok(Wanted::Page { revision: u64::try_from(revision).unwrap_or(0), start });
    }
    if rv.is_empty() {
        return Ok(Wanted::MostRecent);
    }
    let revision = parse_version(rv)?;
    Ok(match options.version_match.as_str() {
        _ if revision == 0 => Wanted::Any,
        "Exact" => Wanted::Exact(revision),
        "" if options.limit > 0 => Wanted::Exact(revision),
        _ => Wanted::NotOlderThan(revision),
    })
}

/// 504: the revision asked for has not happened yet.
pub fn too_large(wanted: u64, current: u64) -> Status {
    Status::timeout(format!("Too large resource version: {wanted}, current: {current}"), 1).cause(
        "ResourceVersionTooLarge",
        "Too large resource version",
        "",
    )
}

/// 410 for a list at a revision that is gone.
pub fn list_expired() -> Status {
    Status::expired("The resourceVersion for the provided list is too old.")
}

/// 410 for a page at a revision that is gone, with a token that goes on with the newest state.
pub fn page_expired(last: &str) -> Status {
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    let token = continue_token(-1, last.strip_suffix('\0').unwrap_or(last));
    status.metadata.insert("continue", token);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(rv: &str, version_match: &str, limit: i64, token: &str) -> ListOptions {
        ListOptions {
            resource_version: rv.into(),
            version_match: version_match.into(),
            limit,
            continue_token: token.into(),
            ..ListOptions::default()
        }
    }

    #[test]
    fn the_table_of_meanings() {
        for (rv, matching, limit, want) in [
            ("", "", 0, Wanted::MostRecent),
            ("", "", 5, Wanted::MostRecent),
            ("0", "", 0, Wanted::Any),
            ("0", "", 5, Wanted::Any),
            ("0", "NotOlderThan", 5, Wanted::Any),
            ("7", "", 0, Wanted::NotOlderThan(7)),
            ("7", "", 5, Wanted::Exact(7)),
            ("7", "NotOlderThan", 5, Wanted::NotOlderThan(7)),
            ("7", "Exact", 0, Wanted::Exact(7)),
            ("7", "Exact", 5, Wanted::Exact(7)),
        ] {
            assert_eq!(wanted(&options(rv, matching, limit, "")).unwrap(), want, "{rv} {matching} {limit}");
        }
        let e = wanted(&options("x", "", 0, "")).unwrap_err();
        assert_eq!(
            (e.code, e.message.as_str()),
            (500, "resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax")
        );
    }

    #[test]
    fn tokens() {
        let token = continue_token(12, "ns/a");
        let page = wanted(&options("", "", 5, &token)).unwrap();
        assert_eq!(page, Wanted::Page { revision: 12, start: "ns/a\0".into() });
        assert_eq!(wanted(&options("0", "", 5, &token)).unwrap(), page);
        assert_eq!(wanted(&options("3", "", 5, &token)).unwrap_err().code, 400);
        for bad in
            ["*", "e30", &continue_token(0, "a"), &continue_token(3, "../x"), &continue_token(3, "a//b")]
        {
            let e = wanted(&options("", "", 5, bad)).unwrap_err();
            assert!(
                e.message.starts_with("invalid continue token: continue key is not valid"),
                "{}",
                e.message
            );
        }
        let expired = page_expired("ns/a\0");
        let fresh = expired.metadata["continue"].as_str().unwrap();
        assert_eq!(
            wanted(&options("", "", 5, fresh)).unwrap(),
            Wanted::Page { revision: 0, start: "ns/a\0".into() }
        );
    }
}
