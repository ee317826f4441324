//! Being written: openapi.
