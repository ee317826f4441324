//! Placeholder while being written: go.
