//! Being written: fields.
