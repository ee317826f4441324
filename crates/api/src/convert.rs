//! Being written: convert.
