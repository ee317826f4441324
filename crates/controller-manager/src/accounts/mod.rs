//! Service accounts, their tokens, and cluster role aggregation.
