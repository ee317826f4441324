//! Resources with handlers of their own: reviews, token requests, bindings, evictions, proxies.

use std::sync::Arc;

use futures::future::BoxFuture;
use pilothouse_apimachinery::status::Status;

use crate::request::{RequestBody, RequestContext, Response, StorageHook};
use crate::state::ServerState;

/// Handles one request. Authentication, authorization and limits are behind it; everything else is the handler's.
pub type Handler = Arc<
    dyn Fn(Arc<ServerState>, Arc<RequestContext>, RequestBody) -> BoxFuture<'static, Result<Response, Status>>
        + Send
        + Sync,
>;

/// Handlers by group, resource, subresource and verb, and hooks by group and resource. Asked before the generic
/// handlers.
#[derive(Default, Clone)]
pub struct SpecialRest {
    handlers: Vec<([&'static str; 4], Handler)>,
    hooks: Vec<([&'static str; 2], Arc<dyn StorageHook>)>,
    paths: Vec<(&'static str, Handler)>,
}

impl SpecialRest {
    /// Registers a handler. The verb is [`crate::request::RequestInfo::verb`]; `"*"` is any verb.
    pub fn add<F, R>(
        &mut self,
        group: &'static str,
        resource: &'static str,
        subresource: &'static str,
        verb: &'static str,
        handler: F,
    ) where
        F: Fn(Arc<ServerState>, Arc<RequestContext>, RequestBody) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Response, Status>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |state, context, body| Box::pin(handler(state, context, body)));
        self.handlers.push(([group, resource, subresource, verb], handler));
    }

    /// Registers a handler for `GET` of a path that is no resource.
    pub fn add_path<F, R>(&mut self, path: &'static str, handler: F)
    where
        F: Fn(Arc<ServerState>, Arc<RequestContext>, RequestBody) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Response, Status>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |state, context, body| Box::pin(handler(state, context, body)));
        self.paths.push((path, handler));
    }

    /// The handler of a path that is no resource.
    pub fn find_path(&self, path: &str) -> Option<&Handler> {
        self.paths.iter().find(|(p, _)| *p == path).map(|(_, handler)| handler)
    }

    /// Registers what happens around the store for a resource.
    pub fn hook(&mut self, group: &'static str, resource: &'static str, hook: Arc<dyn StorageHook>) {
        self.hooks.push(([group, resource], hook));
    }

    /// The handler of a request.
    pub fn find(&self, group: &str, resource: &str, subresource: &str, verb: &str) -> Option<&Handler> {
        // A few dozen entries: looking at each is as fast as hashing.
        let fits = |[g, r, s, v]: &[&str; 4]| {
            *r == resource && *s == subresource && *g == group && (*v == verb || *v == "*")
        };
        self.handlers.iter().find(|(key, _)| fits(key)).map(|(_, handler)| handler)
    }

    /// The hook of a resource.
    pub fn hook_of(&self, group: &str, resource: &str) -> Option<&Arc<dyn StorageHook>> {
        self.hooks.iter().find(|([g, r], _)| *r == resource && *g == group).map(|(_, hook)| hook)
    }
}
