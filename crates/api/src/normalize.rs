//! Being written: normalize.
