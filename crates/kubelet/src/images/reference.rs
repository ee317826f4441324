//! Names of images.

use pilothouse_apimachinery::go::quote;

struct Parts<'a> {
    /// Without tag and digest.
    name: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

fn split(image: &str) -> Parts<'_> {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(r, d)| (r, Some(d)));
    let (name, tag) = match rest.rsplit_once(':') {
        // A colon before the last slash belongs to a port.
        Some((n, t)) if !t.contains('/') => (n, Some(t)),
        _ => (rest, None),
    };
    Parts { name, tag, digest }
}

fn is_domain(part: &str) -> bool {
    part.contains('.') || part.contains(':') || part == "localhost"
}

fn valid_component(part: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends = part.starts_with(alnum) && part.ends_with(alnum);
    ends && part.chars().all(|c| alnum(c) || matches!(c, '.' | '_' | '-'))
}

/// Adds `:latest` where there is neither tag nor digest. The error is that of Docker's parser.
pub fn with_default_tag(image: &str) -> Result<String, String> {
    let bad = |why: &str| Err(format!("couldn't parse image reference {}: {why}", quote(image)));
    let parts = split(image);
    let path: Vec<&str> = parts.name.split('/').collect();
    let components = match path.as_slice() {
        [first, rest @ ..] if !rest.is_empty() && is_domain(first) => rest,
        all => all,
    };
    let tag_ok = parts.tag.is_none_or(|t| {
        let first = t.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        first
            && t.len() <= 128
            && t.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
    });
    let digest_ok = parts.digest.is_none_or(|d| {
        d.split_once(':')
            .is_some_and(|(_, hex)| hex.len() >= 32 && hex.chars().all(|c| c.is_ascii_hexdigit()))
    });
    if !tag_ok || !digest_ok || !components.iter().all(|c| valid_component(c)) {
        let lower = components.iter().all(|c| valid_component(&c.to_lowercase()));
        return match lower && tag_ok && digest_ok {
            true => bad("invalid reference format: repository name must be lowercase"),
            false => bad("invalid reference format"),
        };
    }
    Ok(match (parts.tag, parts.digest) {
        (None, None) => format!("{image}:latest"),
        _ => image.to_string(),
    })
}

/// The repository with its registry: `docker.io/library/busybox`.
pub fn repository(image: &str) -> String {
    let name = split(image).name;
    match name.split_once('/') {
        Some((first, _)) if is_domain(first) => name.to_string(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        assert_eq!(with_default_tag("busybox").unwrap(), "busybox:latest");
        assert_eq!(with_default_tag("20.0.0.1:5000/library/x").unwrap(), "20.0.0.1:5000/library/x:latest");
        assert_eq!(with_default_tag("a/b:1").unwrap(), "a/b:1");
        let digest = format!("r:5000/b@sha256:{}", "0".repeat(64));
        assert_eq!(with_default_tag(&digest).unwrap(), digest);
        assert_eq!(
            with_default_tag("Busy").unwrap_err(),
            "couldn't parse image reference \"Busy\": invalid reference format: repository name must be lowercase"
        );
        assert!(with_default_tag("a b").is_err());
        assert!(with_default_tag("").is_err());
    }

    #[test]
    fn repositories() {
        assert_eq!(repository("busybox:1"), "docker.io/library/busybox");
        assert_eq!(repository("a/b@sha256:x"), "docker.io/a/b");
        assert_eq!(repository("r:5000/b:2"), "r:5000/b");
    }
}
