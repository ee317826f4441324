//! What every part of Kubernetes shares and nothing else: quantities, selectors, names, field errors, `Status`.
//! No I/O and no tokio here; everything is a plain function or a plain type.

pub mod field;
pub mod field_selector;
pub mod go;
pub mod intstr;
pub mod json;
pub mod names;
pub mod quantity;
pub mod rand;
pub mod selector;
pub mod status;
pub mod time;
pub mod version;
