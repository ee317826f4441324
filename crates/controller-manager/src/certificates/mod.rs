//! Certificate signing requests and bootstrap tokens.
