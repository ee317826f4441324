//! The store of a cluster: etcd, through its v3 API.
//!
//! One endpoint at a time is used; when it fails, the next one is. Every call ends in time, also when a member hangs.

mod convert;
mod endpoints;
mod lease;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, CompactionOptions, Compare, CompareOp, GetOptions, Identity, PutOptions, TlsOptions, Txn,
    TxnOp,
};

use self::convert::{i64_of, revision_of};
use self::endpoints::{Call, Endpoints};
use self::lease::Leases;
use crate::{Error, Expect, KeyValue, Outcome, Range, RangeResult, Store, WatchStream};

/// How long one endpoint may take for a read of many keys.
const RANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one endpoint may take for anything else.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an endpoint may take to say that it is well.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

/// Where etcd is and how to prove who we are.
#[derive(Debug, Clone, Default)]
pub struct EtcdConfig {
    /// URLs such as `https://20.0.0.100:2379`.
    pub endpoints: Vec<String>,
    /// The authority that signed etcd's certificates, a PEM file; the system's where there is none.
    pub ca_file: Option<PathBuf>,
    /// Our client certificate, a PEM file.
    pub cert_file: Option<PathBuf>,
    /// Its key, a PEM file.
    pub key_file: Option<PathBuf>,
    /// Under which all our keys are, such as `/registry`. Keys given to the [`Store`] contain it already; this only
    /// says which key is read for health and revision.
    pub prefix: String,
}

/// See the module. Made by [`EtcdStore::connect`].
pub struct EtcdStore {
    endpoints: Endpoints,
    leases: Leases,
    /// A key that is never there; reading it asks etcd for nothing but its revision.
    probe: Vec<u8>,
}

impl EtcdStore {
    /// Prepares connections; they are made when they are needed, so etcd need not run yet. Fails with
    /// [`Error::Broken`] on a bad URL or file. Needs a tokio runtime.
    pub async fn connect(config: EtcdConfig) -> Result<Arc<Self>, Error> {
        let endpoints = Endpoints::new(&config.endpoints, &tls_options(&config)?).await?;
        let probe = format!("{}/health", config.prefix.trim_end_matches('/')).into_bytes();
        Ok(Arc::new(EtcdStore { endpoints, leases: Leases::default(), probe }))
    }

    /// Waits until some member answers, also one that has no leader. Fails with [`Error::Unavailable`] after `limit`: its
    /// text names each endpoint and what is wrong there.
    pub async fn reached(&self, limit: Duration) -> Result<(), Error> {
        self.endpoints.reached(limit).await
    }

    /// `op` is made for each member that is asked: mostly one.
    async fn transact(
        &self,
        key: &Bytes,
        expect: Expect,
        op: impl Fn() -> TxnOp + Sync,
    ) -> Result<Outcome, Error> {
        let response = self
            .endpoints
            .call(Call::Write(CALL_TIMEOUT), |client| {
                let at = |revision| vec![Compare::mod_revision(key.to_vec(), CompareOp::Equal, revision)];
                let compare = match expect {
                    Expect::Any => Vec::new(),
                    Expect::Absent => at(0),
                    Expect::Revision(r) => at(i64_of(r)),
                };
                let read = TxnOp::get(key.to_vec(), None);
                let txn = Txn::new().when(compare).and_then([op()]).or_else([read]);
                let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
                async move { kv.txn(txn).await }
            })
            .await?;
        convert::outcome(response)
    }

    /// The oldest revision that can be read. etcd tells it only to a watch that begins before it.
    async fn oldest(&self) -> u64 {
        watch::oldest(&self.endpoints, &self.probe).await.unwrap_or(0)
    }

    /// Adds what etcd does not say to errors about revisions.
    async fn explain(&self, error: Error) -> Error {
        match error {
            Error::Compacted { .. } => Error::Compacted { oldest: self.oldest().await },
            Error::Future { .. } => match self.revision().await {
                Ok(newest) => Error::Future { newest },
                Err(e) => e,
            },
            e => e,
        }
    }

    async fn read(&self, key: Vec<u8>, options: GetOptions, timeout: Duration) -> Result<RangeResult, Error> {
        let response = self
            .endpoints
            .call(Call::Read(timeout), |client| {
                let (key, options) = (key.clone(), options.clone());
                async move {
                    client.kv_client().max_decoding_message_size(usize::MAX).get(key, Some(options)).await
                }
            })
            .await?;
        let response = response.0;
        let revision = revision_of(response.header.as_ref())?;
        let kvs: Vec<KeyValue> = response.kvs.into_iter().map(convert::key_value).collect();
        Ok(RangeResult {
            kvs,
            more: response.more,
            count: usize::try_from(response.count).unwrap_or(0),
            revision,
        })
    }
}

/// How endpoints with `https` are spoken to.
fn tls_options(config: &EtcdConfig) -> Result<TlsOptions, Error> {
    let read = |path: &PathBuf, label: &str| {
        let fault = |why: String| Error::Broken(format!("etcd: {}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))?;
        let found = text.lines().any(|l| l.starts_with("-----BEGIN") && l.contains(label));
        if found { Ok(text) } else { Err(fault(format!("there is no {} in it", label.to_lowercase()))) }
    };
    const CERTIFICATE: &str = "CERTIFICATE";
    let (ca, cert, key) = (&config.ca_file, &config.cert_file, &config.key_file);
    let mut tls = TlsOptions::new();
    if let Some(ca) = ca {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca, CERTIFICATE)?));
    }
    match (cert, key) {
        (Some(cert), Some(key)) => {
            Ok(tls.identity(Identity::from_pem(read(cert, CERTIFICATE)?, read(key, "PRIVATE KEY")?)))
        }
        (None, None) => Ok(tls),
        _ => Err(Error::Broken("etcd: a client certificate and its key go together".into())),
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &[u8]) -> Result<(Option<KeyValue>, u64), Error> {
        let mut result = self.read(key.to_vec(), GetOptions::new(), CALL_TIMEOUT).await?;
        Ok((result.kvs.pop(), result.revision))
    }

    async fn range(&self, range: Range) -> Result<RangeResult, Error> {
        let mut options =
            GetOptions::new().with_revision(i64_of(range.revision)).with_limit(range.limit as i64);
        if !range.end.is_empty() {
            options = options.with_range(range.end.to_vec());
        }
        if range.count_only {
            options = options.with_count_only();
        }
        // To etcd an empty key is no key; the first possible one is a zero byte.
        let start = if range.start.is_empty() { vec![0] } else { range.start.to_vec() };
        match self.read(start, options, RANGE_TIMEOUT).await {
            Ok(result) => Ok(result),
            Err(e) => Err(self.explain(e).await),
        }
    }

    async fn put(
        &self,
        key: Bytes,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Outcome, Error> {
        let mut retried = false;
        loop {
            let mut options = PutOptions::new();
            if let Some(ttl) = ttl {
                options = options.with_lease(self.leases.get(&self.endpoints, ttl).await?);
            }
            let op = || TxnOp::put(key.to_vec(), value.to_vec(), Some(options.clone()));
            match self.transact(&key, expect, op).await {
                // The lease has ended before its time; etcd lost it, or our clock stood still.
                Err(e) if ttl.is_some() && !retried && convert::is_lease_not_found(&e) => {
                    self.leases.forget().await;
                    retried = true;
                }
                result => return result,
            }
        }
    }

    async fn delete(&self, key: Bytes, expect: Expect) -> Result<Outcome, Error> {
        self.transact(&key, expect, || TxnOp::delete(key.to_vec(), None)).await
    }

    async fn revision(&self) -> Result<u64, Error> {
        let options = GetOptions::new().with_count_only();
        Ok(self.read(self.probe.clone(), options, CALL_TIMEOUT).await?.revision)
    }

    async fn watch(&self, prefix: Bytes, from: u64) -> Result<WatchStream, Error> {
        watch::start(&self.endpoints, prefix, from).await
    }

    async fn compact(&self, revision: u64) -> Result<(), Error> {
        let result = self
            .endpoints
            .call(Call::Write(RANGE_TIMEOUT), |client| async move {
                client.kv_client().compact(i64_of(revision), Some(CompactionOptions::new())).await
            })
            .await;
        match result {
            Ok(_) => Ok(()),
            Err(e) => Err(self.explain(e).await),
        }
    }

    async fn health(&self) -> Vec<(String, Result<(), Error>)> {
        self.endpoints.health(&self.probe, HEALTH_TIMEOUT).await
    }
}
