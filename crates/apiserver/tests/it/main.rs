//! The API server over real sockets. One program, so that it is linked once.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../../store/tests/common/etcd.rs"]
#[allow(dead_code, reason = "the store's own tests use all of it")]
mod etcd;

mod access;
mod bad_input;
mod edge_cases;
mod encryption;
mod extension;
mod server;
mod side_by_side;
mod switches;
mod webhooks;
