//! Being written: protobuf.
