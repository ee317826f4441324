//! `list`.

use std::sync::Arc;

use pilothouse_apimachinery::field_selector::FieldSelector;
use pilothouse_apimachinery::selector::Selector;
use pilothouse_apimachinery::status::Status;
use pilothouse_store::Error;

use super::Call;
use super::version::{self, Wanted};
use crate::cache::entry::Entry;
use crate::encode::ListMeta;
use crate::options::ListOptions;
use crate::request::Response;
use crate::selection::Selection;
use crate::storage::store_failure;

/// Answers a list.
pub async fn list(call: &Call) -> Result<Response, Status> {
    let encoder = call.encoder()?;
    let options = ListOptions::read(&call.context, call.state.release)?;
    let selection = selection(call, &options)?;
    let (meta, entries) = read(call, &options, &selection).await?;
    encoder.list(&call.context, &meta, &entries)
}

/// The selectors of a request, checked against what the resource lets select.
pub fn selection(call: &Call, options: &ListOptions) -> Result<Selection, Status> {
    let labels = Selector::parse(&options.label_selector).map_err(Status::bad_request)?;
    let resource = &call.endpoint.resource;
    let mut fields = pilothouse_api::fields::parse(resource, &options.field_selector)?;
    let name = call.name();
    if !name.is_empty() {
        if fields.is_everything() {
            fields = FieldSelector::parse(&format!("metadata.name={name}")).map_err(Status::bad_request)?;
        } else if fields.requires_exact_match("metadata.name") != Some(name) {
            return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name"));
        }
    }
    Ok(Selection::new(resource.namespaced, &call.namespace, labels, fields))
}

/// The objects of a list, in the version of the request.
pub async fn read(
    call: &Call,
    options: &ListOptions,
    selection: &Selection,
) -> Result<(ListMeta, Vec<Arc<Entry>>), Status> {
    let (meta, entries) = read_stored(call, options, selection).await?;
    Ok((meta, call.endpoint.storage.show(entries).await?))
}

async fn read_stored(
    call: &Call,
    options: &ListOptions,
    selection: &Selection,
) -> Result<(ListMeta, Vec<Arc<Entry>>), Status> {
    let storage = &call.endpoint.storage;
    let limit = usize::try_from(options.limit).unwrap_or(0);
    let limit = match version::wanted(options)? {
        Wanted::MostRecent => {
            storage.catch_up().await?;
            limit
        }
        // The cache answers without pages, as kube-apiserver's does.
        Wanted::Any => 0,
        Wanted::NotOlderThan(revision) => {
            storage.reach(revision).await?;
            limit
        }
        Wanted::Exact(revision) => {
            return pages(call, selection, revision, "", limit).await.map_err(|e| match e {
                Error::Compacted { .. } => version::list_expired(),
                // The store says this, without the cache's patience.
                Error::Future { .. } => {
                    Status::failure(500, "", "etcdserver: mvcc: required revision is a future revision")
                }
                other => store_failure(other),
            });
        }
        Wanted::Page { revision, start } => {
            return pages(call, selection, revision, &start, limit).await.map_err(|e| match e {
                Error::Compacted { .. } => version::page_expired(&start),
                other => store_failure(other),
            });
        }
    };
    // Read before the objects: whatever is in the cache up to there is in the list.
    let applied = storage.cache().applied();
    let mut found = if storage.view().is_some() && selection.has_selectors() {
        // What selectors ask for may look different in another version.
        let mut all = storage.objects.list(selection.prefix());
        all.entries = selection.filter(storage.show(all.entries).await?);
        all
    } else {
        selection.list(&storage.objects)
    };
    let revision = applied.max(found.revision);
    let mut meta = ListMeta { resource_version: revision.to_string(), ..ListMeta::default() };
    if limit > 0 && found.entries.len() > limit {
        let rest = found.entries.len() - limit;
        found.entries.truncate(limit);
        if let Some(last) = found.entries.last() {
            let relative = last.key.strip_prefix(selection.prefix()).unwrap_or(&last.key);
            meta.continue_token =
                version::continue_token(i64::try_from(revision).unwrap_or(i64::MAX), relative);
        }
        meta.remaining = (!selection.has_selectors()).then_some(rest);
    }
    Ok((meta, found.entries))
}

/// A page of the objects as they were at a revision (0: now), read from the store.
async fn pages(
    call: &Call,
    selection: &Selection,
    revision: u64,
    start: &str,
    limit: usize,
) -> Result<(ListMeta, Vec<Arc<Entry>>), Error> {
    let storage = &call.endpoint.storage;
    let prefix = selection.prefix();
    let mut start = if start.is_empty() { String::new() } else { format!("{prefix}{start}") };
    let mut at = revision;
    let mut out: Vec<Arc<Entry>> = Vec::new();
    let mut meta = ListMeta::default();
    loop {
        let (entries, found) = storage.range(prefix, &start, limit, at).await?;
        if at == 0 {
            at = found.revision;
        }
        let (read, last) = (entries.len(), entries.last().cloned());
        for (i, e) in entries.into_iter().enumerate() {
            if selection.matches(&e) {
                out.push(e.clone());
            }
            let more = i + 1 < read || found.more;
            if limit > 0 && out.len() == limit && more {
                let relative = e.key.strip_prefix(prefix).unwrap_or(&e.key);
                meta.continue_token =
                    version::continue_token(i64::try_from(at).unwrap_or(i64::MAX), relative);
                meta.remaining = (!selection.has_selectors()).then(|| found.count.saturating_sub(i + 1));
                break;
            }
        }
        match last {
            Some(last) if found.more && meta.continue_token.is_empty() => start = format!("{}\0", last.key),
            _ => break,
        }
    }
    meta.resource_version = at.to_string();
    Ok((meta, out))
}
