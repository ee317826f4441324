//! Being written: scheme.
