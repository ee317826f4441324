//! The kubelet's certificates: the client certificate by which the API server knows it, and the serving certificate
//! of its own port. Certificates are asked for through `certificates.k8s.io`; they are kept in `--cert-dir` under the
//! names that the original uses.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use pilothouse_pki::{Subject, files};
use sha2::{Digest, Sha256};

/// Signer of client certificates.
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of serving certificates.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// What a node's name follows in the name of its user.
pub const NODE_USER: &str = "system:node:";
/// How often a request is looked at, until it is signed.
const POLL: Duration = Duration::from_secs(1);
/// How often the clock is looked at in a long wait.
const LOOK: Duration = Duration::from_secs(30);

/// A certificate with its key, and the file that holds both.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    pair: &'static str,
}

impl Store {
    /// `<dir>/kubelet-client-current.pem`.
    pub fn client(dir: &Path) -> Store {
        Store { dir: dir.to_path_buf(), pair: "kubelet-client" }
    }

    /// `<dir>/kubelet-server-current.pem`.
    pub fn server(dir: &Path) -> Store {
        Store { dir: dir.to_path_buf(), pair: "kubelet-server" }
    }

    /// The link to the newest file.
    pub fn current(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.pair))
    }

    fn pending(&self) -> PathBuf {
        self.dir.join(format!("{}.key.tmp", self.pair))
    }

    /// Keeps a new pair: a file of its own, mode 0600, and the link to it, changed in one step.
    pub fn keep(&self, certificate: &str, key: &str, now: Timestamp) -> anyhow::Result<()> {
        let stamp = now.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let name = format!("{}-{stamp}.pem", self.pair);
        files::write_private(&self.dir.join(&name), format!("{certificate}{key}").as_bytes())?;
        let link = self.dir.join(format!("{}-updated.pem", self.pair));
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(self.dir.join(&name), &link)?;
        std::fs::rename(&link, self.current())?;
        let _ = std::fs::remove_file(self.pending());
        Ok(())
    }

    /// When the current certificate begins and ends to be valid; `None` where there is none that can be read.
    pub fn validity(&self) -> Option<(Timestamp, Timestamp)> {
        validity(&std::fs::read(self.current()).ok()?)
    }

    /// A key and a request for it. Where the kubelet ended while a request was pending, it is the same again.
    fn pending_request(&self, subject: &Subject) -> anyhow::Result<(String, String)> {
        if let Ok(text) = std::fs::read_to_string(self.pending())
            && let Some(at) = text.find("-----BEGIN PRIVATE KEY")
        {
            let (request, key) = text.split_at(at);
            return Ok((request.to_string(), key.to_string()));
        }
        let new = pilothouse_pki::authority::request(subject)?;
        files::write_private(&self.pending(), format!("{}{}", new.certificate, new.key).as_bytes())?;
        Ok((new.certificate, new.key))
    }
}

/// From when until when the first certificate in a PEM text is valid.
pub fn validity(pem: &[u8]) -> Option<(Timestamp, Timestamp)> {
    for block in x509_parser::pem::Pem::iter_from_buffer(pem).flatten() {
        if let Ok(c) = block.parse_x509() {
            let v = c.validity();
            let at = |t: i64| Timestamp::from_second(t).ok();
            return Some((at(v.not_before.timestamp())?, at(v.not_after.timestamp())?));
        }
    }
    None
}

/// Whom the first certificate in a PEM text names.
pub fn common_name(pem: &[u8]) -> Option<String> {
    let block = x509_parser::pem::Pem::iter_from_buffer(pem).flatten().find(|b| b.label == "CERTIFICATE")?;
    let certificate = block.parse_x509().ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_string())
}

/// When a certificate is to be renewed: after 70 to 90 percent of its time (`part` from 0 to 1 chooses).
pub fn renewal(from: Timestamp, to: Timestamp, part: f64) -> Timestamp {
    let length = to.duration_since(from).as_secs_f64();
    let after = jiff::SignedDuration::try_from_secs_f64(length * (0.7 + 0.2 * part)).unwrap_or_default();
    from.checked_add(after).unwrap_or(to)
}

/// Waits until it is time to renew a certificate of this validity; for a moment at least.
pub async fn wait_for_renewal(from: Timestamp, to: Timestamp) {
    let at = renewal(from, to, rand::random());
    let left = at.duration_since(Timestamp::now());
    tracing::info!("Certificate expiration is {to}, rotation deadline is {at}");
    tracing::info!("Waiting {}s for next certificate rotation", left.as_secs().max(0));
    tokio::time::sleep(POLL).await;
    until(at).await;
}

/// Waits until the clock shows `at`. Clocks are set: it is looked at again and again.
pub async fn until(at: Timestamp) {
    loop {
        match Duration::try_from(at.duration_since(Timestamp::now())) {
            Ok(left) if !left.is_zero() => tokio::time::sleep(left.min(LOOK)).await,
            _ => return,
        }
    }
}

/// A request's name: it follows from the request, so that asking twice for the same is one object.
fn request_name(prefix: &str, request: &str) -> String {
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(Sha256::digest(request)))
}

/// Asks for a certificate and waits until it is signed; calls `waiting` with the request's name when it has been made.
/// Ends with an error where it is denied.
pub async fn ask(
    client: &Client,
    store: &Store,
    prefix: &str,
    signer: &str,
    usages: &[&str],
    subject: &Subject,
    waiting: impl FnOnce(&str),
) -> anyhow::Result<()> {
    let (request, key) = store.pending_request(subject)?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = request_name(prefix, &request);
    let csr = CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name.clone()), ..Default::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.clone().into_bytes()),
            signer_name: signer.into(),
            usages: Some(usages.iter().map(|u| u.to_string()).collect()),
            ..Default::default()
        },
        status: None,
    };
    loop {
        match api.create(&PostParams::default(), &csr).await {
            Ok(_) => break,
            Err(kube::Error::Api(e)) if e.code == 409 => break,
            Err(kube::Error::Api(e)) if matches!(e.code, 400 | 403 | 422) => {
                bail!("cannot create certificate signing request: {}", e.message)
            }
            Err(e) => {
                tracing::warn!("cannot create certificate signing request: {e}");
                tokio::time::sleep(POLL).await;
            }
        }
    }
    tracing::info!("waiting for certificate signing request {name} to be approved and signed");
    waiting(&name);
    loop {
        match api.get_opt(&name).await {
            Ok(Some(csr)) => {
                let status = csr.status.unwrap_or_default();
                for c in status.conditions.iter().flatten() {
                    let text = |s: &Option<String>| s.clone().unwrap_or_default();
                    if c.type_ == "Denied" || c.type_ == "Failed" {
                        let _ = std::fs::remove_file(store.pending());
                        let verb = if c.type_ == "Denied" { "is denied" } else { "failed" };
                        bail!(
                            "certificate signing request {name} {verb}, reason: {}, message: {}",
                            text(&c.reason),
                            text(&c.message)
                        );
                    }
                }
                if let Some(signed) = status.certificate.filter(|c| !c.0.is_empty()) {
                    let pem = String::from_utf8(signed.0).context("the certificate is not PEM")?;
                    return store.keep(&pem, &key, Timestamp::now());
                }
            }
            // Requests are collected in time.
            Ok(None) => {
                let _ = std::fs::remove_file(store.pending());
                return Err(anyhow!("certificate signing request {name} is gone"));
            }
            Err(e) => tracing::warn!("certificate signing request {name}: {e}"),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whom a kubelet's client certificate names.
pub fn node_subject(node: &str) -> Subject {
    Subject {
        common_name: format!("{NODE_USER}{node}"),
        organization: Some("system:nodes".into()),
        hosts: Vec::new(),
    }
}

/// Makes a serving certificate that it signs itself, where there is none yet.
pub fn self_signed(certificate: &Path, key: &Path, node: &str, ip: &str) -> anyhow::Result<()> {
    if certificate.exists() && key.exists() {
        return Ok(());
    }
    let mut hosts = vec![node.to_string()];
    hosts.extend(Some(ip.to_string()).filter(|i| !i.is_empty() && i != node));
    let made =
        pilothouse_pki::authority::self_signed(&format!("{node}@{}", Timestamp::now().as_second()), &hosts)?;
    for file in [certificate, key] {
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
    }
    files::write_private(key, made.key.as_bytes())?;
    files::write_public(certificate, made.certificate.as_bytes())?;
    tracing::info!("Generated self-signed cert ({}, {})", certificate.display(), key.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_kept_privately_and_linked() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("kubelet.crt"), dir.path().join("kubelet.key"));
        self_signed(&cert, &key, "node01", "20.0.0.103").unwrap();
        let before = std::fs::read(&cert).unwrap();
        self_signed(&cert, &key, "node01", "20.0.0.103").unwrap();
        assert_eq!(std::fs::read(&cert).unwrap(), before, "it is made once");
        let store = Store::client(dir.path());
        assert!(store.validity().is_none());
        let text = |p: &Path| std::fs::read_to_string(p).unwrap();
        store.keep(&text(&cert), &text(&key), Timestamp::now()).unwrap();
        let mode = std::fs::metadata(store.current()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(store.current().is_symlink());
        let (from, to) = store.validity().unwrap();
        assert!(from < to && renewal(from, to, 0.0) > from && renewal(from, to, 1.0) < to);
    }

    #[test]
    fn a_pending_request_is_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::client(dir.path());
        let first = store.pending_request(&node_subject("n")).unwrap();
        assert_eq!(store.pending_request(&node_subject("n")).unwrap(), first);
        assert!(first.0.contains("CERTIFICATE REQUEST"));
        assert!(request_name("node-csr-", &first.0).starts_with("node-csr-"));
    }
}
