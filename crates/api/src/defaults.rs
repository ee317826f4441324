//! Being written: defaults.
