//! Each namespace has a service account `default`.

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use pilothouse_client::Queue;

use crate::context::Context;
use crate::control::{has_code, is_terminating_namespace};

const NAME: &str = "default";

/// Starts the controller.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let queue: Queue<String> = Queue::new();
    let namespaces = context.informer::<Namespace>();
    let accounts = context.informer::<ServiceAccount>();
    let q = queue.clone();
    namespaces.on_change(move |c| {
        if let Some(name) = &c.object().metadata.name {
            q.add(name.clone());
        }
    });
    let q = queue.clone();
    accounts.on_change(move |c| {
        let meta = &c.object().metadata;
        if meta.name.as_deref() == Some(NAME) {
            q.add(meta.namespace.clone().unwrap_or_default());
        }
    });
    let (client, stop) = (context.client.clone(), context.stop.clone());
    tokio::spawn(async move {
        accounts.wait_synced().await;
        queue.run("serviceaccount", 1, stop, move |namespace| {
            let (client, namespaces, accounts) = (client.clone(), namespaces.clone(), accounts.clone());
            async move {
                let active =
                    namespaces.get(&namespace).is_some_and(|n| n.metadata.deletion_timestamp.is_none());
                if !active || accounts.get(&format!("{namespace}/{NAME}")).is_some() {
                    return Ok(None);
                }
                let account = ServiceAccount {
                    metadata: ObjectMeta { name: Some(NAME.into()), ..Default::default() },
                    ..Default::default()
                };
                let api: Api<ServiceAccount> = Api::namespaced(client, &namespace);
                match api.create(&PostParams::default(), &account).await {
                    Ok(_) => Ok(None),
                    Err(e) if has_code(&e, 409) || is_terminating_namespace(&e) => Ok(None),
                    Err(e) => Err(e),
                }
            }
        });
    });
    Ok(())
}
