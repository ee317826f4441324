//! Pods: where they come from ([`sources`]), whether they may run here ([`admission`]), the task of each
//! ([`Eviction`] and the private modules `worker`, `sync`, `start`, `kill`), what must be done ([`actions`]), what is
//! said of them ([`status`], [`conditions`], [`status_manager`]), and what tells their tasks that something happened
//! (`lifecycle`).

pub mod actions;
pub mod admission;
pub mod conditions;
mod housekeeping;
mod kill;
mod lifecycle;
mod mirror;
pub mod patch;
pub mod preemption;
pub mod registry;
pub mod sources;
mod start;
pub mod status;
pub mod status_manager;
mod sync;
mod worker;

pub(crate) use worker::Control;
pub use worker::Eviction;
