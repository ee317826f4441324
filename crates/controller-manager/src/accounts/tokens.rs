//! Token secrets of service accounts: filled in where a user makes one, made for each account up to v1.23, removed
//! with the account.
//!
//! <https://kubernetes.io/docs/concepts/configuration/secret/#serviceaccount-token-secrets>

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ObjectReference, Secret, ServiceAccount};
use kube::api::{DeleteParams, ObjectMeta, PostParams, Preconditions};
use kube::{Api, Client};
use pilothouse_client::{Change, Informer, Queue, key_of};
use pilothouse_pki::tokens::SigningKey;
use serde_json::json;

use crate::context::Context;
use crate::control::{has_code, is_terminating_namespace};

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Index of token secrets by `namespace/account`.
const BY_ACCOUNT: &str = "account";
/// The last minor release in which each account gets a secret without being asked.
const LAST_AUTOMATIC: u32 = 23;

/// Signs tokens.
struct Signer {
    key: SigningKey,
    root_ca: Option<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("token: {0}")]
    Token(String),
}

impl Signer {
    fn load(context: &Context) -> anyhow::Result<Option<Signer>> {
        let Some(file) = &context.config.service_account_private_key_file else { return Ok(None) };
        let key = SigningKey::load(file).map_err(anyhow::Error::msg)?;
        let root_ca = match &context.config.root_ca_file {
            Some(f) => Some(pilothouse_pki::files::read(f)?.into_bytes()),
            None => None,
        };
        Ok(Some(Signer { key, root_ca }))
    }

    fn token(&self, account: &ServiceAccount, secret: &str) -> Result<String, Error> {
        let namespace = account.metadata.namespace.as_deref().unwrap_or_default();
        let name = account.metadata.name.as_deref().unwrap_or_default();
        let claims = json!({
            "iss": "kubernetes/serviceaccount",
            "kubernetes.io/serviceaccount/namespace": namespace,
            "kubernetes.io/serviceaccount/secret.name": secret,
            "kubernetes.io/serviceaccount/service-account.name": name,
            "kubernetes.io/serviceaccount/service-account.uid": account.metadata.uid,
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
        });
        self.key.sign(&claims.into()).map_err(Error::Token)
    }

    /// What a token secret of that name must hold, given what it holds; `None` where it holds it.
    fn fill(
        &self,
        account: &ServiceAccount,
        name: &str,
        data: &BTreeMap<String, ByteString>,
    ) -> Result<Option<BTreeMap<String, ByteString>>, Error> {
        let mut wanted = data.clone();
        if let Some(ca) = &self.root_ca {
            wanted.insert("ca.crt".into(), ByteString(ca.clone()));
        }
        let namespace = account.metadata.namespace.clone().unwrap_or_default();
        wanted.insert("namespace".into(), ByteString(namespace.into_bytes()));
        if wanted.get("token").is_none_or(|t| t.0.is_empty()) {
            wanted.insert("token".into(), ByteString(self.token(account, name)?.into_bytes()));
        }
        Ok((wanted != *data).then_some(wanted))
    }
}

/// Starts the controller; does nothing without `--service-account-private-key-file`.
pub async fn start(context: Context) -> anyhow::Result<()> {
    let Some(signer) = Signer::load(&context)? else { return Ok(()) };
    let accounts = context.informer::<ServiceAccount>();
    let secrets = context.informer::<Secret>();
    secrets.add_index(BY_ACCOUNT, |s| account_key(s).into_iter().collect());
    let queue: Queue<String> = Queue::new();
    let q = queue.clone();
    accounts.on_change(move |c| q.add(key_of(&**c.object())));
    let q = queue.clone();
    secrets.on_change(move |c: &Change<Secret>| {
        if let Some(key) = account_key(c.object()) {
            q.add(key);
        }
    });
    let worker = Arc::new(Worker {
        client: context.client.clone(),
        signer,
        automatic: context.server_minor <= LAST_AUTOMATIC,
        accounts: accounts.clone(),
        secrets: secrets.clone(),
    });
    let (workers, stop) = (context.config.workers("serviceaccount-token"), context.stop.clone());
    tokio::spawn(async move {
        accounts.wait_synced().await;
        secrets.wait_synced().await;
        queue.run("serviceaccount-token", workers, stop, move |key| {
            let worker = worker.clone();
            async move { worker.sync(&key).await.map(|()| None) }
        });
    });
    Ok(())
}

/// `namespace/account` of a token secret.
fn account_key(secret: &Secret) -> Option<String> {
    if secret.type_.as_deref() != Some(TYPE) {
        return None;
    }
    let name = secret.metadata.annotations.as_ref()?.get(ACCOUNT_NAME)?;
    Some(format!("{}/{name}", secret.metadata.namespace.as_deref()?))
}

struct Worker {
    client: Client,
    signer: Signer,
    automatic: bool,
    accounts: Informer<ServiceAccount>,
    secrets: Informer<Secret>,
}

impl Worker {
    async fn sync(&self, key: &str) -> Result<(), Error> {
        let Some((namespace, name)) = key.split_once('/') else { return Ok(()) };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let tokens = self.secrets.by_index(BY_ACCOUNT, key);
        let account = self.accounts.get(key).filter(|a| a.metadata.deletion_timestamp.is_none());
        let Some(account) = account else {
            if tokens.is_empty() {
                return Ok(());
            }
            // The local copy may be behind an account that was just made.
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
            let live = accounts.get_opt(name).await?;
            for s in tokens.iter().filter(|s| !belongs(s, live.as_ref())) {
                delete(&secrets, s).await?;
            }
            return Ok(());
        };
        for secret in &tokens {
            let name = secret.metadata.name.as_deref().unwrap_or_default();
            if annotated_uid(secret).is_some_and(|u| Some(u) != account.metadata.uid.as_deref()) {
                delete(&secrets, secret).await?;
                continue;
            }
            let data = secret.data.clone().unwrap_or_default();
            let filled = self.signer.fill(&account, name, &data)?;
            if filled.is_some() || annotated_uid(secret).is_none() {
                let mut updated = (**secret).clone();
                updated.data = Some(filled.unwrap_or(data));
                let uid = account.metadata.uid.clone().unwrap_or_default();
                updated.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid);
                match secrets.replace(name, &PostParams::default(), &updated).await {
                    Ok(_) => {}
                    Err(e) if has_code(&e, 404) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        self.prune_references(namespace, &account).await?;
        if self.automatic {
            self.ensure_referenced(namespace, &account).await?;
        }
        Ok(())
    }

    /// Takes references to token secrets that are gone off the account.
    async fn prune_references(&self, namespace: &str, account: &ServiceAccount) -> Result<(), Error> {
        let listed = account.secrets.as_deref().unwrap_or_default();
        let prefix = format!("{}-token-", account.metadata.name.as_deref().unwrap_or_default());
        let gone = |r: &ObjectReference| {
            let name = r.name.as_deref().unwrap_or_default();
            name.starts_with(&prefix) && self.secrets.get(&format!("{namespace}/{name}")).is_none()
        };
        if !listed.iter().any(gone) {
            return Ok(());
        }
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let name = account.metadata.name.as_deref().unwrap_or_default();
        let Some(mut live) = api.get_opt(name).await? else { return Ok(()) };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let mut kept = Vec::new();
        for r in live.secrets.take().unwrap_or_default() {
            let present =
                !gone(&r) || secrets.get_opt(r.name.as_deref().unwrap_or_default()).await?.is_some();
            if present {
                kept.push(r);
            }
        }
        live.secrets = Some(kept);
        api.replace(name, &PostParams::default(), &live).await?;
        Ok(())
    }

    /// Makes a token secret where the account refers to none, and refers to it.
    async fn ensure_referenced(&self, namespace: &str, account: &ServiceAccount) -> Result<(), Error> {
        let key = key_of(account);
        let referenced = |a: &ServiceAccount| {
            a.secrets.iter().flatten().any(|r| {
                let name = r.name.as_deref().unwrap_or_default();
                self.secrets
                    .get(&format!("{namespace}/{name}"))
                    .is_some_and(|s| account_key(&s).as_deref() == Some(&key))
            })
        };
        if referenced(account) {
            return Ok(());
        }
        // The local copy may be behind: somebody's, or our own, earlier secret counts.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let name = account.metadata.name.as_deref().unwrap_or_default();
        let Some(live) = accounts.get_opt(name).await? else { return Ok(()) };
        if live.metadata.resource_version != account.metadata.resource_version {
            return Ok(());
        }
        let secret_name = format!("{name}-token-{}", suffix());
        let uid = live.metadata.uid.clone().unwrap_or_default();
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(secret_name.clone()),
                namespace: Some(namespace.into()),
                annotations: Some(
                    [(ACCOUNT_NAME.to_string(), name.to_string()), (ACCOUNT_UID.to_string(), uid)].into(),
                ),
                ..Default::default()
            },
            type_: Some(TYPE.into()),
            data: self.signer.fill(&live, &secret_name, &BTreeMap::new())?,
            ..Default::default()
        };
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let created = match secrets.create(&PostParams::default(), &secret).await {
            Ok(s) => s,
            Err(e) if is_terminating_namespace(&e) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let mut updated = live;
        updated
            .secrets
            .get_or_insert_default()
            .push(ObjectReference { name: Some(secret_name), ..Default::default() });
        if let Err(e) = accounts.replace(name, &PostParams::default(), &updated).await {
            // Nobody refers to it: it would only be in the way.
            delete(&secrets, &created).await?;
            if !has_code(&e, 404) {
                return Err(e.into());
            }
        }
        Ok(())
    }
}

/// Whether a token secret is an account's: one that names its uid is no other's of that name.
fn belongs(secret: &Secret, account: Option<&ServiceAccount>) -> bool {
    account.is_some_and(|a| annotated_uid(secret).is_none_or(|u| Some(u) == a.metadata.uid.as_deref()))
}

fn annotated_uid(secret: &Secret) -> Option<&str> {
    secret.metadata.annotations.as_ref()?.get(ACCOUNT_UID).map(String::as_str).filter(|u| !u.is_empty())
}

async fn delete(api: &Api<Secret>, secret: &Secret) -> Result<(), Error> {
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: secret.metadata.uid.clone(), resource_version: None }),
        ..Default::default()
    };
    match api.delete(secret.metadata.name.as_deref().unwrap_or_default(), &params).await {
        Ok(_) => Ok(()),
        Err(e) if has_code(&e, 404) || has_code(&e, 409) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Five letters as in generated names.
fn suffix() -> String {
    use rand::Rng;
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use base64::Engine;

    use super::*;

    fn signer() -> Signer {
        let (private, _) = pilothouse_pki::authority::service_account_key().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), private).unwrap();
        Signer { key: SigningKey::load(file.path()).unwrap(), root_ca: Some(b"CA".to_vec()) }
    }

    #[test]
    fn a_secret_goes_with_its_account() {
        let account: ServiceAccount =
            serde_json::from_value(json!({"metadata": {"name": "x", "uid": "u"}})).unwrap();
        let secret = |uid: Option<&str>| -> Secret {
            serde_json::from_value(
                json!({"metadata": {"annotations": {ACCOUNT_NAME: "x", ACCOUNT_UID: uid.unwrap_or("")}}}),
            )
            .unwrap()
        };
        assert!(belongs(&secret(None), Some(&account)));
        assert!(belongs(&secret(Some("u")), Some(&account)));
        assert!(!belongs(&secret(Some("old")), Some(&account)));
        assert!(!belongs(&secret(None), None));
    }

    #[test]
    fn fills_in_what_is_missing_and_keeps_the_rest() {
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some("x".into()),
                namespace: Some("ns".into()),
                uid: Some("u".into()),
                ..Default::default()
            },
            ..Default::default()
        };
        let data: BTreeMap<_, _> = [("mine".to_string(), ByteString(b"1".to_vec()))].into();
        let signer = signer();
        let filled = signer.fill(&account, "extra", &data).unwrap().unwrap();
        assert_eq!(filled.keys().collect::<Vec<_>>(), ["ca.crt", "mine", "namespace", "token"]);
        assert_eq!(filled["namespace"].0, b"ns");
        assert_eq!(signer.fill(&account, "extra", &filled).unwrap(), None);
        let token = String::from_utf8(filled["token"].0.clone()).unwrap();
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(token.split('.').nth(1).unwrap())
            .unwrap();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["sub"], "system:serviceaccount:ns:x");
        assert_eq!(claims["kubernetes.io/serviceaccount/secret.name"], "extra");
    }
}
