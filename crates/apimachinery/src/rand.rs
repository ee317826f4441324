//! Placeholder while being written: rand.
