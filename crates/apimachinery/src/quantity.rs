//! Placeholder while being written: quantity.
