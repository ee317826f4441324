//! Persistent volumes and claims.
