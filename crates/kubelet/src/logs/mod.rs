//! Logs of containers: what a request asks for ([`options`]), the lines of a file ([`line`]), reading and following
//! one ([`reader`]).

pub mod line;
pub mod options;
pub mod reader;

pub use options::{LogError, Options, container_id};
