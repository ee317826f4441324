//! Kinds as data: catalogue, schema engine, patches, apply, protobuf, tables, OpenAPI
