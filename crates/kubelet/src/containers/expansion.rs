//! `$(VAR)` in commands, arguments and values. `$$` stands for `$`; what is not known stays as it is written.

/// Replaces each `$(NAME)` by what `value` gives for it.
pub fn expand(text: &str, mut value: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('(') {
            match inner.split_once(')') {
                Some((name, after)) => {
                    match value(name) {
                        Some(v) => out.push_str(&v),
                        None => out.push_str(&format!("$({name})")),
                    }
                    rest = after;
                }
                None => {
                    out.push_str("$(");
                    rest = inner;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The same for `subPathExpr`, where every variable must be known.
pub fn expand_all(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut missing = None;
    let expanded = expand(text, |name| {
        let v = value(name);
        if v.is_none() {
            missing.get_or_insert_with(|| format!("missing value for {name}"));
        }
        v
    });
    missing.map_or(Ok(expanded), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(name: &str) -> Option<String> {
        (name == "X").then(|| "x".to_string())
    }

    #[test]
    fn expands_as_kubernetes_does() {
        for (text, want) in [
            ("$$", "$"),
            ("$$$$", "$$"),
            ("$(X)", "x"),
            ("$$(X)", "$(X)"),
            ("$$$(X)", "$x"),
            ("a$(X)b$(Y)", "axb$(Y)"),
            ("$(X", "$(X"),
            ("$X$", "$X$"),
            ("$()", "$()"),
            ("ä$(X)ö", "äxö"),
        ] {
            assert_eq!(expand(text, value), want, "{text}");
        }
    }

    #[test]
    fn sub_paths_need_every_variable() {
        assert_eq!(expand_all("$(X)/y", value), Ok("x/y".into()));
        assert_eq!(expand_all("$(NOPE)/x", value), Err("missing value for NOPE".into()));
    }
}
