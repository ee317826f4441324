//! Kinds as data: catalogue, schema engine, patches, apply, protobuf, tables, OpenAPI.
//!
//! Everything here is a plain function over `json::Value` and bytes: no I/O, no tokio, no HTTP.

pub mod apply;
pub mod catalogue;
pub mod convert;
pub mod crd;
pub mod decode;
pub mod defaults;
pub mod deprecation;
pub mod discovery;
pub mod fields;
pub mod go_print;
pub mod kinds;
pub mod meta;
pub mod normalize;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod schema;
pub mod scheme;
pub mod table;
