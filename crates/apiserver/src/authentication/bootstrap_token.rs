//! Bootstrap tokens: Secrets `bootstrap-token-<id>` in `kube-system`
//! (<https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>).

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::json::Value;

use crate::json::{has, str_at};
use crate::request::{Objects, UserInfo};

const GROUP: &str = "system:bootstrappers";

fn is_word(s: &str, length: usize) -> bool {
    s.len() == length && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

fn data(secret: &Value, key: &str) -> String {
    let decoded = STANDARD.decode(str_at(secret, &["data", key])).unwrap_or_default();
    String::from_utf8(decoded).unwrap_or_default()
}

/// Whose a token is; `None` where it is no (valid) bootstrap token.
pub fn user(token: &str, objects: &dyn Objects) -> Option<UserInfo> {
    let (id, _) = token.split_once('.').filter(|(id, key)| is_word(id, 6) && is_word(key, 16))?;
    let secret = objects.get("", "secrets", "kube-system", &format!("bootstrap-token-{id}"))?;
    check(token, &secret, jiff::Timestamp::now())
}

fn check(token: &str, secret: &Value, now: jiff::Timestamp) -> Option<UserInfo> {
    let (id, key) = token.split_once('.')?;
    let valid = str_at(secret, &["type"]) == "bootstrap.kubernetes.io/token"
        && !has(secret, &["metadata", "deletionTimestamp"])
        && verify_slices_are_equal(data(secret, "token-secret").as_bytes(), key.as_bytes()).is_ok()
        && data(secret, "token-id") == id
        && data(secret, "usage-bootstrap-authentication") == "true";
    if !valid {
        return None;
    }
    let expiration = data(secret, "expiration");
    if !expiration.is_empty() && expiration.parse::<jiff::Timestamp>().ok()? <= now {
        return None;
    }
    let mut groups = vec![GROUP.to_string()];
    for group in data(secret, "auth-extra-groups").split(',').filter(|g| !g.is_empty()) {
        if !is_group(group) {
            return None;
        }
        if !groups.iter().any(|g| g == group) {
            groups.push(group.to_string());
        }
    }
    groups.sort_unstable();
    Some(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })
}

/// `system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]`.
fn is_group(group: &str) -> bool {
    group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
        (1..=256).contains(&rest.len())
            && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b':' || b == b'-')
            && rest.ends_with(|c: char| c.is_ascii_alphanumeric())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_apimachinery::json::json;

    fn secret(extra: &[(&str, &str)]) -> Value {
        let mut v = json!({"type": "bootstrap.kubernetes.io/token", "data": {}});
        let base = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("expiration", "2030-01-01T00:00:00Z"),
        ];
        for (k, x) in base.iter().chain(extra) {
            v["data"][*k] = json!(STANDARD.encode(x));
        }
        v
    }

    #[test]
    fn accepts_good_tokens_only() {
        let now: jiff::Timestamp = "2029-12-31T23:59:59Z".parse().unwrap();
        let token = "abcdef.0123456789abcdef";
        let u =
            check(token, &secret(&[("auth-extra-groups", "system:bootstrappers:kubeadm:x")]), now).unwrap();
        assert_eq!(u.name, "system:bootstrap:abcdef");
        assert_eq!(u.groups, ["system:bootstrappers", "system:bootstrappers:kubeadm:x"]);
        for bad in [
            secret(&[("expiration", "2029-12-31T23:59:59Z")]),
            secret(&[("usage-bootstrap-authentication", "false")]),
            secret(&[("token-secret", "0123456789abcdee")]),
            secret(&[("auth-extra-groups", "system:masters")]),
            secret(&[("token-id", "other1")]),
        ] {
            assert_eq!(check(token, &bad, now), None, "{bad}");
        }
    }
}
