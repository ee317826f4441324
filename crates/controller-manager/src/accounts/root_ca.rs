//! Each namespace has a ConfigMap `kube-root-ca.crt` with the cluster's CA, for pods to trust the API server by.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use pilothouse_client::Queue;

use crate::context::Context;
use crate::control::{has_code, is_terminating_namespace};

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";

/// Starts the controller; does nothing without `--root-ca-file`.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let Some(file) = &context.config.root_ca_file else { return Ok(()) };
    let wanted: BTreeMap<String, String> = [(KEY.to_string(), pilothouse_pki::files::read(file)?)].into();
    let queue: Queue<String> = Queue::new();
    let namespaces = context.informer::<Namespace>();
    let maps = context.informer::<ConfigMap>();
    let q = queue.clone();
    namespaces.on_change(move |c| {
        if let Some(name) = &c.object().metadata.name {
            q.add(name.clone());
        }
    });
    let q = queue.clone();
    maps.on_change(move |c| {
        let meta = &c.object().metadata;
        if meta.name.as_deref() == Some(NAME) {
            q.add(meta.namespace.clone().unwrap_or_default());
        }
    });
    let (client, stop) = (context.client.clone(), context.stop.clone());
    tokio::spawn(async move {
        maps.wait_synced().await;
        queue.run("root-ca-cert-publisher", 1, stop, move |namespace| {
            let (client, namespaces, maps, wanted) =
                (client.clone(), namespaces.clone(), maps.clone(), wanted.clone());
            async move {
                if namespaces.get(&namespace).is_none_or(|n| n.metadata.deletion_timestamp.is_some()) {
                    return Ok(None);
                }
                let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
                let result = match maps.get(&format!("{namespace}/{NAME}")) {
                    Some(map) if map.data.as_ref() == Some(&wanted) => return Ok(None),
                    Some(map) => {
                        let mut map = (*map).clone();
                        map.data = Some(wanted);
                        api.replace(NAME, &PostParams::default(), &map).await
                    }
                    None => {
                        let map = ConfigMap {
                            metadata: ObjectMeta { name: Some(NAME.into()), ..Default::default() },
                            data: Some(wanted),
                            ..Default::default()
                        };
                        api.create(&PostParams::default(), &map).await
                    }
                };
                match result {
                    Ok(_) => Ok(None),
                    Err(e) if has_code(&e, 404) || is_terminating_namespace(&e) => Ok(None),
                    Err(e) => Err(e),
                }
            }
        });
    });
    Ok(())
}
