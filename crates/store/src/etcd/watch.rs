//! Watches.

use bytes::Bytes;
use etcd_client::proto::PbWatchResponse;
use etcd_client::{WatchOptions, WatchRequestSender, WatchResponseStream};
use futures::stream;

use super::CALL_TIMEOUT;
use super::convert::{self, i64_of};
use super::endpoints::{Call, Endpoints};
use crate::{Error, Event, WatchStream, prefix_end};

struct Feed {
    responses: WatchResponseStream,
    /// The watch ends when this is dropped.
    _requests: WatchRequestSender,
    assembly: Assembly,
}

/// Starts a watch on the member in use. etcd has taken note of it when this returns.
pub(super) async fn start(endpoints: &Endpoints, prefix: Bytes, from: u64) -> Result<WatchStream, Error> {
    let options = WatchOptions::new().with_start_revision(i64_of(from)).with_fragment();
    let (key, options) = match prefix.is_empty() {
        true => (vec![0], options.with_range(vec![0])),
        false => (prefix.to_vec(), options.with_range(prefix_end(&prefix).to_vec())),
    };
    let watch = endpoints
        .call(Call::Read(CALL_TIMEOUT), |client| {
            let (key, options) = (key.clone(), options.clone());
            async move {
                client.watch_client().max_decoding_message_size(usize::MAX).watch(key, Some(options)).await
            }
        })
        .await?;
    let (requests, responses) = watch.split();
    let feed = Feed { responses, _requests: requests, assembly: Assembly::default() };
    Ok(Box::pin(stream::unfold(Some(feed), |feed| async {
        let mut feed = feed?;
        match feed.batch().await {
            Ok(events) => Some((Ok(events), Some(feed))),
            Err(e) => Some((Err(e), None)),
        }
    })))
}

/// The compacted revision, from the answer to a watch that begins before it.
pub(super) async fn oldest(endpoints: &Endpoints, key: &[u8]) -> Result<u64, Error> {
    let options = WatchOptions::new().with_start_revision(1);
    endpoints
        .call(Call::Read(CALL_TIMEOUT), |client| {
            let options = options.clone();
            async move {
                let mut watch = client.watch_client().watch(key, Some(options)).await?;
                while let Some(response) = watch.message().await? {
                    if response.canceled() {
                        return Ok(response.compact_revision());
                    }
                }
                Ok(0)
            }
        })
        .await
        .map(|r| u64::try_from(r).unwrap_or(0))
}

impl Feed {
    async fn batch(&mut self) -> Result<Vec<Event>, Error> {
        loop {
            let response = match self.responses.message().await {
                Ok(Some(response)) => response,
                Ok(None) => return Err(Error::Unavailable("etcd ended the watch".into())),
                Err(e) => return Err(convert::error(&e)),
            };
            let events = self.assembly.step(response.0)?;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}

/// Puts the fragments of large responses together again: etcd cuts between any two events, also within a revision.
#[derive(Default)]
struct Assembly {
    held: Vec<Event>,
}

impl Assembly {
    /// Takes a response in; the events that are complete with it.
    fn step(&mut self, response: PbWatchResponse) -> Result<Vec<Event>, Error> {
        if response.canceled {
            return Err(match u64::try_from(response.compact_revision) {
                Ok(oldest) if oldest > 0 => Error::Compacted { oldest },
                _ => Error::Unavailable(format!("etcd ended the watch: {}", response.cancel_reason)),
            });
        }
        self.held.extend(response.events.into_iter().filter_map(convert::event));
        Ok(if response.fragment { Vec::new() } else { std::mem::take(&mut self.held) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etcd_client::proto::{PbEvent, PbKeyValue};

    fn response(revisions: &[i64], fragment: bool) -> PbWatchResponse {
        let events = revisions
            .iter()
            .map(|r| PbEvent {
                kv: Some(PbKeyValue { mod_revision: *r, ..Default::default() }),
                ..Default::default()
            })
            .collect();
        PbWatchResponse { events, fragment, ..Default::default() }
    }

    #[test]
    fn fragments_are_held_until_they_are_complete() {
        let mut assembly = Assembly::default();
        assert!(assembly.step(response(&[5, 6], true)).unwrap().is_empty());
        assert!(assembly.step(response(&[6], true)).unwrap().is_empty());
        let events = assembly.step(response(&[6, 7], false)).unwrap();
        assert_eq!(events.iter().map(Event::revision).collect::<Vec<_>>(), [5, 6, 6, 6, 7]);
        assert_eq!(assembly.step(response(&[8], false)).unwrap().len(), 1);
    }

    #[test]
    fn the_end_of_a_watch_says_why() {
        let mut assembly = Assembly::default();
        let compacted = PbWatchResponse { canceled: true, compact_revision: 9, ..Default::default() };
        assert!(matches!(assembly.step(compacted), Err(Error::Compacted { oldest: 9 })));
        let lost =
            PbWatchResponse { canceled: true, cancel_reason: "no leader".into(), ..Default::default() };
        assert!(matches!(assembly.step(lost), Err(Error::Unavailable(t)) if t.contains("no leader")));
    }
}
