//! Requests and the answers that Kubernetes v1.20 gives, against the API server on either store.
//!
//! The exchanges are in `tests/wire`, a file for each test. `WIRE_RECORD=1` writes the server's answers into the files
//! as what is expected: read the difference before committing it.
#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::fs;

use bytes::Bytes;
use pilothouse_tests::apiserver::{ApiServer, Store, TOKEN};
use pilothouse_tests::paths;
use pilothouse_tests::wire::{Scenario, play};

async fn replay(file: &str, store: Store) {
    let path = paths::project().join("tests/wire").join(file);
    let mut scenarios: Vec<Scenario> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let record = std::env::var_os("WIRE_RECORD").is_some() && store == Store::Embedded;
    let server = ApiServer::start(store).await.unwrap();
    let (differences, compared) = play(&server, &mut scenarios, record).await.unwrap();
    if record {
        let mut text = serde_json::to_string_pretty(&scenarios).unwrap();
        text.push('\n');
        fs::write(&path, text).unwrap();
    }
    assert!(compared > 0, "{file} compares nothing");
    assert!(
        differences.is_empty(),
        "{} of {compared} answers differ:\n{}",
        differences.len(),
        differences.join("\n")
    );
}

macro_rules! exchanges {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test] async fn $name() {
                super::replay(concat!(stringify!($name), ".json"), super::Store::Embedded).await;
            })*
        }
        mod etcd {
            $(#[tokio::test] async fn $name() {
                super::replay(concat!(stringify!($name), ".json"), super::Store::Etcd).await;
            })*
        }
    };
}

exchanges!(
    access,
    custom_resources,
    discovery,
    faults,
    lists,
    objects,
    patches,
    subresources,
    updates,
    watches
);

#[test]
fn every_file_of_exchanges_is_played() {
    let mut files: Vec<String> = fs::read_dir(paths::project().join("tests/wire"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let known = [
        "access",
        "custom_resources",
        "discovery",
        "faults",
        "lists",
        "objects",
        "patches",
        "subresources",
        "updates",
        "watches",
    ];
    assert_eq!(files, known.map(|k| format!("{k}.json")));
}

/// More than an object may have: refused before it is read whole, and the server goes on.
#[tokio::test]
async fn a_body_of_four_megabytes_is_too_large() {
    let server = ApiServer::start(Store::Embedded).await.unwrap();
    let mut client = server.client(TOKEN).await.unwrap();
    let big = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"big"}},"data":{{"k":"{}"}}}}"#,
        "x".repeat(4 << 20)
    );
    let path = "/api/v1/namespaces/default/configmaps";
    if let Ok(answer) = client.send("POST", path, &[], Some(Bytes::from(big))).await {
        assert_eq!(answer.status, 413);
    }
    let mut client = server.client(TOKEN).await.unwrap();
    assert_eq!(client.send("GET", path, &[], None).await.unwrap().status, 200);
}
