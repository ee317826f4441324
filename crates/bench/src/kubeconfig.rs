//! Reads as much of a kubeconfig file as a load generator needs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// A server and credentials. PEM blocks are bytes.
#[derive(Default)]
pub struct Access {
    /// URL of the server.
    pub server: String,
    /// Its certificate authority, PEM.
    pub authority: Option<Vec<u8>>,
    /// Any server certificate is good.
    pub insecure: bool,
    /// Client certificate and key, PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Bearer token.
    pub token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: ContextNames,
}

#[derive(Deserialize)]
struct ContextNames {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
}

/// The current context of the file at `path`; paths in it are relative to it.
pub fn load(path: &Path) -> Result<Access> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text, path.parent().unwrap_or(Path::new("."))).with_context(|| path.display().to_string())
}

fn parse(text: &str, dir: &Path) -> Result<Access> {
    let file: File = serde_yaml_ng::from_str(text)?;
    let context = file
        .contexts
        .into_iter()
        .find(|c| c.name == file.current_context)
        .ok_or_else(|| anyhow!("no context {:?}", file.current_context))?
        .context;
    let cluster = file
        .clusters
        .into_iter()
        .find(|c| c.name == context.cluster)
        .ok_or_else(|| anyhow!("no cluster {:?}", context.cluster))?
        .cluster;
    let user = file.users.into_iter().find(|u| u.name == context.user).map(|u| u.user).unwrap_or_default();
    let certificate = material(user.client_certificate_data, user.client_certificate, dir)?;
    let key = material(user.client_key_data, user.client_key, dir)?;
    let token = match (user.token, user.token_file) {
        (Some(token), _) => Some(token),
        (None, Some(file)) => Some(std::fs::read_to_string(dir.join(file))?.trim().to_string()),
        (None, None) => None,
    };
    Ok(Access {
        server: cluster.server,
        authority: material(cluster.certificate_authority_data, cluster.certificate_authority, dir)?,
        insecure: cluster.insecure_skip_tls_verify,
        identity: certificate.zip(key),
        token,
    })
}

fn material(data: Option<String>, path: Option<PathBuf>, dir: &Path) -> Result<Option<Vec<u8>>> {
    match (data, path) {
        (Some(data), _) => Ok(Some(STANDARD.decode(data.trim())?)),
        (None, Some(path)) => {
            let path = dir.join(path);
            Ok(Some(std::fs::read(&path).with_context(|| path.display().to_string())?))
        }
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
apiVersion: v1
kind: Config
current-context: two
contexts:
- {name: one, context: {cluster: c1, user: u1}}
- {name: two, context: {cluster: c2, user: u2}}
clusters:
- {name: c1, cluster: {server: 'https://one:6443'}}
- name: c2
  cluster: {server: 'https://two:6443', certificate-authority-data: Y2E=, insecure-skip-tls-verify: true}
users:
- {name: u2, user: {token: t, client-certificate-data: Y2VydA==, client-key: key.pem}}
";

    #[test]
    fn current_context() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key.pem"), "key").unwrap();
        let access = parse(FILE, dir.path()).unwrap();
        assert_eq!(access.server, "https://two:6443");
        assert_eq!(access.authority.as_deref(), Some(&b"ca"[..]));
        assert_eq!(access.token.as_deref(), Some("t"));
        assert_eq!(access.identity, Some((b"cert".to_vec(), b"key".to_vec())));
        assert!(access.insecure);
    }

    #[test]
    fn what_is_missing_is_named() {
        let text = FILE.replace("current-context: two", "current-context: three");
        assert!(parse(&text, Path::new(".")).err().unwrap().to_string().contains("\"three\""));
        assert!(parse("a: [", Path::new(".")).is_err());
    }
}
