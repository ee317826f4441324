//! Between etcd's types and ours.

use std::error::Error as _;
use std::io::ErrorKind;

use bytes::Bytes;
use etcd_client::TxnResponse;
use etcd_client::proto::{PbEvent, PbKeyValue, PbResponseHeader, PbTxnOpResponse};

use crate::{Error, Event, KeyValue, Outcome};

/// etcd counts revisions in signed numbers.
pub(super) fn i64_of(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn u64_of(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

/// The store's revision when an answer was made.
pub(super) fn revision_of(header: Option<&PbResponseHeader>) -> Result<u64, Error> {
    header.map(|h| u64_of(h.revision)).ok_or_else(|| odd("an answer without header"))
}

fn odd(what: &str) -> Error {
    Error::Unavailable(format!("etcd sent {what}"))
}

pub(super) fn key_value(kv: PbKeyValue) -> KeyValue {
    KeyValue {
        key: Bytes::from(kv.key),
        value: Bytes::from(kv.value),
        create_revision: u64_of(kv.create_revision),
        mod_revision: u64_of(kv.mod_revision),
    }
}

/// What a transaction of one write, or else one read, did.
pub(super) fn outcome(response: TxnResponse) -> Result<Outcome, Error> {
    let response = response.0;
    let revision = revision_of(response.header.as_ref())?;
    let op = response.responses.into_iter().next().and_then(|r| r.response);
    match op.ok_or_else(|| odd("a transaction without result"))? {
        PbTxnOpResponse::ResponsePut(_) => Ok(Outcome::Done { revision }),
        PbTxnOpResponse::ResponseDeleteRange(delete) if delete.deleted > 0 => Ok(Outcome::Done { revision }),
        PbTxnOpResponse::ResponseDeleteRange(_) => Ok(Outcome::Conflict { current: None, revision }),
        PbTxnOpResponse::ResponseRange(range) => {
            Ok(Outcome::Conflict { current: range.kvs.into_iter().next().map(key_value), revision })
        }
        PbTxnOpResponse::ResponseTxn(_) => Err(odd("a transaction in a transaction")),
    }
}

/// An event; `None` for one without a key, which etcd does not send.
pub(super) fn event(event: PbEvent) -> Option<Event> {
    let kv = event.kv?;
    const DELETE: i32 = etcd_client::EventType::Delete as i32;
    Some(match event.r#type {
        DELETE => Event::Delete { key: Bytes::from(kv.key), revision: u64_of(kv.mod_revision) },
        _ => Event::Put(key_value(kv)),
    })
}

/// An error of etcd's, by its code and text (etcd's `rpctypes`).
pub(super) fn error(e: &etcd_client::Error) -> Error {
    let etcd_client::Error::GRpcStatus(status) = e else { return Error::Unavailable(e.to_string()) };
    let message = status.message();
    if message.contains("revision has been compacted") {
        Error::Compacted { oldest: 0 }
    } else if message.contains("is a future revision") {
        Error::Future { newest: 0 }
    } else if message.contains("request is too large") || message.contains("larger than max") {
        Error::TooLarge
    } else if message.contains("database space exceeded") {
        Error::NoSpace(message.to_string())
    } else {
        Error::Unavailable(match status.source().and_then(root) {
            Some(cause) if !message.contains(&cause) => format!("{message}: {cause}"),
            _ => message.to_string(),
        })
    }
}

/// What all began with; the layers above say little.
fn root(mut e: &(dyn std::error::Error + 'static)) -> Option<String> {
    while let Some(source) = e.source() {
        e = source;
    }
    Some(e.to_string())
}

/// Whether the error is what a member said: one of the connection's own has a cause.
pub(super) fn is_answer(e: &etcd_client::Error) -> bool {
    matches!(e, etcd_client::Error::GRpcStatus(status) if status.source().is_none())
}

/// Whether the request cannot have reached the member, so that it is safe to send it to another.
pub(super) fn not_sent(e: &etcd_client::Error) -> bool {
    let mut source = match e {
        etcd_client::Error::GRpcStatus(status) => status.source(),
        e => e.source(),
    };
    while let Some(e) = source {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
            );
        }
        source = e.source();
    }
    false
}

/// Whether the fault is the member's or the way's to it, so that another member may do better.
pub(super) fn is_members_fault(e: &Error) -> bool {
    matches!(e, Error::Unavailable(message) if !message.contains("requested lease not found"))
}

/// Whether a put failed because its lease is no more.
pub(super) fn is_lease_not_found(e: &Error) -> bool {
    matches!(e, Error::Unavailable(message) if message.contains("requested lease not found"))
}
