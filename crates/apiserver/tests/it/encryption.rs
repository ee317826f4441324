//! Encryption at rest: what lies in the store, and what clients see.

use std::sync::Arc;

use crate::common::{World, start_on};
use http::StatusCode;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_store::Store;
use pilothouse_store::embedded::EmbeddedStore;
use tempfile::TempDir;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const OLD: &str = "c2VjcmV0IGlzIHNlY3VyZQ==";
const NEW: &str = "dGhpcyBpcyBwYXNzd29yZA==";
/// 32 bytes.
const BOX: &str = "YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXoxMjM0NTY=";

fn secret(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"password": "geheim"}})
}

async fn raw(store: &Arc<dyn Store>, key: &str) -> Vec<u8> {
    store.get(key.as_bytes()).await.unwrap().0.unwrap().value.to_vec()
}

async fn world(dir: TempDir, store: &Arc<dyn Store>, providers: &str) -> World {
    let file = dir.path().join("encryption.yaml");
    let text = format!(
        "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n  providers: [{providers}]\n"
    );
    std::fs::write(&file, text).unwrap();
    let flag = format!("--encryption-provider-config={}", file.display());
    start_on(dir, store.clone(), &[&flag]).await
}

fn begins(value: &[u8], prefix: &str) -> bool {
    value.starts_with(prefix.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_changed_without_anybody_noticing() {
    let data = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = EmbeddedStore::open(data.path()).unwrap();
    let key = "/registry/secrets/default/a";

    let plain = start_on(tempfile::tempdir().unwrap(), store.clone(), &[]).await;
    assert_eq!(plain.api().post(SECRETS, secret("a")).await.0, StatusCode::CREATED);
    let dir = plain.stop().await;
    assert!(begins(&raw(&store, key).await, "{"));

    // What was plain is read, what is new is encrypted, and what is written again, though nothing in it changes, too.
    let cbc = format!("{{aescbc: {{keys: [{{name: one, secret: {OLD}}}]}}}}, {{identity: {{}}}}");
    let w = world(dir, &store, &cbc).await;
    let api = w.api();
    let mut watch = api.watch(&format!("{SECRETS}?watch=true")).await;
    let seen = watch.expect("ADDED", "a").await;
    assert_eq!(seen["data"]["password"], "Z2VoZWlt");
    assert!(begins(&raw(&store, key).await, "{"));
    let (code, again) = api.put(&format!("{SECRETS}/a"), &seen).await;
    assert_eq!((code, &again["data"]), (StatusCode::OK, &seen["data"]));
    assert!(begins(&raw(&store, key).await, "k8s:enc:aescbc:v1:one:"));
    assert_eq!(watch.expect("MODIFIED", "a").await, again);
    // Now it is as it should be: the same once more is no write.
    let (_, same) = api.put(&format!("{SECRETS}/a"), &again).await;
    assert_eq!(same["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);
    let maps = "/api/v1/namespaces/default/configmaps";
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    api.post(maps, map).await;
    assert!(begins(&raw(&store, "/registry/configmaps/default/m").await, "{"));
    let dir = w.stop().await;

    // Another provider in front; the old key still opens.
    let gcm = format!(
        "{{aesgcm: {{keys: [{{name: two, secret: {NEW}}}]}}}}, {{aescbc: {{keys: [{{name: one, secret: {OLD}}}]}}}}"
    );
    let w = world(dir, &store, &gcm).await;
    let api = w.api();
    assert_eq!(api.get(&format!("{SECRETS}/a")).await.1["data"]["password"], "Z2VoZWlt");
    assert_eq!(api.post(SECRETS, secret("b")).await.0, StatusCode::CREATED);
    assert!(begins(&raw(&store, "/registry/secrets/default/b").await, "k8s:enc:aesgcm:v1:two:"));
    let (_, list) = api.get(SECRETS).await;
    assert_eq!(
        list["items"].as_array().unwrap().iter().filter(|s| s["data"]["password"] == "Z2VoZWlt").count(),
        2
    );
    let (code, _) = api.patch(&format!("{SECRETS}/b"), json!({"metadata": {"labels": {"x": "y"}}})).await;
    assert_eq!(code, StatusCode::OK);
    assert_eq!(api.delete(&format!("{SECRETS}/b")).await.0, StatusCode::OK);
    for s in list["items"].as_array().unwrap().iter().filter(|s| s["metadata"]["name"] == "a") {
        assert_eq!(api.put(&format!("{SECRETS}/a"), s).await.0, StatusCode::OK);
    }
    let dir = w.stop().await;

    let salsa = format!(
        "{{secretbox: {{keys: [{{name: three, secret: {BOX}}}]}}}}, {{aesgcm: {{keys: [{{name: two, secret: {NEW}}}]}}}}"
    );
    let w = world(dir, &store, &salsa).await;
    let api = w.api();
    assert_eq!(api.get(&format!("{SECRETS}/a")).await.1["data"]["password"], "Z2VoZWlt");
    assert_eq!(api.post(SECRETS, secret("c")).await.0, StatusCode::CREATED);
    let value = raw(&store, "/registry/secrets/default/c").await;
    assert!(begins(&value, "k8s:enc:secretbox:v1:three:"));
    assert!(!value.windows(8).any(|w| w == b"password"), "it can be read");
    w.stop().await;
}
