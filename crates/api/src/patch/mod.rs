//! The patches of the API: JSON patch, merge patch, strategic merge patch. (Apply patches are in [`crate::apply`].)

pub mod json;
pub mod merge;
pub mod strategic;

#[cfg(test)]
mod tests;
