//! Eviction: where the node runs short of something, pods go, the one that takes too much of it first. A pod that
//! takes more of the disk than it may goes in any case.
//!
//! [`threshold`] says when there is too little, [`signal`] what there is, [`ranking`] who goes, [`limits`] who takes
//! more than allowed; [`manager`] does it.

pub mod limits;
pub mod manager;
pub mod ranking;
pub mod signal;
pub mod threshold;

pub use manager::{Manager, Pressure};
