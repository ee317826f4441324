//! What every part of Kubernetes shares and nothing else: quantities, selectors, names, field errors, `Status`.
//! No I/O and no tokio here; everything is a plain function or a plain type.

pub mod field;
pub mod status;
pub mod version;
