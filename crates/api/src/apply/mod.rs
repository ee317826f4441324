//! Server-side apply: field sets, typed comparison and merging, and the upkeep of `metadata.managedFields`.

pub mod managed;
pub mod manager;
pub mod path;
pub mod set;
pub mod show;
pub mod typed;
pub mod types;

pub use manager::{Convert, FieldManager};
pub use types::Type;

#[cfg(test)]
mod tests;
