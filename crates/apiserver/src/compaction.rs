//! Forgetting the store's history: every few minutes, up to where it was an interval ago, by one server of all.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pilothouse_component_base::signals::Stop;
use pilothouse_store::{Error, Expect, Outcome, Store};

/// The key on which servers agree whose turn it is; kube-apiserver uses the same.
const KEY: &[u8] = b"compact_rev_key";

/// What a server remembers between two turns.
struct Turn {
    /// What [`KEY`] was at the last turn.
    expect: Expect,
    /// The store's revision at the last turn; 0 at first.
    revision: u64,
}

async fn turn(store: &dyn Store, last: &mut Turn) -> Result<(), Error> {
    let value = Bytes::from(last.revision.to_string());
    match store.put(Bytes::from_static(KEY), value, last.expect, None).await? {
        Outcome::Done { revision } => {
            let forget = std::mem::replace(&mut last.revision, revision);
            last.expect = Expect::Revision(revision);
            if forget > 0 {
                store.compact(forget).await?;
            }
        }
        // Another server has had this turn.
        Outcome::Conflict { current, revision } => {
            last.expect = current.map_or(Expect::Absent, |kv| Expect::Revision(kv.mod_revision));
            last.revision = revision;
        }
    }
    Ok(())
}

/// Compacts every `interval` until `stop`; never where the interval is zero.
pub async fn run(store: Arc<dyn Store>, interval: Duration, stop: Stop) {
    if interval.is_zero() {
        return;
    }
    let mut last = Turn { expect: Expect::Absent, revision: 0 };
    loop {
        tokio::select! {
            () = stop.wait() => return,
            () = tokio::time::sleep(interval) => {}
        }
        match turn(&*store, &mut last).await {
            Ok(()) | Err(Error::Compacted { .. }) => {}
            Err(e) => tracing::warn!("compacting the store: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::test_store::MemoryStore;
    use pilothouse_store::Range;

    #[tokio::test]
    async fn one_server_of_two_compacts_what_is_an_interval_old() {
        let store = MemoryStore::default();
        let mut a = Turn { expect: Expect::Absent, revision: 0 };
        let mut b = Turn { expect: Expect::Absent, revision: 0 };
        for i in 0..5 {
            store
                .put(Bytes::from(format!("/registry/x/{i}")), Bytes::new(), Expect::Any, None)
                .await
                .unwrap();
        }
        turn(&store, &mut a).await.unwrap();
        turn(&store, &mut b).await.unwrap();
        let after_first = a.revision;
        assert_eq!(after_first, b.revision);
        store.put(Bytes::from("/registry/x/5"), Bytes::new(), Expect::Any, None).await.unwrap();
        turn(&store, &mut b).await.unwrap();
        turn(&store, &mut a).await.unwrap();
        let at = |revision| Range { start: "/".into(), end: "0".into(), revision, ..Range::default() };
        assert!(matches!(store.range(at(after_first - 1)).await, Err(Error::Compacted { .. })));
        assert!(store.range(at(after_first)).await.is_ok());
    }
}
