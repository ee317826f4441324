//! Being written: meta.
