//! A small HTTPS client that shows answers as they are.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long an answer may take: a watch of the tests ends by its own `timeoutSeconds`.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An answer.
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type` without parameters.
    pub content_type: String,
    /// Body.
    pub body: Bytes,
}

/// A connection to a server on loopback, opened again when the server closed it.
pub struct Client {
    port: u16,
    tls: TlsConnector,
    token: String,
    connection: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects to a server whose certificate is in `certificate`.
    pub async fn connect(port: u16, certificate: &Path, token: &str) -> anyhow::Result<Client> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let expected = CertificateDer::from_pem_file(certificate).context("certificate")?;
        let verifier = Pinned { expected, provider: provider.clone() };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        let tls = TlsConnector::from(Arc::new(config));
        let connection = open(port, &tls).await?;
        Ok(Client { port, tls, token: token.into(), connection })
    }

    /// Sends a request and reads the whole answer. A header without a value takes the default of that name away.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, Option<&str>)],
        body: Option<Bytes>,
    ) -> anyhow::Result<Answer> {
        if self.connection.ready().await.is_err() {
            self.connection = open(self.port, &self.tls).await?;
        }
        let bearer = format!("Bearer {}", self.token);
        let mut all = vec![
            ("Host", Some("127.0.0.1")),
            ("User-Agent", Some("wire")),
            ("Accept", Some("application/json")),
            ("Authorization", Some(bearer.as_str())),
        ];
        if body.is_some() {
            all.push(("Content-Type", Some("application/json")));
        }
        all.retain(|(name, _)| !headers.iter().any(|(h, _)| h.eq_ignore_ascii_case(name)));
        all.extend(headers);
        let mut request = hyper::Request::builder().method(method).uri(path);
        for (name, value) in all {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let request = request.body(Full::new(body.unwrap_or_default()))?;
        let exchange = async {
            let answer = self.connection.send_request(request).await?;
            let content_type =
                answer.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
            let content_type = content_type.split(';').next().unwrap_or_default().trim().to_string();
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await?.to_bytes();
            anyhow::Ok(Answer { status, content_type, body })
        };
        tokio::time::timeout(TIMEOUT, exchange).await.with_context(|| format!("{method} {path}"))?
    }
}

async fn open(port: u16, tls: &TlsConnector) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let stream = tls.connect(ServerName::try_from("127.0.0.1")?, stream).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Trusts one certificate: the one that the server wrote for itself.
#[derive(Debug)]
struct Pinned {
    expected: CertificateDer<'static>,
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *certificate == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("another certificate than the server's own".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
