//! Who asks, and whether they may: client certificates, tokens by TokenReview, access by SubjectAccessReview.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::{HeaderMap, Method, header};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::answer::{self, Answer};
use super::route::{subresource, verb};
use crate::configuration::KubeletConfiguration;

/// How often the file of client CAs is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// Answers that are remembered at most.
const REMEMBERED: usize = 4096;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else the authenticator says.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// The API server's word on tokens and on access.
#[async_trait]
pub trait Reviews: Send + Sync {
    /// Whose token it is; `None` where it is nobody's.
    async fn token(&self, token: &str) -> Result<Option<User>, String>;
    /// Whether a user may do `verb` with that subresource of this node.
    async fn access(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, String>;
}

/// Asks the API server.
pub struct ApiReviews {
    /// With the kubelet's own credentials.
    pub client: Client,
    /// This node.
    pub node: String,
}

#[async_trait]
impl Reviews for ApiReviews {
    async fn token(&self, token: &str) -> Result<Option<User>, String> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_string(), ..Default::default() },
            ..Default::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = api.create(&PostParams::default(), &review).await.map_err(|e| e.to_string())?;
        let status = review.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return match status.error.filter(|e| !e.is_empty()) {
                Some(e) => Err(e),
                None => Ok(None),
            };
        }
        let user = status.user.unwrap_or_default();
        Ok(Some(User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    async fn access(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, String> {
        let text = |s: &str| Some(s.to_string()).filter(|s| !s.is_empty());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: text(&user.name),
                uid: text(&user.uid),
                groups: Some(user.groups.clone()),
                extra: Some(user.extra.clone()).filter(|e| !e.is_empty()),
                resource_attributes: Some(ResourceAttributes {
                    verb: text(verb),
                    version: text("v1"),
                    resource: text("nodes"),
                    subresource: text(subresource),
                    name: text(&self.node),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = api.create(&PostParams::default(), &review).await.map_err(|e| e.to_string())?;
        Ok(review.status.is_some_and(|s| s.allowed))
    }
}

/// The client CAs of a file, read again when it changes.
struct ClientCas {
    file: PathBuf,
    loaded: Mutex<Loaded>,
}

type Verifier = Arc<dyn ClientCertVerifier>;

struct Loaded {
    verifier: Verifier,
    modified: Option<SystemTime>,
    looked: Instant,
}

impl ClientCas {
    fn new(file: PathBuf) -> Result<ClientCas, String> {
        let loaded = Loaded { verifier: verifier(&file)?, modified: modified(&file), looked: Instant::now() };
        Ok(ClientCas { file, loaded: Mutex::new(loaded) })
    }

    fn verifier(&self) -> Verifier {
        let mut l = self.loaded.lock();
        if l.looked.elapsed() >= LOOK {
            l.looked = Instant::now();
            let now = modified(&self.file);
            if now != l.modified {
                match verifier(&self.file) {
                    Ok(v) => (l.verifier, l.modified) = (v, now),
                    Err(e) => tracing::warn!("client CAs not loaded: {e}"),
                }
            }
        }
        l.verifier.clone()
    }

    /// Who a chain (leaf first) is for; `None` where it is not trusted.
    fn user(&self, chain: &[CertificateDer<'static>]) -> Option<User> {
        let (leaf, rest) = chain.split_first()?;
        self.verifier().verify_client_cert(leaf, rest, UnixTime::now()).ok()?;
        let (_, cert) = x509_parser::parse_x509_certificate(leaf).ok()?;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().unwrap_or("").to_string();
        let name = cert.subject().iter_common_name().last().map(text).filter(|n| !n.is_empty())?;
        let groups = cert.subject().iter_organization().map(text).collect();
        Some(User { name, groups, ..User::default() })
    }
}

fn modified(path: &std::path::Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|m| m.modified()).ok()
}

fn verifier(file: &std::path::Path) -> Result<Verifier, String> {
    let failed = |e: String| format!("unable to load client CA file {}: {e}", file.display());
    let pem = std::fs::read(file).map_err(|e| failed(e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&pem) {
        roots.add(cert.map_err(|e| failed(format!("{e:?}")))?).map_err(|e| failed(e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map(|v| v as Verifier)
        .map_err(|e| failed(e.to_string()))
}

/// Answers, each good for a time.
struct Cache<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: std::hash::Hash + Eq, V: Clone> Cache<K, V> {
    fn new() -> Self {
        Cache(Mutex::default())
    }

    fn get(&self, key: &K) -> Option<V> {
        let now = Instant::now();
        self.0.lock().get(key).filter(|(until, _)| *until > now).map(|(_, v)| v.clone())
    }

    fn put(&self, key: K, value: V, good_for: Duration) {
        let now = Instant::now();
        let mut map = self.0.lock();
        if map.len() >= REMEMBERED {
            map.retain(|_, (until, _)| *until > now);
            if map.len() >= REMEMBERED {
                map.clear();
            }
        }
        map.insert(key, (now + good_for, value));
    }
}

/// See the module.
pub struct Auth {
    cas: Option<ClientCas>,
    reviews: Option<Arc<dyn Reviews>>,
    tokens: bool,
    anonymous: bool,
    always_allow: bool,
    token_ttl: Duration,
    allowed_ttl: Duration,
    denied_ttl: Duration,
    known_tokens: Cache<[u8; 32], Option<User>>,
    known_access: Cache<(User, &'static str, &'static str), bool>,
}

impl Auth {
    /// As the configuration has it. Without `reviews` (a kubelet without API server) tokens are not taken and webhook
    /// authorization allows nothing.
    pub fn new(config: &KubeletConfiguration, reviews: Option<Arc<dyn Reviews>>) -> Result<Auth, String> {
        let file = config.string("authentication.x509.clientCAFile");
        let cas = if file.is_empty() { None } else { Some(ClientCas::new(PathBuf::from(file))?) };
        let always_allow = match config.string("authorization.mode").as_str() {
            "AlwaysAllow" => true,
            "Webhook" => false,
            "" => return Err("no authorization mode specified".into()),
            other => return Err(format!("unknown authorization mode {other}")),
        };
        Ok(Auth {
            cas,
            tokens: config.bool("authentication.webhook.enabled") && reviews.is_some(),
            reviews,
            anonymous: config.bool("authentication.anonymous.enabled"),
            always_allow,
            token_ttl: config.duration("authentication.webhook.cacheTTL")?,
            allowed_ttl: config.duration("authorization.webhook.cacheAuthorizedTTL")?,
            denied_ttl: config.duration("authorization.webhook.cacheUnauthorizedTTL")?,
            known_tokens: Cache::new(),
            known_access: Cache::new(),
        })
    }

    /// Who asks, with the certificates that the TLS client showed. `None` where nobody known does.
    async fn user(&self, headers: &HeaderMap, chain: &[CertificateDer<'static>]) -> Option<User> {
        let by_certificate = self.cas.as_ref().and_then(|c| c.user(chain));
        let mut tried = self.cas.is_some() && !chain.is_empty();
        let mut user = by_certificate;
        if user.is_none()
            && self.tokens
            && let Some(token) = bearer(headers)
        {
            tried = true;
            user = self.token(token).await;
        }
        match user {
            Some(mut u) => {
                if !u.groups.iter().any(|g| g == "system:authenticated") {
                    u.groups.push("system:authenticated".into());
                }
                Some(u)
            }
            // Who tries and fails is not anonymous.
            None if self.anonymous && !tried => Some(User {
                name: "system:anonymous".into(),
                groups: vec!["system:unauthenticated".into()],
                ..User::default()
            }),
            None => None,
        }
    }

    async fn token(&self, token: &str) -> Option<User> {
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(known) = self.known_tokens.get(&key) {
            return known;
        }
        match self.reviews.as_ref()?.token(token).await {
            Ok(user) => {
                self.known_tokens.put(key, user.clone(), self.token_ttl);
                user
            }
            Err(e) => {
                tracing::warn!("unable to authenticate the request: {e}");
                None
            }
        }
    }

    /// Lets a request through, or gives the answer that refuses it.
    pub async fn check(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        chain: &[CertificateDer<'static>],
    ) -> Result<(), Answer> {
        let Some(user) = self.user(headers, chain).await else {
            return Err(answer::text(401, "Unauthorized"));
        };
        if self.always_allow {
            return Ok(());
        }
        let (verb, subresource) = (verb(method), subresource(path));
        let about = format!("(user={}, verb={verb}, resource=nodes, subresource={subresource})", user.name);
        let key = (user, verb, subresource);
        let allowed = match (self.known_access.get(&key), &self.reviews) {
            (Some(known), _) => Ok(known),
            (None, None) => Ok(false),
            (None, Some(r)) => r.access(&key.0, verb, subresource).await,
        };
        match allowed {
            Ok(allowed) => {
                let ttl = if allowed { self.allowed_ttl } else { self.denied_ttl };
                self.known_access.put(key, allowed, ttl);
                if allowed { Ok(()) } else { Err(answer::text(403, format!("Forbidden {about}"))) }
            }
            Err(e) => {
                tracing::warn!("authorization: {e}");
                Err(answer::text(500, format!("Authorization error {about}")))
            }
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.trim().split_once(' ')?;
    Some(token.trim()).filter(|t| scheme.eq_ignore_ascii_case("bearer") && !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Fixed(AtomicUsize);

    #[async_trait]
    impl Reviews for Fixed {
        async fn token(&self, token: &str) -> Result<Option<User>, String> {
            self.0.fetch_add(1, Ordering::SeqCst);
            match token {
                "broken" => Err("no server".into()),
                "bad" => Ok(None),
                name => Ok(Some(User { name: name.into(), ..User::default() })),
            }
        }

        async fn access(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, String> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(user.name == "admin"
                || (user.name == "system:anonymous" && (verb, subresource) == ("get", "metrics")))
        }
    }

    fn auth(yaml: &str, reviews: Arc<Fixed>) -> Auth {
        let text = format!("kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n{yaml}\n");
        Auth::new(&KubeletConfiguration::from_yaml(&text).unwrap(), Some(reviews)).unwrap()
    }

    async fn ask(auth: &Auth, method: Method, path: &str, token: &str) -> (u16, String) {
        let mut headers = HeaderMap::new();
        if !token.is_empty() {
            headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        match auth.check(&method, path, &headers, &[]).await {
            Ok(()) => (200, String::new()),
            Err(a) => {
                let code = a.status().as_u16();
                let body = a.into_body().collect().await.unwrap().to_bytes();
                (code, String::from_utf8(body.to_vec()).unwrap())
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_v1_20s_and_are_remembered() {
        let reviews = Arc::new(Fixed::default());
        let a = auth("", reviews.clone());
        assert_eq!(ask(&a, Method::GET, "/pods", "").await, (401, "Unauthorized".into()));
        assert_eq!(ask(&a, Method::GET, "/pods", "bad").await.0, 401);
        assert_eq!(ask(&a, Method::GET, "/pods", "broken").await.0, 401);
        assert_eq!(ask(&a, Method::GET, "/pods", "admin").await.0, 200);
        let want = "Forbidden (user=nobody, verb=create, resource=nodes, subresource=proxy)";
        assert_eq!(ask(&a, Method::POST, "/exec/n/p/c", "nobody").await, (403, want.into()));
        let before = reviews.0.load(Ordering::SeqCst);
        assert_eq!(ask(&a, Method::POST, "/exec/n/p/d", "nobody").await.0, 403);
        assert_eq!(ask(&a, Method::GET, "/pods", "admin").await.0, 200);
        assert_eq!(reviews.0.load(Ordering::SeqCst), before);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(ask(&a, Method::POST, "/exec/n/p/d", "nobody").await.0, 403);
        assert_eq!(reviews.0.load(Ordering::SeqCst), before + 1, "refusals are forgotten sooner");
    }

    #[tokio::test]
    async fn anonymous_requests_and_no_authorization() {
        let reviews = Arc::new(Fixed::default());
        let a = auth("authentication: {anonymous: {enabled: true}}", reviews.clone());
        assert_eq!(ask(&a, Method::GET, "/metrics", "").await.0, 200);
        assert_eq!(ask(&a, Method::GET, "/pods", "").await.0, 403);
        assert_eq!(ask(&a, Method::GET, "/metrics", "bad").await.0, 401, "a bad token is not anonymous");
        let open =
            auth("authentication: {anonymous: {enabled: true}}\nauthorization: {mode: AlwaysAllow}", reviews);
        assert_eq!(ask(&open, Method::POST, "/exec/n/p/c", "").await.0, 200);
    }

    #[tokio::test]
    async fn certificates() {
        use pilothouse_pki::{Authority, Subject, Usage};
        let dir = tempfile::tempdir().unwrap();
        let (ca, issued) = Authority::generate("ca", 1).unwrap();
        let file = dir.path().join("ca.crt");
        std::fs::write(&file, issued.certificate).unwrap();
        let subject = Subject {
            common_name: "admin".into(),
            organization: Some("system:masters".into()),
            hosts: vec![],
        };
        let leaf = ca.issue(&subject, Usage::Client, Duration::from_secs(60)).unwrap();
        let chain = [CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap()];
        let a =
            auth(&format!("authentication: {{x509: {{clientCAFile: {}}}}}", file.display()), Arc::default());
        assert!(a.check(&Method::GET, "/pods", &HeaderMap::new(), &chain).await.is_ok());
        let (other, _) = Authority::generate("ca", 1).unwrap();
        let leaf = other.issue(&subject, Usage::Client, Duration::from_secs(60)).unwrap();
        let chain = [CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap()];
        assert_eq!(
            a.check(&Method::GET, "/pods", &HeaderMap::new(), &chain).await.unwrap_err().status(),
            401
        );
    }
}
