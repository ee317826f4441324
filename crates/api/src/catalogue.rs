//! Being written: catalogue.
