//! Who asks: client certificates, bearer tokens, a proxy in front, or nobody
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/>).

pub mod bootstrap_token;
pub mod oidc;
pub mod request_header;
pub mod service_account;
pub mod token_file;
pub mod webhook;
pub mod x509;

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use pilothouse_apimachinery::status::Status;

use crate::config::Config;
use crate::request::{Authenticator, Connection, Objects, UserInfo};

/// The group of everybody who has shown who they are.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of everybody else.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user that everybody else is.
pub const ANONYMOUS: &str = "system:anonymous";

/// What became of a token: whose it is and for which audiences; `None` where it is not of this kind.
pub type TokenResult = Result<Option<(UserInfo, Vec<String>)>, String>;

/// All ways to show who one is that the flags switch on.
pub struct Authentication {
    objects: Arc<dyn Objects>,
    request_header: Option<request_header::RequestHeader>,
    certificates: Option<x509::ClientCertificates>,
    token_file: Option<token_file::TokenFile>,
    service_accounts: Option<service_account::Tokens>,
    bootstrap_tokens: bool,
    oidc: Option<oidc::Oidc>,
    webhook: Option<webhook::Webhook>,
    anonymous: bool,
    audiences: Vec<String>,
}

/// The authenticator that the flags ask for. Errors name the flag or file.
pub fn build(config: &Arc<Config>, objects: &Arc<dyn Objects>) -> Result<Arc<dyn Authenticator>, String> {
    let mut anonymous = config.anonymous_auth;
    if anonymous && config.authorization_modes == ["AlwaysAllow"] {
        tracing::warn!(
            "AnonymousAuth is not allowed with the AlwaysAllow authorizer. Resetting AnonymousAuth to false. You should use a different authorizer"
        );
        anonymous = false;
    }
    Ok(Arc::new(Authentication {
        objects: objects.clone(),
        request_header: config.request_header.as_ref().map(request_header::RequestHeader::new).transpose()?,
        certificates: match &config.client_ca_file {
            Some(file) => Some(x509::ClientCertificates::load(file)?),
            None => None,
        },
        token_file: config.token_auth_file.as_deref().map(token_file::TokenFile::load).transpose()?,
        service_accounts: service_account::Tokens::new(config)?,
        bootstrap_tokens: config.bootstrap_token_auth,
        oidc: config.oidc.as_ref().map(oidc::Oidc::new).transpose()?,
        webhook: match &config.token_webhook {
            Some(file) => Some(webhook::Webhook::new(file, config.token_webhook_ttl)?),
            None => None,
        },
        anonymous,
        audiences: config.api_audiences.clone(),
    }))
}

/// The token of `Authorization: Bearer`, or of a WebSocket's sub-protocol, which is all that a browser can set.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(header) = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let mut parts = header.trim().splitn(2, ' ');
        let is_bearer = parts.next().is_some_and(|p| p.eq_ignore_ascii_case("bearer"));
        if let (true, Some(token)) = (is_bearer, parts.next().map(str::trim).filter(|t| !t.is_empty())) {
            return Some(token.to_string());
        }
    }
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    offered
        .flat_map(|v| v.split(','))
        .find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))
        .and_then(|t| URL_SAFE_NO_PAD.decode(t).ok())
        .and_then(|t| String::from_utf8(t).ok())
}

impl Authentication {
    /// Asks all that know tokens; the first that knows it decides.
    async fn token(&self, token: &str, audiences: &[String]) -> TokenResult {
        let mut errors: Vec<String> = Vec::new();
        let mut ask = |result: TokenResult| match result {
            Ok(found) => found,
            Err(e) => {
                errors.push(e);
                None
            }
        };
        if let Some(user) = self.token_file.as_ref().and_then(|f| f.user(token)) {
            return Ok(Some((user, self.shared_audiences(audiences))));
        }
        if let Some(tokens) = &self.service_accounts
            && let Some(found) = ask(tokens.authenticate(token, audiences, &*self.objects).await)
        {
            return Ok(Some(found));
        }
        if self.bootstrap_tokens
            && let Some(user) = bootstrap_token::user(token, &*self.objects)
        {
            return Ok(Some((user, self.shared_audiences(audiences))));
        }
        if let Some(oidc) = &self.oidc
            && let Some(user) = ask(oidc.authenticate(token).await)
        {
            return Ok(Some(user));
        }
        if let Some(webhook) = &self.webhook
            && let Some(user) = ask(webhook.authenticate(token, audiences).await)
        {
            return Ok(Some(user));
        }
        match errors.as_slice() {
            [] => Ok(None),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }

    /// Tokens that say nothing of audiences are good for this server's.
    fn shared_audiences(&self, wanted: &[String]) -> Vec<String> {
        wanted.iter().filter(|a| self.audiences.contains(a)).cloned().collect()
    }

    async fn identify(&self, headers: &HeaderMap, connection: &Connection) -> Result<Option<UserInfo>, ()> {
        let mut failed = false;
        if let Some(proxy) = &self.request_header
            && let Some(user) = proxy.user(headers, &connection.certificates)
        {
            return Ok(Some(user));
        }
        if let Some(x509) = &self.certificates
            && !connection.certificates.is_empty()
        {
            match x509.user(&connection.certificates) {
                Ok(user) => return Ok(Some(user)),
                Err(e) => {
                    tracing::debug!("client certificate refused: {e}");
                    failed = true;
                }
            }
        }
        if let Some(token) = bearer_token(headers) {
            match self.token(&token, &self.audiences).await {
                Ok(Some((user, _))) => return Ok(Some(user)),
                Ok(None) => failed = true,
                Err(e) => {
                    tracing::debug!("bearer token refused: {e}");
                    failed = true;
                }
            }
        }
        if failed { Err(()) } else { Ok(None) }
    }
}

/// Adds the group of the authenticated, but for a user who has it or is known to be nobody.
fn with_group(mut user: UserInfo) -> UserInfo {
    if user.name != ANONYMOUS && !user.groups.iter().any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

#[async_trait]
impl Authenticator for Authentication {
    async fn authenticate(
        &self,
        parts: &http::request::Parts,
        connection: &Connection,
    ) -> Result<Option<UserInfo>, Status> {
        match self.identify(&parts.headers, connection).await {
            Ok(Some(user)) => Ok(Some(with_group(user))),
            Ok(None) if self.anonymous => Ok(Some(UserInfo {
                name: ANONYMOUS.into(),
                groups: vec![UNAUTHENTICATED.into()],
                ..UserInfo::default()
            })),
            Ok(None) => Ok(None),
            Err(()) => Err(Status::unauthorized()),
        }
    }

    async fn review_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), String> {
        let wanted = if audiences.is_empty() { &self.audiences } else { audiences };
        match self.token(token, wanted).await? {
            Some((user, audiences)) => Ok((with_group(user), audiences)),
            None => Err("invalid bearer token".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_tokens_in_headers() {
        let mut h = HeaderMap::new();
        assert_eq!(bearer_token(&h), None);
        h.insert(AUTHORIZATION, "bearer  abc ".parse().unwrap());
        assert_eq!(bearer_token(&h).as_deref(), Some("abc"));
        h.insert(AUTHORIZATION, "Basic abc".parse().unwrap());
        assert_eq!(bearer_token(&h), None);
        h.insert(
            SEC_WEBSOCKET_PROTOCOL,
            "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.YWJj".parse().unwrap(),
        );
        assert_eq!(bearer_token(&h).as_deref(), Some("abc"));
    }
}
