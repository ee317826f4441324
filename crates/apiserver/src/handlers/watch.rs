//! `watch`.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use pilothouse_apimachinery::status::Status;

use super::watcher::{EventEncoder, Watcher, Wish};
use super::{Call, list, version, websocket};
use crate::encode::{Encoder, WatchEncoder};
use crate::options::ListOptions;
use crate::request::Response;
use crate::respond;

/// Answers a watch.
pub async fn watch(call: &Call) -> Result<Response, Status> {
    let encoder = Encoder::for_watch(&call.context, &call.endpoint)?;
    let options = ListOptions::read(&call.context, call.state.release)?;
    let selection = list::selection(call, &options)?;
    let content_type = encoder.watch_content_type();
    let encoder: Arc<dyn EventEncoder> = Arc::new(WatchEncoder::new(encoder));
    let wish = Wish {
        selection,
        bookmarks: options.bookmarks,
        mark_initial_end: options.send_initial_events == Some(true) && options.bookmarks,
        timeout: timeout(call, &options),
    };
    let watcher = begin(call, &options, encoder.clone(), wish).await;
    let first = match &watcher {
        Err(failure) if failure.code != 410 => return Err(failure.clone()),
        // History that is gone is told as an event, in a watch that began well.
        Err(failure) => Some(encoder.error(failure)),
        Ok(_) => None,
    };
    let live = futures::stream::unfold(watcher.ok(), |watcher| async {
        let mut watcher = watcher?;
        watcher.next().await.map(|piece| (piece, Some(watcher)))
    });
    let drain = call.state.drain.clone();
    let pieces = futures::stream::iter(first).chain(live).take_until(async move { drain.wait().await });
    if websocket::is_requested(&call.context) {
        return websocket::answer(&call.context, pieces);
    }
    Ok(respond::stream(content_type, pieces.map(Ok::<_, std::io::Error>)))
}

/// How long the watch lasts: as long as the client says, else a random time, so that not all come back at once.
fn timeout(call: &Call, options: &ListOptions) -> Duration {
    let least = call.state.config.min_request_timeout;
    match options.timeout_seconds {
        // One that is negative has passed when the watch begins.
        Some(s) if s != 0 => Duration::from_secs(u64::try_from(s).unwrap_or(0)),
        _ => least.mul_f64(1.0 + rand::random::<f64>()),
    }
}

async fn begin(
    call: &Call,
    options: &ListOptions,
    encoder: Arc<dyn EventEncoder>,
    wish: Wish,
) -> Result<Watcher, Status> {
    let storage = &call.endpoint.storage;
    let (cache, objects, view) = (storage.cache(), storage.objects.clone(), storage.view().cloned());
    let revision = match options.resource_version.as_str() {
        "" => None,
        text => Some(version::parse_version(text)?),
    };
    match (options.send_initial_events, revision) {
        (Some(true), Some(n)) if n > 0 => storage.reach(n).await?,
        (_, None) => {
            storage.catch_up().await?;
        }
        _ => {}
    }
    match (options.send_initial_events, revision) {
        (Some(false), None | Some(0)) => {
            let now = cache.applied();
            Watcher::after(cache, objects, view, encoder, wish, now)
        }
        (Some(true), _) | (None, None | Some(0)) => {
            Ok(Watcher::from_state(cache, objects, view, encoder, wish))
        }
        (_, Some(n)) => Watcher::after(cache, objects, view, encoder, wish, n),
    }
}
