//! The kubeconfig files that name a webhook (`--authorization-webhook-config-file` and the like).

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use pilothouse_apimachinery::json::Value;

use super::tls::{self, Trust};
use super::{Error, Target};
use crate::json::{bool_at, get, list_at, str_at};

/// A webhook as a kubeconfig describes it.
#[derive(Clone)]
pub struct Remote {
    target: Target,
    path: String,
    authorization: Option<String>,
}

/// Splits a URL in whether it has TLS, host, port, path with query.
pub fn split_url(url: &str) -> Result<(bool, String, u16, String), String> {
    let uri: http::Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
    let secure = match uri.scheme_str() {
        Some("https") | None => true,
        Some("http") => false,
        Some(other) => return Err(format!("{url}: unsupported scheme {other:?}")),
    };
    let host = uri.host().ok_or_else(|| format!("{url}: no host"))?.trim_matches(['[', ']']).to_string();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
    Ok((secure, host, port, path))
}

impl Remote {
    /// Reads a kubeconfig. Errors name the file.
    pub fn load(path: &Path) -> Result<Remote, String> {
        Self::read(path).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn read(path: &Path) -> Result<Remote, String> {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        let config: Value = serde_yaml_ng::from_str(&text).map_err(|e| e.to_string())?;
        let named = |list: &str, name: &str| -> Option<&Value> {
            list_at(&config, &[list]).iter().find(|x| str_at(x, &["name"]) == name)
        };
        let context = named("contexts", str_at(&config, &["current-context"])).ok_or("no current context")?;
        let cluster = named("clusters", str_at(context, &["context", "cluster"])).ok_or("no cluster")?;
        let cluster = get(cluster, &["cluster"]);
        let user = named("users", str_at(context, &["context", "user"])).map(|u| get(u, &["user"]));
        let base = path.parent().unwrap_or(Path::new("/"));
        let data = |v: &Value, field: &str| -> Result<Option<Vec<u8>>, String> {
            let inline = str_at(v, &[&format!("{field}-data")]);
            if !inline.is_empty() {
                let engine = base64::engine::general_purpose::STANDARD;
                return engine.decode(inline).map(Some).map_err(|e| format!("{field}-data: {e}"));
            }
            match str_at(v, &[field]) {
                "" => Ok(None),
                file => std::fs::read(base.join(file)).map(Some).map_err(|e| format!("{file}: {e}")),
            }
        };
        let (secure, host, port, path) = split_url(str_at(cluster, &["server"]))?;
        let mut authorization = None;
        let mut identity = None;
        if let Some(user) = user {
            if let (Some(c), Some(k)) = (data(user, "client-certificate")?, data(user, "client-key")?) {
                identity = Some(tls::identity(&c, &k)?);
            }
            let token = match str_at(user, &["tokenFile"]) {
                "" => str_at(user, &["token"]).to_string(),
                file => std::fs::read_to_string(base.join(file)).map_err(|e| format!("{file}: {e}"))?,
            };
            if !token.is_empty() {
                authorization = Some(format!("Bearer {}", token.trim()));
            }
        }
        let ca = data(cluster, "certificate-authority")?;
        let trust = match &ca {
            _ if bool_at(cluster, &["insecure-skip-tls-verify"]) => Trust::Anything,
            Some(pem) => Trust::Pem(pem),
            None => Trust::System,
        };
        let tls = secure.then(|| tls::client(trust, identity)).transpose()?;
        Ok(Remote { target: Target { host, port, addresses: vec![], tls }, path, authorization })
    }

    /// Posts a review and gives back the answer.
    pub async fn review(&self, body: &Value, limit: Duration) -> Result<Value, Error> {
        let bytes = body.to_string().into_bytes();
        let authorization = self.authorization.as_deref();
        let (status, body) = self.target.post_json(&self.path, authorization, bytes, limit, 1 << 20).await?;
        if !status.is_success() {
            return Err(Error::Http(format!("webhook answered {status}")));
        }
        serde_json::from_slice(&body).map_err(|e| Error::Http(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_urls() {
        let s = |u| split_url(u).unwrap();
        assert_eq!(s("https://h/p?q=1"), (true, "h".into(), 443, "/p?q=1".into()));
        assert_eq!(s("http://[::1]:8080"), (false, "::1".into(), 8080, "/".into()));
        assert!(split_url("ftp://x").is_err());
    }

    #[test]
    fn reads_a_kubeconfig() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        let text = "clusters: [{name: c, cluster: {server: 'https://h:1/x', insecure-skip-tls-verify: true}}]\n\
            contexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\nusers: [{name: u, user: {token: t}}]\n";
        std::fs::write(&file, text).unwrap();
        let r = Remote::load(&file).unwrap();
        assert_eq!((r.path.as_str(), r.authorization.as_deref(), r.target.port), ("/x", Some("Bearer t"), 1));
        std::fs::write(&file, "clusters: []").unwrap();
        assert!(Remote::load(&file).err().unwrap().contains("no current context"));
    }
}
