//! `deletecollection`.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use pilothouse_apimachinery::status::Status;

use super::{Call, delete, list};
use crate::options::ListOptions;
use crate::request::{RequestBody, Response};

/// How many objects are deleted at the same time.
const AT_ONCE: usize = 8;

/// Deletes all objects that the selectors choose, and answers the list of them.
pub async fn delete_collection(call: &Call, body: RequestBody) -> Result<Response, Status> {
    let encoder = call.encoder()?;
    let body = body.collect().await?;
    let list_options = ListOptions::read(&call.context, call.state.release)?;
    let selection = list::selection(call, &list_options)?;
    let options = delete::read_options(call, &body)?;
    let (meta, entries) = list::read(call, &list_options, &selection).await?;
    let mut waiting = entries.iter();
    let mut running = FuturesUnordered::new();
    loop {
        running.extend(
            waiting.by_ref().take(AT_ONCE - running.len()).map(|e| delete::run(call, e.name(), &options)),
        );
        match running.next().await {
            None => break,
            Some(Ok(_)) => {}
            // Somebody else deleted it first: what we wanted.
            Some(Err(failure)) if failure.code == 404 => {}
            Some(Err(failure)) => return Err(failure),
        }
    }
    drop(running);
    encoder.list(&call.context, &meta, &entries)
}
