//! Bootstrap tokens: expired ones are removed, and those for signing sign `cluster-info` in `kube-public`
//! (<https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>).

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use pilothouse_client::{Queue, key_of};

use crate::context::Context;
use crate::control::has_code;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const SIGNATURE: &str = "jws-kubeconfig-";

/// Starts the controller that removes expired tokens.
pub async fn start_cleaner(context: Context) -> anyhow::Result<()> {
    let queue: Queue<String> = Queue::new();
    let secrets = context.informer::<Secret>();
    let q = queue.clone();
    secrets.on_change(move |c| {
        if c.object().type_.as_deref() == Some(TYPE) && namespace(c.object()) == "kube-system" {
            q.add(key_of(&**c.object()));
        }
    });
    let client = context.client.clone();
    queue.run("tokencleaner", 1, context.stop.clone(), move |key| {
        let (client, secret) = (client.clone(), secrets.get(&key));
        async move {
            let Some(secret) = secret else { return Ok(None) };
            match expires_in(&secret, Timestamp::now()) {
                None => Ok(None),
                Some(left) if !left.is_zero() => Ok(Some(left)),
                Some(_) => {
                    let api: Api<Secret> = Api::namespaced(client, "kube-system");
                    let params = DeleteParams {
                        preconditions: Some(Preconditions {
                            uid: secret.metadata.uid.clone(),
                            resource_version: None,
                        }),
                        ..Default::default()
                    };
                    match api.delete(secret.metadata.name.as_deref().unwrap_or_default(), &params).await {
                        Ok(_) => Ok(None),
                        Err(e) if has_code(&e, 404) || has_code(&e, 409) => Ok(None),
                        Err(e) => Err(e),
                    }
                }
            }
        }
    });
    Ok(())
}

/// Starts the controller that signs `cluster-info`.
pub async fn start_signer(context: Context) -> anyhow::Result<()> {
    let queue: Queue<()> = Queue::new();
    let (secrets, maps) = (context.informer::<Secret>(), context.informer::<ConfigMap>());
    let q = queue.clone();
    secrets.on_change(move |c| {
        if c.object().type_.as_deref() == Some(TYPE) {
            q.add(());
        }
    });
    let q = queue.clone();
    maps.on_change(move |c| {
        if key_of(&**c.object()) == "kube-public/cluster-info" {
            q.add(());
        }
    });
    let (client, stop) = (context.client.clone(), context.stop.clone());
    tokio::spawn(async move {
        secrets.wait_synced().await;
        queue.run("bootstrapsigner", 1, stop, move |()| {
            let (client, map, secrets) =
                (client.clone(), maps.get("kube-public/cluster-info"), secrets.clone());
            async move {
                let Some(map) = map else { return Ok(None) };
                let tokens = signing_tokens(secrets.list().iter().map(|s| &**s), Timestamp::now());
                let data = map.data.clone().unwrap_or_default();
                let signed = sign(&data, &tokens);
                if signed == data {
                    return Ok(None);
                }
                let mut map = (*map).clone();
                map.data = Some(signed);
                Api::<ConfigMap>::namespaced(client, "kube-public")
                    .replace("cluster-info", &PostParams::default(), &map)
                    .await
                    .map(|_| None)
            }
        });
    });
    Ok(())
}

fn namespace(secret: &Secret) -> &str {
    secret.metadata.namespace.as_deref().unwrap_or_default()
}

fn text(secret: &Secret, key: &str) -> String {
    let value = secret.data.as_ref().and_then(|d| d.get(key));
    value.map(|v| String::from_utf8_lossy(&v.0).into_owned()).unwrap_or_default()
}

/// How long a token has left: zero where it has expired or its expiry cannot be read, nothing where it has none.
fn expires_in(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let expiration = text(secret, "expiration");
    if expiration.is_empty() {
        return None;
    }
    let left =
        expiration.parse::<Timestamp>().map(|t| t.as_millisecond() - now.as_millisecond()).unwrap_or(0);
    Some(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
}

/// Id and secret of the tokens that may sign.
fn signing_tokens<'a>(secrets: impl Iterator<Item = &'a Secret>, now: Timestamp) -> BTreeMap<String, String> {
    secrets
        .filter(|s| s.type_.as_deref() == Some(TYPE) && namespace(s) == "kube-system")
        .filter(|s| s.metadata.deletion_timestamp.is_none() && expires_in(s, now) != Some(Duration::ZERO))
        .filter(|s| text(s, "usage-bootstrap-signing") == "true")
        .map(|s| (text(s, "token-id"), text(s, "token-secret")))
        .filter(|(id, secret)| !id.is_empty() && !secret.is_empty())
        .collect()
}

/// `cluster-info` with one detached JWS (RFC 7515, appendix F) for each token, and none for others.
fn sign(data: &BTreeMap<String, String>, tokens: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut signed: BTreeMap<String, String> =
        data.iter().filter(|(k, _)| !k.starts_with(SIGNATURE)).map(|(k, v)| (k.clone(), v.clone())).collect();
    let Some(kubeconfig) = data.get("kubeconfig") else { return signed };
    for (id, secret) in tokens {
        let header = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
        let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(kubeconfig));
        let key = EncodingKey::from_secret(secret.as_bytes());
        if let Ok(signature) = jsonwebtoken::crypto::sign(input.as_bytes(), &key, Algorithm::HS256) {
            signed.insert(format!("{SIGNATURE}{id}"), format!("{header}..{signature}"));
        }
    }
    signed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_original_does() {
        let data = [("kubeconfig", "apiVersion: v1\nkind: Config\n"), ("jws-kubeconfig-gone00", "old")]
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .into();
        let tokens = [("aaaaa2".to_string(), "0123456789abcdef".to_string())].into();
        let signed = sign(&data, &tokens);
        assert_eq!(
            signed["jws-kubeconfig-aaaaa2"],
            "eyJhbGciOiJIUzI1NiIsImtpZCI6ImFhYWFhMiJ9..UQrK7Oe-kL9LQ53p1D1C7aUvqyXxpfZKAYvO5A91ETI"
        );
        assert!(!signed.contains_key("jws-kubeconfig-gone00"));
    }

    #[test]
    fn expiry() {
        let secret = |e: &str| {
            let mut s = Secret::default();
            s.data
                .get_or_insert_default()
                .insert("expiration".into(), k8s_openapi::ByteString(e.as_bytes().to_vec()));
            s
        };
        let now = "2024-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(expires_in(&Secret::default(), now), None);
        assert_eq!(expires_in(&secret("2024-01-01T00:00:05Z"), now), Some(Duration::from_secs(5)));
        assert_eq!(expires_in(&secret("2020-01-01T00:00:00Z"), now), Some(Duration::ZERO));
        assert_eq!(expires_in(&secret("tomorrow"), now), Some(Duration::ZERO));
    }
}
