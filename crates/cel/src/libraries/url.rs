//! `url()`.

use std::sync::Arc;

use crate::eval::{Error, Evaluated};
use crate::value::Value;

/// A URL with a scheme and a host, or an absolute path.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Url {
    text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

/// Reads a URL.
pub fn parse(text: &str) -> Result<Url, String> {
    let fault =
        |why: &str| Err(format!("URL parse error during conversion from string: parse {text:?}: {why}"));
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return fault("net/url: invalid control character in URL");
    }
    let rest = text.split('#').next().unwrap_or("");
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) =>
        {
            (scheme.to_ascii_lowercase(), rest)
        }
        Some(("", _)) => return fault("missing protocol scheme"),
        _ => (String::new(), rest),
    };
    let (host, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
        None => ("", rest),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    if host.contains(' ') {
        return fault("invalid character \" \" in host name");
    }
    let port =
        host.rsplit_once(':').filter(|(name, _)| !name.contains(':') || name.ends_with(']')).map(|(_, p)| p);
    if let Some(port) = port.filter(|p| !p.bytes().all(|b| b.is_ascii_digit())) {
        return fault(&format!("invalid port \":{port}\" after host"));
    }
    if path
        .split('%')
        .skip(1)
        .any(|p| !p.as_bytes().get(..2).is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit)))
    {
        return fault("invalid URL escape");
    }
    // As with Go's ParseRequestURI: absolute, or a path from the root.
    if scheme.is_empty() && !path.starts_with('/') {
        return fault("invalid URI for request");
    }
    let (host, path, query) = (host.to_string(), path.to_string(), query.to_string());
    Ok(Url { text: text.into(), scheme, host, path, query })
}

/// By a name of its own.
pub fn global<'a>(name: &str, args: &[Value<'a>]) -> Option<Evaluated<'a>> {
    let [Value::String(text)] = args else { return None };
    match name {
        "url" => Some(parse(text).map(|u| Value::native(crate::Native::Url(u))).map_err(Error::Other)),
        "isURL" => Some(Ok(Value::Bool(parse(text).is_ok()))),
        _ => None,
    }
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(b)) => {
                out.push(b);
                i += 2;
            }
            (b'+', _) => out.push(b' '),
            (b, _) => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// On a URL.
pub fn member<'a>(name: &str, u: &Url) -> Option<Evaluated<'a>> {
    let port = || u.host.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    Some(Ok(match name {
        "getScheme" => Value::text(&*u.scheme),
        "getHost" => Value::text(&*u.host),
        "getHostname" => {
            let host = port().map_or(&*u.host, |(host, _)| host);
            Value::text(host.trim_start_matches('[').trim_end_matches(']'))
        }
        "getPort" => Value::text(port().map_or("", |(_, port)| port)),
        "getEscapedPath" => Value::text(&*u.path),
        "getQuery" => {
            let mut entries: Vec<(Value<'a>, Value<'a>)> = Vec::new();
            for pair in u.query.split('&').filter(|p| !p.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let (key, value) = (Value::text(decoded(key)), Value::text(decoded(value)));
                match entries.iter_mut().find(|(k, _)| k.equal(&key)) {
                    Some((_, Value::List(values))) => Arc::make_mut(values).push(value),
                    _ => entries.push((key, Value::list(vec![value]))),
                }
            }
            Value::Map(Arc::new(entries))
        }
        _ => return None,
    }))
}
