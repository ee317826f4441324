//! Formats of strings that schemas may ask for.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::time::Timestamp;

/// Whether a string is of the format. Formats that are not known hold for every string.
pub fn is_valid(format: &str, text: &str) -> bool {
    let hex = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_hexdigit());
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    match format {
        "bsonobjectid" => text.len() == 24 && hex(text),
        "uri" => is_uri(text),
        "email" => is_email(text),
        "hostname" => {
            text.len() <= 253
                && text.trim_end_matches('.').split('.').all(|label| {
                    !label.is_empty()
                        && label.len() <= 63
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                })
        }
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => names::parse_cidr(text).is_some(),
        "mac" => {
            [':', '-'].iter().any(|sep| {
                let parts: Vec<&str> = text.split(*sep).collect();
                [6, 8, 20].contains(&parts.len()) && parts.iter().all(|p| p.len() == 2 && hex(p))
            }) || {
                let parts: Vec<&str> = text.split('.').collect();
                [3, 4, 10].contains(&parts.len()) && parts.iter().all(|p| p.len() == 4 && hex(p))
            }
        }
        "uuid" | "uuid3" | "uuid4" | "uuid5" => is_uuid(format, text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => is_credit_card(text),
        "ssn" => {
            let parts: Vec<&str> = text.split(['-', ' ']).collect();
            parts.len() == 3 && [3, 2, 4].iter().zip(&parts).all(|(n, p)| p.len() == *n && digits(p))
        }
        "hexcolor" => {
            let color = text.strip_prefix('#').unwrap_or(text);
            [3, 6].contains(&color.len()) && hex(color)
        }
        "rgbcolor" => is_rgb(text),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "date" => text.len() == 10 && Timestamp::parse(&format!("{text}T00:00:00Z")).is_ok(),
        "date-time" | "datetime" => is_date_time(text),
        "duration" => is_duration(text),
        _ => true,
    }
}

fn is_uri(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once(':') else { return text.starts_with('/') };
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    (scheme_ok || text.starts_with('/'))
        && !rest.contains(char::is_whitespace)
        && !rest.contains(char::is_control)
}

fn is_email(text: &str) -> bool {
    let address = match (text.find('<'), text.ends_with('>')) {
        (Some(at), true) => &text[at + 1..text.len() - 1],
        _ => text,
    };
    address.rsplit_once('@').is_some_and(|(user, host)| {
        !user.is_empty() && !host.is_empty() && !address.contains(char::is_whitespace) && !host.contains('@')
    })
}

fn is_uuid(format: &str, text: &str) -> bool {
    let compact: String = text.chars().filter(|c| *c != '-').collect();
    let hex = compact.len() == 32 && compact.bytes().all(|b| b.is_ascii_hexdigit());
    let version = compact.chars().nth(12);
    let variant = compact.chars().nth(16).map(|c| c.to_ascii_lowercase());
    hex && match format {
        "uuid3" => version == Some('3'),
        "uuid4" => version == Some('4') && variant.is_some_and(|v| "89ab".contains(v)),
        "uuid5" => version == Some('5') && variant.is_some_and(|v| "89ab".contains(v)),
        _ => true,
    }
}

fn bare(text: &str) -> Vec<u8> {
    text.bytes().filter(|b| *b != b'-' && *b != b' ').collect()
}

fn is_isbn10(text: &str) -> bool {
    let digits = bare(text);
    let value = |(i, b): (usize, &u8)| match b {
        b'0'..=b'9' => Some(u32::from(b - b'0') * (10 - u32::try_from(i).ok()?)),
        b'X' | b'x' if i == 9 => Some(10),
        _ => None,
    };
    digits.len() == 10
        && digits.iter().enumerate().map(value).sum::<Option<u32>>().is_some_and(|sum| sum.is_multiple_of(11))
}

fn is_isbn13(text: &str) -> bool {
    let digits = bare(text);
    digits.len() == 13 && digits.iter().all(u8::is_ascii_digit) && {
        let sum: u32 = digits
            .iter()
            .enumerate()
            .map(|(i, b)| u32::from(b - b'0') * if i % 2 == 0 { 1 } else { 3 })
            .sum();
        sum.is_multiple_of(10)
    }
}

fn is_credit_card(text: &str) -> bool {
    let digits = bare(text);
    (13..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) && {
        let sum: u32 = digits
            .iter()
            .rev()
            .enumerate()
            .map(|(i, b)| {
                let d = u32::from(b - b'0') * if i % 2 == 1 { 2 } else { 1 };
                if d > 9 { d - 9 } else { d }
            })
            .sum();
        sum.is_multiple_of(10)
    }
}

fn is_rgb(text: &str) -> bool {
    let body = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')'));
    body.is_some_and(|body| {
        let parts: Vec<&str> = body.split(',').map(str::trim).collect();
        parts.len() == 3 && parts.iter().all(|p| p.parse::<u8>().is_ok())
    })
}

/// Go's formats of date and time: RFC 3339 with or without offset and fraction.
fn is_date_time(text: &str) -> bool {
    let upper = text.to_ascii_uppercase();
    let with_zone = [upper.clone(), format!("{upper}Z")];
    let spaced_zone = upper.len() > 5 && upper.is_char_boundary(upper.len() - 5) && {
        let (head, zone) = upper.split_at(upper.len() - 5);
        (zone.starts_with('+') || zone.starts_with('-'))
            && Timestamp::parse(&format!("{head}{}:{}", &zone[..3], &zone[3..])).is_ok()
    };
    spaced_zone || with_zone.iter().any(|t| Timestamp::parse(t).is_ok())
}

/// Go's durations (`1h30m`) and those of go-openapi in words (`3 days`).
fn is_duration(text: &str) -> bool {
    const UNITS: &[&str] = &["ns", "us", "µs", "μs", "ms", "s", "m", "h"];
    const WORDS: &[&str] = &[
        "nanosecond",
        "ns",
        "microsecond",
        "us",
        "µs",
        "micro",
        "millisecond",
        "ms",
        "milli",
        "second",
        "sec",
        "s",
        "minute",
        "min",
        "m",
        "hour",
        "hr",
        "h",
        "day",
        "d",
        "week",
        "wk",
        "w",
    ];
    if text == "0" {
        return true;
    }
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let mut go = !rest.is_empty();
    while go && !rest.is_empty() {
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let after = &rest[number..];
        let unit = after.len() - after.trim_start_matches(|c: char| !c.is_ascii_digit() && c != '.').len();
        go = rest[..number].bytes().any(|b| b.is_ascii_digit()) && UNITS.contains(&&after[..unit]);
        rest = &after[unit..];
    }
    let lower = text.trim().to_lowercase();
    let split = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let unit = unit.trim();
    go || !number.is_empty() && WORDS.iter().any(|w| unit == *w || unit.strip_suffix('s') == Some(w))
}
