//! The embedded store, for one machine.
