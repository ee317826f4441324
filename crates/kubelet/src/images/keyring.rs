//! Credentials for registries, from secrets and from the node's own `config.json`.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

use crate::runtime::cri;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

/// Credentials by registry (and path in it). Never logged.
#[derive(Clone, Default)]
pub struct Keyring(Vec<(String, cri::AuthConfig)>);

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(registry, _)| registry)).finish()
    }
}

impl Keyring {
    /// From the text of a `config.json`. What is no such file gives nothing.
    pub fn from_docker_config(text: &[u8]) -> Keyring {
        Keyring::from_entries(serde_json::from_slice::<DockerConfig>(text).unwrap_or_default().auths)
    }

    /// From secrets of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
    pub fn from_secrets<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Keyring {
        let mut all = Vec::new();
        for s in secrets {
            let data = |key: &str| s.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice());
            if let Some(text) = data(".dockerconfigjson") {
                all.extend(Keyring::from_docker_config(text).0);
            } else if let Some(text) = data(".dockercfg") {
                all.extend(Keyring::from_entries(serde_json::from_slice(text).unwrap_or_default()).0);
            }
        }
        Keyring(all)
    }

    fn from_entries(entries: BTreeMap<String, Entry>) -> Keyring {
        let auth = |registry: &str, e: Entry| {
            let decoded = STANDARD.decode(&e.auth).ok().and_then(|b| String::from_utf8(b).ok());
            let (username, password) = match decoded.as_deref().and_then(|d| d.split_once(':')) {
                Some((u, p)) => (u.to_string(), p.trim_end_matches('\0').to_string()),
                None => (e.username, e.password),
            };
            let config = cri::AuthConfig {
                username,
                password,
                server_address: registry.to_string(),
                identity_token: e.identity_token,
                ..Default::default()
            };
            (normalized(registry), config)
        };
        Keyring(entries.into_iter().map(|(registry, e)| auth(&registry, e)).collect())
    }

    /// Credentials that may fit a repository (with its registry), the most specific first.
    pub fn lookup(&self, repository: &str) -> Vec<cri::AuthConfig> {
        let mut found: Vec<&(String, cri::AuthConfig)> =
            self.0.iter().filter(|(r, _)| matches(r, repository)).collect();
        found.sort_by_key(|(r, _)| std::cmp::Reverse(r.len()));
        found.into_iter().map(|(_, a)| a.clone()).collect()
    }
}

/// `https://index.docker.io/v1/` as `docker.io`; other registries without scheme and version.
fn normalized(registry: &str) -> String {
    let r = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let r = r.strip_suffix("/v1").or_else(|| r.strip_suffix("/v2")).unwrap_or(r);
    match r {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".into(),
        r => r.to_string(),
    }
}

fn matches(registry: &str, repository: &str) -> bool {
    let (host, path) = registry.split_once('/').unwrap_or((registry, ""));
    let (of_host, of_path) = repository.split_once('/').unwrap_or((repository, ""));
    let (a, b): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), of_host.split('.').collect());
    let same_host = a.len() == b.len() && a.iter().zip(&b).all(|(p, s)| glob(p, s));
    same_host && (path.is_empty() || of_path == path || of_path.starts_with(&format!("{path}/")))
}

/// `*` in one part of a host name.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        Some((before, after)) => {
            text.len() >= before.len() + after.len() && text.starts_with(before) && text.ends_with(after)
        }
        None => pattern == text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn finds_the_most_specific_first() {
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("u:p:q")},
            "*.example.com": {"username": "a", "password": "b"},
            "r.example.com/team": {"username": "t", "password": "t"}}});
        let k = Keyring::from_docker_config(config.to_string().as_bytes());
        let users = |r: &str| k.lookup(r).into_iter().map(|a| a.username).collect::<Vec<_>>();
        assert_eq!(users("docker.io/library/busybox"), ["u"]);
        assert_eq!(k.lookup("docker.io/x")[0].password, "p:q");
        assert_eq!(users("r.example.com/team/x"), ["t", "a"]);
        assert_eq!(users("r.example.com/other"), ["a"]);
        assert!(users("example.com/x").is_empty());
        assert!(!format!("{k:?}").contains("p:q"));
    }

    #[test]
    fn reads_both_kinds_of_secrets() {
        let inner = json!({"r:5000": {"username": "u", "password": "p"}});
        let secret = |key: &str, text: String| -> Secret {
            serde_json::from_value(json!({"data": {key: STANDARD.encode(text)}})).unwrap()
        };
        let a = secret(".dockerconfigjson", json!({"auths": inner}).to_string());
        let b = secret(".dockercfg", inner.to_string());
        assert_eq!(Keyring::from_secrets([&a, &b]).lookup("r:5000/x").len(), 2);
        assert!(Keyring::from_secrets([&secret("x", String::new())]).lookup("r:5000/x").is_empty());
    }
}
