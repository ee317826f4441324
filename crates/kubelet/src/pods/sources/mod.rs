//! Where pods come from: the API server and files.

pub mod defaults;
pub mod file;
