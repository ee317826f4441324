//! Being written: crd.
