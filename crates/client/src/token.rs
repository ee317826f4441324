//! A client that shows a bearer token which changes while the client lives.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request};
use kube::client::ClientBuilder;
use kube::config::AuthInfo;
use kube::{Client, Config};
use parking_lot::RwLock;
use tower::{Layer, Service};

use crate::limit::{Limit, LimitLayer};

/// The token as it is now. Cheap to clone; all clones are the same. Its text is never shown.
#[derive(Clone)]
pub struct Bearer(Arc<RwLock<HeaderValue>>);

impl Default for Bearer {
    fn default() -> Self {
        Bearer(Arc::new(RwLock::new(HeaderValue::from_static(""))))
    }
}

impl Bearer {
    /// Replaces the token; one that cannot stand in a header is ignored.
    pub fn set(&self, token: &str) {
        if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {token}")) {
            value.set_sensitive(true);
            *self.0.write() = value;
        }
    }
}

/// A client for the same server that shows `bearer` in place of the configuration's own credentials.
/// `limit`: how many requests it may make.
pub fn client(config: &Config, bearer: Bearer, limit: Option<Limit>) -> Result<Client, kube::Error> {
    let mut config = config.clone();
    config.auth_info = AuthInfo::default();
    let builder = ClientBuilder::try_from(config)?.with_layer(&ShowLayer(bearer));
    Ok(match limit {
        None => builder.build(),
        Some(limit) => builder.with_layer(&LimitLayer::new(limit)).build(),
    })
}

#[derive(Clone)]
struct ShowLayer(Bearer);

impl<S> Layer<S> for ShowLayer {
    type Service = Show<S>;

    fn layer(&self, inner: S) -> Show<S> {
        Show { inner, bearer: self.0.clone() }
    }
}

/// Adds the header to each request.
#[derive(Clone)]
struct Show<S> {
    inner: S,
    bearer: Bearer,
}

impl<S, B> Service<Request<B>> for Show<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        request.headers_mut().insert(AUTHORIZATION, self.bearer.0.read().clone());
        self.inner.call(request)
    }
}
