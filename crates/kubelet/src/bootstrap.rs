//! The first start of a kubelet: with a kubeconfig that is good for nothing but asking, it gets a certificate of its
//! own and writes a kubeconfig with it. Later it renews that certificate before it ends.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::config::Kubeconfig;
use pilothouse_client::config::{Replace, connect};
use pilothouse_component_base::notify;
use pilothouse_component_base::signals::Stop;
use pilothouse_pki::files;
use serde_json::{Value, json};

use crate::certificates::{
    CLIENT_SIGNER, NODE_USER, Store, ask, common_name, node_subject, until, validity, wait_for_renewal,
};
use crate::config::Config;

/// How long after a refused request the next one is made.
pub const RETRY: Duration = Duration::from_secs(30);
const USAGES: [&str; 3] = ["digital signature", "key encipherment", "client auth"];
/// How the kubelet names itself to the API server.
pub const USER_AGENT: &str = "kubelet";

/// Whether a kubeconfig is there and its client certificate, where it has one, is still good.
fn still_valid(path: &Path, now: Timestamp) -> bool {
    let Ok(config) = Kubeconfig::read_from(path) else { return false };
    for user in &config.auth_infos {
        let Some(auth) = &user.auth_info else { continue };
        let Some(file) = &auth.client_certificate else { continue };
        match std::fs::read(file).ok().and_then(|pem| validity(&pem)) {
            Some((_, end)) if end > now => {}
            _ => return false,
        }
    }
    true
}

/// An error where a kubeconfig's certificate is another node's: with it the API server would refuse all that this one says
/// of itself. Names that are no node's are the administrator's to choose.
pub fn check_own_name(kubeconfig: &Path, node: &str) -> anyhow::Result<()> {
    let Some(name) = certified(kubeconfig) else { return Ok(()) };
    match name.strip_prefix(NODE_USER) {
        Some(other) if other != node => anyhow::bail!(
            "kubeconfig {}: its certificate is that of node {other:?}, and this is node {node:?} (--hostname-override)",
            kubeconfig.display()
        ),
        _ => Ok(()),
    }
}

/// Whom the client certificate of a kubeconfig's current context names. What cannot be read the client complains of.
fn certified(kubeconfig: &Path) -> Option<String> {
    let config = Kubeconfig::read_from(kubeconfig).ok()?;
    let current = config.contexts.iter().find(|c| Some(&c.name) == config.current_context.as_ref())?;
    let user = current.context.as_ref()?.user.as_ref()?;
    let auth = config.auth_infos.iter().find(|a| a.name == *user)?.auth_info.as_ref()?;
    let pem = match (&auth.client_certificate_data, &auth.client_certificate) {
        (Some(data), _) => base64::engine::general_purpose::STANDARD.decode(data).ok()?,
        (None, file) => std::fs::read(file.as_ref()?).ok()?,
    };
    common_name(&pem)
}

/// Gets the kubelet its own kubeconfig where it has none that is good. Returns at once where it has.
pub async fn bootstrap(config: &Config, stop: &Stop) -> anyhow::Result<()> {
    let (Some(own), Some(first)) = (&config.kubeconfig, &config.bootstrap_kubeconfig) else { return Ok(()) };
    if still_valid(own, Timestamp::now()) {
        tracing::info!("Kubeconfig {} exists and is valid, skipping bootstrap", own.display());
        return Ok(());
    }
    tracing::info!("Using bootstrap kubeconfig to generate TLS client cert, key and kubeconfig file");
    std::fs::create_dir_all(&config.cert_dir).with_context(|| config.cert_dir.display().to_string())?;
    let client = connect(first, USER_AGENT).await.context("unable to load bootstrap kubeconfig")?;
    let store = Store::client(&config.cert_dir);
    let subject = node_subject(&config.node_name);
    // Whoever approves it may need this to have come up first.
    let waiting = |name: &str| notify::ready(USER_AGENT, &format!("waiting for the approval of {name}"));
    let request = ask(&client, &store, "node-csr-", CLIENT_SIGNER, &USAGES, &subject, waiting);
    tokio::select! {
        r = request => r.context("failed to run Kubelet: cannot get a client certificate")?,
        _ = stop.wait() => return Ok(()),
    }
    let text = std::fs::read_to_string(first).with_context(|| first.display().to_string())?;
    let kubeconfig = own_kubeconfig(&text, first, &store.current())?;
    if let Some(dir) = own.parent() {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    files::write_private(own, serde_yaml_ng::to_string(&kubeconfig)?.as_bytes())?;
    Ok(())
}

/// A kubeconfig for the same cluster, with a certificate in place of the token.
fn own_kubeconfig(bootstrap: &str, path: &Path, pem: &Path) -> anyhow::Result<Value> {
    let given: Value = serde_yaml_ng::from_str(bootstrap).context("bootstrap kubeconfig")?;
    let named = |list: &str, name: &str| {
        given[list].as_array().and_then(|l| l.iter().find(|x| x["name"] == name)).cloned().unwrap_or_default()
    };
    let current = given["current-context"].as_str().unwrap_or("");
    let context = named("contexts", current);
    let mut cluster =
        named("clusters", context["context"]["cluster"].as_str().unwrap_or(""))["cluster"].clone();
    anyhow::ensure!(cluster["server"].is_string(), "bootstrap kubeconfig {}: no cluster", path.display());
    // A relative file name is one in the bootstrap kubeconfig's folder.
    if let (Some(ca), Some(dir)) = (cluster["certificate-authority"].as_str(), path.parent()) {
        cluster["certificate-authority"] = json!(dir.join(ca).display().to_string());
    }
    let pem = pem.display().to_string();
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [{"name": "default-cluster", "cluster": cluster}],
        "contexts": [{"name": "default-context",
            "context": {"cluster": "default-cluster", "namespace": "default", "user": "default-auth"}}],
        "current-context": "default-context",
        "users": [{"name": "default-auth", "user": {"client-certificate": pem, "client-key": pem}}]
    }))
}

/// How long the kubelet goes on without a valid certificate. Then it ends, so that it can begin anew.
const WITHOUT: SignedDuration = SignedDuration::from_mins(5);

/// Renews the client certificate whenever it is time, and has `replace` use the new one. Returns only where there has
/// been no valid one for a while: with an error, so that who started the kubelet starts it again.
pub async fn keep_renewed(config: &Config, client: Client, replace: Replace) -> anyhow::Result<()> {
    let store = Store::client(&config.cert_dir);
    let Some(kubeconfig) = config.kubeconfig.as_deref().filter(|_| config.rotate_certificates) else {
        return std::future::pending().await;
    };
    loop {
        let Some((from, to)) = store.validity() else { return std::future::pending().await };
        wait_for_renewal(from, to).await;
        let subject = node_subject(&config.node_name);
        let request = ask(&client, &store, "csr-", CLIENT_SIGNER, &USAGES, &subject, |_| {});
        let end = to.checked_add(WITHOUT).unwrap_or(to);
        tokio::select! {
            asked = request => match asked {
                Ok(()) => {
                    replace.with(connect(kubeconfig, USER_AGENT).await?);
                    tracing::info!("the client certificate is new");
                }
                Err(e) => {
                    tracing::warn!("client certificate not renewed: {e:#}");
                    tokio::time::sleep(RETRY).await;
                }
            },
            () = until(end) => {
                anyhow::bail!("it has been {} minutes since a valid client cert was found, exiting", WITHOUT.as_mins())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: &str = "apiVersion: v1\nkind: Config\nclusters:\n- name: k\n  cluster: {server: 'https://1.2.3.4:6443', certificate-authority: ca.pem}\n\
        contexts:\n- name: d\n  context: {cluster: k, user: u}\ncurrent-context: d\nusers:\n- name: u\n  user: {token: t}\n";

    #[test]
    fn the_new_kubeconfig_has_the_cluster_and_no_token() {
        let v = own_kubeconfig(BOOTSTRAP, Path::new("/cfg/b.kubeconfig"), Path::new("/ssl/c.pem")).unwrap();
        assert_eq!(v["clusters"][0]["cluster"]["certificate-authority"], "/cfg/ca.pem");
        assert_eq!(v["users"][0]["user"]["client-key"], "/ssl/c.pem");
        assert!(!v.to_string().contains("token"));
        assert!(own_kubeconfig("kind: Config", Path::new("x"), Path::new("y")).is_err());
    }

    #[test]
    fn another_nodes_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, pem) = (dir.path().join("k"), dir.path().join("c.pem"));
        let write = |kubeconfig: &Value| std::fs::write(&path, kubeconfig.to_string()).unwrap();
        let of = |name: &str| pilothouse_pki::authority::self_signed(name, &[]).unwrap().certificate;
        let mut kubeconfig = own_kubeconfig(BOOTSTRAP, Path::new("/b"), &pem).unwrap();
        write(&kubeconfig);
        // A file that is not there is the client's to complain of.
        check_own_name(&path, "a").unwrap();
        for (name, good) in [("system:node:a", true), ("admin", true), ("system:node:b", false)] {
            std::fs::write(&pem, of(name)).unwrap();
            assert_eq!(check_own_name(&path, "a").is_ok(), good, "{name}");
        }
        let error = check_own_name(&path, "a").unwrap_err().to_string();
        let wanted = "its certificate is that of node \"b\", and this is node \"a\" (--hostname-override)";
        assert_eq!(error, format!("kubeconfig {}: {wanted}", path.display()));
        let data = base64::engine::general_purpose::STANDARD.encode(of("system:node:c"));
        kubeconfig["users"][0]["user"] = json!({"client-certificate-data": data, "client-key-data": data});
        write(&kubeconfig);
        check_own_name(&path, "c").unwrap();
        assert!(check_own_name(&path, "a").unwrap_err().to_string().contains("node \"c\""));
        // What the current context does not use is no matter.
        kubeconfig["users"][0]["name"] = json!("another");
        write(&kubeconfig);
        check_own_name(&path, "a").unwrap();
    }

    #[test]
    fn a_kubeconfig_without_its_certificate_is_not_valid() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        assert!(!still_valid(&path, Timestamp::now()));
        let v = own_kubeconfig(BOOTSTRAP, Path::new("/b"), &dir.path().join("c.pem")).unwrap();
        std::fs::write(&path, serde_yaml_ng::to_string(&v).unwrap()).unwrap();
        assert!(!still_valid(&path, Timestamp::now()));
        std::fs::write(&path, BOOTSTRAP).unwrap();
        assert!(still_valid(&path, Timestamp::now()));
    }
}
