//! Being written: decode.
