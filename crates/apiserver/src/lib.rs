//! The API server.
//!
//! A request's way: `TLS → HTTP → RequestInfo → authentication → audit → impersonation → limits → authorization →
//! handler → decode → default → admission → validate → store → encode`. What a request is gets built once
//! ([`request`]) and is passed on.

pub mod request;
