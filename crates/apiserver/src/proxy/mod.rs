//! Byte tunnels to kubelets, pods and services.

pub mod forward;
pub mod kubelet;
pub mod location;
pub mod logs;
pub mod streams;

use std::sync::Arc;

use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;

use crate::admission;
use crate::config::Config;
use crate::request::{AdmissionRequest, Operation, RequestContext};
use crate::special::SpecialRest;
use crate::state::ServerState;

use self::kubelet::Kubelets;

/// Registers the handlers. Errors name the flag or file.
pub fn register(special: &mut SpecialRest, config: &Arc<Config>) -> Result<(), String> {
    let kubelets = Arc::new(Kubelets::new(&config.kubelet)?);
    logs::register(special, &kubelets);
    streams::register(special, &kubelets);
    location::register(special, &kubelets);
    Ok(())
}

/// Asks the admission plug-ins about a connection; `options` are `PodExecOptions` and the like.
async fn admit(
    state: &ServerState,
    context: &RequestContext,
    kind: &str,
    options: Value,
) -> Result<(), Status> {
    let info = &context.info;
    let mut request = AdmissionRequest {
        user: context.user.clone(),
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        kind: kind.into(),
        subresource: info.subresource.clone(),
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        operation: Operation::Connect,
        object: options,
        old_object: Value::Null,
        options: Value::Null,
        dry_run: false,
        warnings: Default::default(),
        reinvocation: Default::default(),
    };
    admission::run(state, &mut request).await
}
