//! Being written: apply.
