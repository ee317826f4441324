//! CustomResourceDefinitions: the resources they define, and the schemas, defaults and columns of those.

pub mod custom;
pub mod family;
pub mod formats;
pub mod jsonpath;
pub mod lists;
pub mod naming;
pub mod objects;
pub mod prune;
pub mod rules;
pub mod schema;
mod shape;
pub mod structural;
pub mod validate;

pub use custom::{CustomVersion, Printer, ScalePaths, resources};
pub use family::Family;

#[cfg(test)]
mod tests;
