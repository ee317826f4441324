//! OpenID Connect: ID tokens of one issuer
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#openid-connect-tokens>).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilothouse_apimachinery::json::Value;
use pilothouse_pki::tokens::{Jws, from_jwks};
use tokio::time::Instant;

use super::TokenResult;
use crate::config;
use crate::json::{bool_at, has, i64_at, str_at, texts};
use crate::outbound::Target;
use crate::outbound::kubeconfig::split_url;
use crate::outbound::tls::{self, Trust};
use crate::request::UserInfo;

/// Keys are fetched again at most this often.
const REFRESH: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);

type Keys = Arc<Vec<(String, aws_lc_rs::rsa::PublicKeyComponents<Vec<u8>>)>>;

/// The provider.
pub struct Oidc {
    config: config::Oidc,
    tls: Arc<rustls::ClientConfig>,
    keys: Mutex<Option<(Instant, Keys)>>,
}

impl Oidc {
    /// From the flags. Errors name the file or flag.
    pub fn new(config: &config::Oidc) -> Result<Oidc, String> {
        if !config.issuer_url.starts_with("https://") {
            return Err(format!(
                "'oidc-issuer-url' ({:?}) has invalid scheme, require 'https'",
                config.issuer_url
            ));
        }
        let pem = match &config.ca {
            Some(file) => Some(std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?),
            None => None,
        };
        let trust = pem.as_deref().map_or(Trust::System, Trust::Pem);
        Ok(Oidc { config: config.clone(), tls: tls::client(trust, None)?, keys: Mutex::default() })
    }

    async fn fetch(&self, url: &str) -> Result<Value, String> {
        let (_, host, port, path) = split_url(url)?;
        let target = Target { host, port, addresses: vec![], tls: Some(self.tls.clone()) };
        let (status, body) = target.get(&path, LIMIT).await.map_err(|e| e.to_string())?;
        if !status.is_success() {
            return Err(format!("oidc: {url}: {status}"));
        }
        serde_json::from_str(&body).map_err(|e| format!("oidc: {url}: {e}"))
    }

    /// The provider's keys; fetched where none are known or, with `again`, the known ones did not fit.
    async fn keys(&self, again: bool) -> Result<Keys, String> {
        if let Some((at, keys)) = &*self.keys.lock()
            && (!again || at.elapsed() < REFRESH)
        {
            return Ok(keys.clone());
        }
        let issuer = self.config.issuer_url.trim_end_matches('/');
        let document = self.fetch(&format!("{issuer}/.well-known/openid-configuration")).await?;
        let keys: Keys = Arc::new(from_jwks(&self.fetch(str_at(&document, &["jwks_uri"])).await?));
        *self.keys.lock() = Some((Instant::now(), keys.clone()));
        Ok(keys)
    }

    /// Whose a token is.
    pub async fn authenticate(&self, token: &str) -> TokenResult {
        let Some(jws) = Jws::parse(token) else { return Ok(None) };
        if str_at(&jws.claims, &["iss"]) != self.config.issuer_url {
            return Ok(None);
        }
        if !self.config.signing_algs.iter().any(|a| a == jws.algorithm()) {
            return Err(format!(
                "oidc: id token signed with unsupported algorithm, expected {:?}",
                self.config.signing_algs
            ));
        }
        let good =
            jws.verify_components(&self.keys(false).await?) || jws.verify_components(&self.keys(true).await?);
        if !good {
            return Err("oidc: failed to verify id token signature".into());
        }
        let user = user(&self.config, &jws.claims, jiff::Timestamp::now().as_second())?;
        Ok(Some((user, vec![self.config.client_id.clone()])))
    }
}

/// The user that verified claims speak of.
fn user(config: &config::Oidc, claims: &Value, now: i64) -> Result<UserInfo, String> {
    let audiences = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.to_string()],
        _ => texts(claims, &["aud"]),
    };
    if !audiences.contains(&config.client_id) {
        return Err(format!(
            "oidc: verify token: oidc: expected audience {:?} got {audiences:?}",
            config.client_id
        ));
    }
    if i64_at(claims, &["exp"]).is_none_or(|t| t <= now) {
        return Err("oidc: verify token: oidc: token is expired".into());
    }
    for (claim, wanted) in &config.required_claims {
        if str_at(claims, &[claim]) != wanted {
            return Err(format!("oidc: required claim {claim} value does not match"));
        }
    }
    let name = str_at(claims, &[&config.username_claim]);
    if name.is_empty() {
        return Err(format!("oidc: parse username claims {:?}: claim not present", config.username_claim));
    }
    if config.username_claim == "email"
        && has(claims, &["email_verified"])
        && !bool_at(claims, &["email_verified"])
    {
        return Err("oidc: email not verified".into());
    }
    // Names are told apart from other users' by the issuer, unless the flags say otherwise.
    let prefix = match config.username_prefix.as_str() {
        "-" => String::new(),
        "" if config.username_claim != "email" => format!("{}#", config.issuer_url),
        prefix => prefix.to_string(),
    };
    let groups = match claims.get(&config.groups_claim).filter(|_| !config.groups_claim.is_empty()) {
        Some(Value::String(one)) => vec![one.to_string()],
        Some(_) => texts(claims, &[&config.groups_claim]),
        None => Vec::new(),
    };
    Ok(UserInfo {
        name: format!("{prefix}{name}"),
        groups: groups.into_iter().map(|g| format!("{}{g}", config.groups_prefix)).collect(),
        ..UserInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pilothouse_apimachinery::json::json;

    #[test]
    fn reads_claims() {
        let mut c = config::Oidc {
            issuer_url: "https://i".into(),
            client_id: "me".into(),
            ca: None,
            username_claim: "sub".into(),
            username_prefix: String::new(),
            groups_claim: "groups".into(),
            groups_prefix: "o:".into(),
            required_claims: Default::default(),
            signing_algs: vec!["RS256".into()],
        };
        let claims = json!({"aud": "me", "exp": 10, "sub": "jane", "groups": ["a"]});
        let u = user(&c, &claims, 9).unwrap();
        assert_eq!((u.name.as_str(), u.groups.as_slice()), ("https://i#jane", &["o:a".to_string()][..]));
        assert!(user(&c, &claims, 10).unwrap_err().contains("expired"));
        c.username_prefix = "-".into();
        assert_eq!(user(&c, &claims, 9).unwrap().name, "jane");
        c.client_id = "other".into();
        assert!(user(&c, &claims, 9).unwrap_err().contains("audience"));
    }
}
