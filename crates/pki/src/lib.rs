//! Certificates: a certificate authority that makes and signs them, and the files they live in.
//!
//! What is in a certificate follows <https://kubernetes.io/docs/setup/best-practices/certificates/>: the common name
//! is the user, each organization a group.

pub mod authority;
pub mod cfssl;
pub mod files;
mod names;
pub mod tls;
pub mod tokens;

pub use authority::{Authority, Error, Issued, Subject, Usage};
