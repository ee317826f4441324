//! `get`.

use std::sync::Arc;

use http::StatusCode;
use pilothouse_apimachinery::status::Status;

use super::{Call, version};
use crate::cache::entry::Entry;
use crate::encode::Object;
use crate::request::Response;

/// Answers an object.
pub async fn get(call: &Call) -> Result<Response, Status> {
    let encoder = call.encoder()?;
    let entry = entry(call).await?;
    encoder.object(StatusCode::OK, &Object::Entry(entry))
}

/// The object of a request, as new as its `resourceVersion` asks for.
pub async fn entry(call: &Call) -> Result<Arc<Entry>, Status> {
    let storage = &call.endpoint.storage;
    match call.context.param("resourceVersion").unwrap_or("") {
        "" => {
            storage.catch_up().await?;
        }
        "0" => {}
        text => storage.reach(version::parse_version(text)?).await?,
    }
    storage.show_one(storage.objects.get(&call.key())).await?.ok_or_else(|| call.not_found())
}
