//! Being written: schema.
