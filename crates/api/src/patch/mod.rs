//! Being written: patch.
