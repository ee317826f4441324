//! Being written: discovery.
