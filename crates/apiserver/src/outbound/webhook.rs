//! Webhooks of any sort: where they are, and one call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use pilothouse_apimachinery::json::Value;

use super::kubeconfig::split_url;
use super::tls::{self, Trust};
use super::{Target, resolve};
use crate::json::{get, i64_at, str_at};
use crate::request::Objects;

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// TLS configurations by CA bundle: parsing one for every call would cost more than the call.
#[derive(Default)]
pub struct Clients(Mutex<HashMap<String, Arc<rustls::ClientConfig>>>);

impl Clients {
    fn get(&self, bundle: &str) -> Result<Arc<rustls::ClientConfig>, String> {
        if let Some(known) = self.0.lock().get(bundle) {
            return Ok(known.clone());
        }
        let pem = STANDARD.decode(bundle).map_err(|e| format!("caBundle: {e}"))?;
        let trust = if pem.is_empty() { Trust::System } else { Trust::Pem(&pem) };
        let made = tls::client(trust, None)?;
        let mut known = self.0.lock();
        if known.len() > 100 {
            known.clear();
        }
        known.insert(bundle.to_string(), made.clone());
        Ok(made)
    }

    /// Where a webhook is reached, with path and query.
    fn target(
        &self,
        config: &Value,
        objects: &dyn Objects,
        seconds: u64,
    ) -> Result<(Target, String), String> {
        let tls = self.get(str_at(config, &["caBundle"]))?;
        let url = str_at(config, &["url"]);
        if !url.is_empty() {
            let (_, host, port, path) = split_url(url)?;
            let separator = if path.contains('?') { '&' } else { '?' };
            let target = Target { host, port, addresses: vec![], tls: Some(tls) };
            return Ok((target, format!("{path}{separator}timeout={seconds}s")));
        }
        let service = |f| str_at(config, &["service", f]);
        let (namespace, name) = (service("namespace"), service("name"));
        let port = i64_at(config, &["service", "port"]).and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
        let path = format!("/{}", service("path").trim_start_matches('/'));
        let host = format!("{name}.{namespace}.svc");
        let addresses = resolve::service(objects, namespace, name, port)
            .map_err(|why| format!("Post \"https://{host}:{port}{path}?timeout={seconds}s\": {why}"))?;
        Ok((Target { host, port, addresses, tls: Some(tls) }, format!("{path}?timeout={seconds}s")))
    }

    /// Posts a review to the webhook of `holder` (what has a `clientConfig`) and gives the answer, JSON. `seconds` is how
    /// long it may take in all. The error is in Kubernetes' words.
    pub async fn post(
        &self,
        holder: &Value,
        objects: &dyn Objects,
        review: &Value,
        seconds: u64,
    ) -> Result<Value, String> {
        let (target, path) = self.target(get(holder, &["clientConfig"]), objects, seconds)?;
        let url = format!("Post \"https://{}{path}\"", target.authority());
        let (status, body) = target
            .post_json(&path, None, review.to_string().into_bytes(), Duration::from_secs(seconds), MAX_ANSWER)
            .await
            .map_err(|e| format!("{url}: {e}"))?;
        if !status.is_success() {
            return Err(if status.as_u16() == 404 {
                "the server could not find the requested resource".to_string()
            } else {
                let text = String::from_utf8_lossy(&body);
                format!(
                    "an error on the server ({:?}) has prevented the request from succeeding",
                    text.trim()
                )
            });
        }
        serde_json::from_slice(&body).map_err(|e| format!("invalid response: {e}"))
    }
}
