//! Service accounts' tokens: those kept in Secrets, and those bound to an object and a time
//! (<https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/>).

use pilothouse_apimachinery::json::{Value, json};
use pilothouse_pki::tokens::{Jws, PublicKey, SigningKey, public_keys_of_file};

use super::TokenResult;
use crate::config::Config;
use crate::json::{entry, get, has, i64_at, str_at};
use crate::request::{Objects, UserInfo};

/// The issuer of tokens in Secrets.
const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";
const LEGACY: &str = "kubernetes.io/serviceaccount/";
/// Clocks may differ by so many seconds.
const LEEWAY: i64 = 60;

/// Checks tokens.
pub struct Tokens {
    keys: Vec<PublicKey>,
    issuer: String,
    audiences: Vec<String>,
    lookup: bool,
}

/// Makes tokens.
#[derive(Debug)]
pub struct Issuer {
    key: SigningKey,
    issuer: String,
}

/// The public keys of this server, the signing key's included.
pub fn keys(config: &Config) -> Result<Vec<PublicKey>, String> {
    let mut keys = Vec::new();
    for file in &config.service_account_key_files {
        keys.extend(public_keys_of_file(file)?);
    }
    if let Some(file) = &config.service_account_signing_key_file {
        if keys.is_empty() {
            keys.push(SigningKey::load(file)?.public().clone());
        }
    } else if keys.is_empty()
        && let Some(serving) = &config.serving
        // Kubernetes' own default: the serving key, where it is RSA or ECDSA.
        && let Ok(key) = SigningKey::load(&serving.key)
    {
        keys.push(key.public().clone());
    }
    Ok(keys)
}

/// A user's name for a service account.
pub fn user_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The user that a service account is.
pub fn user(namespace: &str, name: &str, uid: &str) -> UserInfo {
    UserInfo {
        name: user_name(namespace, name),
        uid: uid.to_string(),
        groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")],
        ..UserInfo::default()
    }
}

/// An object that a token depends on, from the cache or, where the cache does not have it yet, from the store.
async fn find(
    objects: &dyn Objects,
    resource: &str,
    namespace: &str,
    name: &str,
) -> Option<std::sync::Arc<Value>> {
    match objects.get("", resource, namespace, name) {
        Some(found) => Some(found),
        None => objects.get_latest("", resource, namespace, name).await.ok(),
    }
}

fn deleted_before(object: &Value, limit: i64) -> bool {
    let at = str_at(object, &["metadata", "deletionTimestamp"]);
    !at.is_empty() && at.parse::<jiff::Timestamp>().is_ok_and(|t| t.as_second() < limit)
}

impl Tokens {
    /// From the flags; `None` where there is no key.
    pub fn new(config: &Config) -> Result<Option<Tokens>, String> {
        let keys = keys(config)?;
        Ok((!keys.is_empty()).then(|| Tokens {
            keys,
            issuer: config.service_account_issuer.clone(),
            audiences: config.api_audiences.clone(),
            lookup: config.service_account_lookup,
        }))
    }

    /// Whose a token is. `audiences` are those that the caller asks for.
    pub async fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        objects: &dyn Objects,
    ) -> TokenResult {
        let Some(jws) = Jws::parse(token) else { return Ok(None) };
        let issuer = str_at(&jws.claims, &["iss"]);
        if issuer != LEGACY_ISSUER && issuer != self.issuer {
            return Ok(None);
        }
        if !jws.verify(&self.keys) {
            return Err("invalid bearer token".into());
        }
        let claims = &jws.claims;
        let mut token_audiences: Vec<String> = match claims.get("aud") {
            Some(Value::String(one)) => vec![one.to_string()],
            Some(Value::Array(_)) => crate::json::texts(claims, &["aud"]),
            _ => Vec::new(),
        };
        if token_audiences.is_empty() {
            token_audiences.clone_from(&self.audiences);
        }
        let shared: Vec<String> = audiences.iter().filter(|a| token_audiences.contains(a)).cloned().collect();
        if shared.is_empty() && !self.audiences.is_empty() {
            return Err(format!(
                "token audiences {token_audiences:?} is invalid for the target audiences {audiences:?}"
            ));
        }
        let user = if issuer == LEGACY_ISSUER && has(claims, &[&format!("{LEGACY}secret.name")]) {
            self.legacy(token, claims, objects).await?
        } else {
            self.bound(claims, objects, jiff::Timestamp::now().as_second()).await?
        };
        Ok(Some((user, shared)))
    }

    async fn legacy(&self, token: &str, claims: &Value, objects: &dyn Objects) -> Result<UserInfo, String> {
        let claim = |name: &str| str_at(claims, &[&format!("{LEGACY}{name}")]).to_string();
        let (namespace, secret_name) = (claim("namespace"), claim("secret.name"));
        let (name, uid) = (claim("service-account.name"), claim("service-account.uid"));
        for (what, value) in [
            ("sub", str_at(claims, &["sub"])),
            ("namespace", &namespace),
            ("secretName", &secret_name),
            ("serviceAccountName", &name),
            ("serviceAccountUID", &uid),
        ] {
            if value.is_empty() {
                return Err(format!("{what} claim is missing"));
            }
        }
        if str_at(claims, &["sub"]) != user_name(&namespace, &name) {
            return Err("sub claim is invalid".into());
        }
        if self.lookup {
            let invalid = || "Token has been invalidated".to_string();
            let secret = find(objects, "secrets", &namespace, &secret_name).await.ok_or_else(invalid)?;
            if has(&secret, &["metadata", "deletionTimestamp"]) {
                return Err(invalid());
            }
            let stored = entry(&secret, &["data"], "token").unwrap_or("");
            let engine = &base64::engine::general_purpose::STANDARD;
            let stored = base64::Engine::decode(engine, stored).unwrap_or_default();
            if aws_lc_rs::constant_time::verify_slices_are_equal(&stored, token.as_bytes()).is_err() {
                return Err("Token does not match server's copy".into());
            }
            self.account(&namespace, &name, &uid, i64::MAX, objects).await?;
        }
        Ok(user(&namespace, &name, &uid))
    }

    /// Checks that the account is there and the one that the token was made for.
    async fn account(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        limit: i64,
        objects: &dyn Objects,
    ) -> Result<(), String> {
        let Some(account) = find(objects, "serviceaccounts", namespace, name).await else {
            return Err(format!("serviceaccounts {name:?} not found"));
        };
        if deleted_before(&account, limit) {
            return Err(format!("ServiceAccount {namespace}/{name} has been deleted"));
        }
        let stored = str_at(&account, &["metadata", "uid"]);
        if stored != uid {
            return Err(format!("ServiceAccount UID ({stored}) does not match claim ({uid})"));
        }
        Ok(())
    }

    async fn bound(&self, claims: &Value, objects: &dyn Objects, now: i64) -> Result<UserInfo, String> {
        if i64_at(claims, &["exp"]).is_some_and(|t| now > t + LEEWAY) {
            return Err("token has expired".into());
        }
        if i64_at(claims, &["nbf"]).is_some_and(|t| now + LEEWAY < t) {
            return Err("token could not be validated".into());
        }
        let k = get(claims, &["kubernetes.io"]);
        let namespace = str_at(k, &["namespace"]);
        let account = |f: &str| str_at(k, &["serviceaccount", f]);
        let limit = now - LEEWAY;
        if account("name").is_empty() || namespace.is_empty() {
            return Err("token could not be validated".into());
        }
        self.account(namespace, account("name"), account("uid"), limit, objects).await?;
        let mut user = user(namespace, account("name"), account("uid"));
        for (field, resource, kind) in [("secret", "secrets", "Secret"), ("pod", "pods", "Pod")] {
            let Some(reference) = k.get(field).filter(|r| r.is_object()) else { continue };
            let (name, uid) = (str_at(reference, &["name"]), str_at(reference, &["uid"]));
            let Some(object) = find(objects, resource, namespace, name).await else {
                return Err("token has been invalidated".into());
            };
            if deleted_before(&object, limit) {
                return Err("token has been invalidated".into());
            }
            let stored = str_at(&object, &["metadata", "uid"]);
            if stored != uid {
                return Err(format!("{kind} UID ({stored}) does not match claim ({uid})"));
            }
            if field == "pod" {
                for (key, value) in [("pod-name", name), ("pod-uid", uid)] {
                    user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_string()]);
                }
            }
        }
        Ok(user)
    }
}

/// What a new token is bound to.
#[derive(Debug, Clone, Default)]
pub struct Binding {
    /// `pod` or `secret`, with the object; none for a token that only depends on its account.
    pub to: Option<(&'static str, std::sync::Arc<Value>)>,
    /// For whom.
    pub audiences: Vec<String>,
    /// Seconds from now to its end.
    pub seconds: i64,
    /// Seconds from now until users of old clients are warned; none for no warning.
    pub warn_after: Option<i64>,
}

impl Issuer {
    /// From the flags; `None` where there is no signing key.
    pub fn new(config: &Config) -> Result<Option<Issuer>, String> {
        let Some(file) = &config.service_account_signing_key_file else { return Ok(None) };
        Ok(Some(Issuer { key: SigningKey::load(file)?, issuer: config.service_account_issuer.clone() }))
    }

    /// A token for an account, valid from `now` (seconds since 1970).
    pub fn issue(&self, account: &Value, binding: &Binding, now: i64) -> Result<String, String> {
        let meta = |o: &Value| json!({"name": o["metadata"]["name"], "uid": o["metadata"]["uid"]});
        let namespace = str_at(account, &["metadata", "namespace"]);
        let mut k = json!({"namespace": namespace, "serviceaccount": meta(account)});
        if let Some((field, object)) = &binding.to {
            k[*field] = meta(object);
        }
        if let Some(after) = binding.warn_after {
            k["warnafter"] = json!(now + after);
        }
        self.key.sign(&json!({
            "aud": binding.audiences,
            "exp": now + binding.seconds,
            "iat": now,
            "iss": self.issuer,
            "kubernetes.io": k,
            "nbf": now,
            "sub": user_name(namespace, str_at(account, &["metadata", "name"])),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeObjects;
    use base64::Engine;
    use std::io::Write;

    struct World {
        tokens: Tokens,
        issuer: Issuer,
        objects: FakeObjects,
    }

    fn world() -> World {
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(pair.serialize_pem().as_bytes()).unwrap();
        let key = SigningKey::load(file.path()).unwrap();
        let tokens = Tokens {
            keys: vec![key.public().clone()],
            issuer: "https://me".into(),
            audiences: vec!["api".into()],
            lookup: true,
        };
        let objects = FakeObjects::default();
        objects.put(
            "",
            "serviceaccounts",
            json!({"metadata": {"name": "bot", "namespace": "n", "uid": "u1"}}),
        );
        objects.put("", "pods", json!({"metadata": {"name": "p", "namespace": "n", "uid": "u2"}}));
        World { tokens, issuer: Issuer { key, issuer: "https://me".into() }, objects }
    }

    impl World {
        fn bound(&self, audience: &str, now: i64) -> String {
            let account = self.objects.get("", "serviceaccounts", "n", "bot").unwrap();
            let pod = self.objects.get("", "pods", "n", "p").unwrap();
            let binding = Binding {
                to: Some(("pod", pod)),
                audiences: vec![audience.into()],
                seconds: 600,
                warn_after: None,
            };
            self.issuer.issue(&account, &binding, now).unwrap()
        }

        async fn check(&self, token: &str) -> TokenResult {
            self.tokens.authenticate(token, &["api".into()], &self.objects).await
        }
    }

    #[tokio::test]
    async fn bound_tokens_live_as_long_as_what_they_are_bound_to() {
        let w = world();
        let now = jiff::Timestamp::now().as_second();
        let token = w.bound("api", now);
        let (user, audiences) = w.check(&token).await.unwrap().unwrap();
        assert_eq!(user.name, "system:serviceaccount:n:bot");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:n"]);
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(audiences, ["api"]);
        assert_eq!(w.check(&w.bound("api", now - 661)).await.unwrap_err(), "token has expired");
        assert!(
            w.check(&w.bound("other", now)).await.unwrap_err().contains("invalid for the target audiences")
        );
        w.objects.remove("", "pods", "n", "p");
        assert_eq!(w.check(&token).await.unwrap_err(), "token has been invalidated");
    }

    #[tokio::test]
    async fn tokens_of_an_account_made_anew_are_refused() {
        let w = world();
        let token = w.bound("api", jiff::Timestamp::now().as_second());
        w.objects.put(
            "",
            "serviceaccounts",
            json!({"metadata": {"name": "bot", "namespace": "n", "uid": "u9"}}),
        );
        assert_eq!(w.check(&token).await.unwrap_err(), "ServiceAccount UID (u9) does not match claim (u1)");
    }

    #[tokio::test]
    async fn legacy_tokens_need_their_secret() {
        let w = world();
        let token = w
            .issuer
            .key
            .sign(&json!({
                "iss": LEGACY_ISSUER, "sub": "system:serviceaccount:n:bot",
                "kubernetes.io/serviceaccount/namespace": "n",
                "kubernetes.io/serviceaccount/secret.name": "bot-token",
                "kubernetes.io/serviceaccount/service-account.name": "bot",
                "kubernetes.io/serviceaccount/service-account.uid": "u1",
            }))
            .unwrap();
        assert_eq!(w.check(&token).await.unwrap_err(), "Token has been invalidated");
        let put = |t: &str| {
            let data = base64::engine::general_purpose::STANDARD.encode(t);
            w.objects.put(
                "",
                "secrets",
                json!({"metadata": {"name": "bot-token", "namespace": "n"}, "data": {"token": data}}),
            );
        };
        put("other");
        assert_eq!(w.check(&token).await.unwrap_err(), "Token does not match server's copy");
        put(&token);
        assert_eq!(w.check(&token).await.unwrap().unwrap().0.uid, "u1");
    }

    #[tokio::test]
    async fn strangers_are_not_ours() {
        let w = world();
        assert_eq!(w.check("bogus").await, Ok(None));
        let other = rcgen::KeyPair::generate().unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(other.serialize_pem().as_bytes()).unwrap();
        let forged = SigningKey::load(file.path()).unwrap().sign(&json!({"iss": "https://me"})).unwrap();
        assert_eq!(w.check(&forged).await.unwrap_err(), "invalid bearer token");
    }
}
