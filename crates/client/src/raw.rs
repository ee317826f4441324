//! Objects as text. The machinery of lists and watches is large and generic; on this one type it is compiled once, here,
//! and each kind adds no more than the reading of its own text.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use kube::api::{ApiResource, ObjectMeta};
use kube::core::DynamicResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use pilothouse_component_base::signals::Stop;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::backoff::WatchBackoff;
use crate::key_of;

/// One object: its name, and all of it as JSON.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    meta: ObjectMeta,
    text: Box<RawValue>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Raw, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Names {
            name: Option<String>,
            namespace: Option<String>,
            resource_version: Option<String>,
        }
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            metadata: Names,
        }
        let text = Box::<RawValue>::deserialize(from)?;
        let Head { metadata: Names { name, namespace, resource_version } } =
            serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let meta = ObjectMeta { name, namespace, resource_version, ..Default::default() };
        Ok(Raw { meta, text })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(r: &ApiResource) -> Cow<'_, str> {
        r.kind.as_str().into()
    }
    fn group(r: &ApiResource) -> Cow<'_, str> {
        r.group.as_str().into()
    }
    fn version(r: &ApiResource) -> Cow<'_, str> {
        r.version.as_str().into()
    }
    fn api_version(r: &ApiResource) -> Cow<'_, str> {
        r.api_version.as_str().into()
    }
    fn plural(r: &ApiResource) -> Cow<'_, str> {
        r.plural.as_str().into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

/// The resource that a URL's path leads to: `/api/v1/namespaces/n/pods`, `/apis/apps/v1/deployments`.
fn resource(path: &str) -> ApiResource {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, version) = match parts.as_slice() {
        ["apis", group, version, ..] => (*group, *version),
        [_, version, ..] => ("", *version),
        _ => ("", ""),
    };
    ApiResource {
        group: group.to_string(),
        version: version.to_string(),
        api_version: if group.is_empty() { version.to_string() } else { format!("{group}/{version}") },
        // Nobody asks for it.
        kind: String::new(),
        plural: parts.last().copied().unwrap_or_default().to_string(),
    }
}

/// The same resource of the same server, as text.
pub(crate) fn untyped<K: Resource>(api: Api<K>) -> Api<Raw> {
    let resource = resource(api.resource_url());
    match api.namespace().map(String::from) {
        Some(n) => Api::namespaced_with(api.into_client(), &n, &resource),
        None => Api::all_with(api.into_client(), &resource),
    }
}

/// What a watch feeds.
pub(crate) trait Fed: Send + Sync {
    /// Puts in the object that this text is.
    fn put(&self, text: &str) -> Result<(), serde_json::Error>;
    /// Takes out the object of that key.
    fn take_out(&self, key: &str);
    /// The keys of all objects.
    fn keys(&self) -> Vec<String>;
    /// The first list is here.
    fn complete(&self);
}

/// Lists, watches, and lists again when a watch cannot go on, until `stop`.
pub(crate) async fn follow(api: Api<Raw>, config: watcher::Config, fed: Arc<dyn Fed>, stop: Stop) {
    let path = api.resource_url().to_string();
    let put = |o: &Raw| {
        if let Err(e) = fed.put(o.text.get()) {
            tracing::warn!(path, object = key_of(o), "an object that cannot be read: {e}");
        }
    };
    let mut events = watcher(api, config).backoff(WatchBackoff::default()).boxed();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    loop {
        let event = tokio::select! {
            _ = stop.wait() => return,
            e = events.next() => match e { Some(e) => e, None => return },
        };
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(o)) => {
                listed.insert(key_of(&o));
                put(&o);
            }
            Ok(Event::InitDone) => {
                for gone in fed.keys().iter().filter(|k| !listed.contains(*k)) {
                    fed.take_out(gone);
                }
                listed.clear();
                fed.complete();
            }
            Ok(Event::Apply(o)) => put(&o),
            Ok(Event::Delete(o)) => fed.take_out(&key_of(&o)),
            Err(e) => tracing::debug!(path, "list or watch: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::Deployment;
    use k8s_openapi::api::core::v1::{Namespace, Pod};
    use kube::core::WatchEvent;
    use kube::core::object::ObjectList;

    #[tokio::test]
    async fn urls_stay_the_same() {
        let client =
            kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let pods: Api<Pod> = Api::namespaced(client.clone(), "n");
        assert_eq!(untyped(pods).resource_url(), "/api/v1/namespaces/n/pods");
        let all: Api<Namespace> = Api::all(client.clone());
        assert_eq!(untyped(all).resource_url(), "/api/v1/namespaces");
        let deployments: Api<Deployment> = Api::all(client);
        assert_eq!(untyped(deployments).resource_url(), "/apis/apps/v1/deployments");
    }

    #[test]
    fn objects_come_in_lists_and_in_events() {
        let object =
            r#"{"metadata":{"name":"p","namespace":"n","resourceVersion":"7","labels":{"a":"b"}},"spec":{}}"#;
        let list = format!(
            r#"{{"apiVersion":"v1","kind":"PodList","metadata":{{"resourceVersion":"9"}},"items":[{object}]}}"#
        );
        let list: ObjectList<Raw> = serde_json::from_str(&list).unwrap();
        assert_eq!((key_of(&list.items[0]).as_str(), list.items[0].text.get()), ("n/p", object));
        let event = format!(r#"{{"type":"ADDED","object":{object}}}"#);
        let WatchEvent::Added(o) = serde_json::from_slice::<WatchEvent<Raw>>(event.as_bytes()).unwrap()
        else {
            panic!("not that event")
        };
        assert_eq!((o.text.get(), o.meta().resource_version.as_deref()), (object, Some("7")));
        assert!(serde_json::from_str::<Raw>("3").is_err());
    }
}
