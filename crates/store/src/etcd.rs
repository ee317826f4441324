//! etcd, any number of endpoints.
