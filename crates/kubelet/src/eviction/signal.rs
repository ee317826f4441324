//! What the node can run short of, and how much of it there is.

use std::collections::BTreeMap;

use crate::stats::Sample;

/// What the node can run short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// `memory.available`
    Memory,
    /// `nodefs.available`
    NodeFs,
    /// `nodefs.inodesFree`
    NodeFsInodes,
    /// `imagefs.available`
    ImageFs,
    /// `imagefs.inodesFree`
    ImageFsInodes,
    /// `pid.available`
    Pids,
}

/// The node's condition that a shortage makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// `MemoryPressure`
    Memory,
    /// `DiskPressure`
    Disk,
    /// `PIDPressure`
    Pids,
}

impl Condition {
    /// As `status.conditions[].type` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Condition::Memory => "MemoryPressure",
            Condition::Disk => "DiskPressure",
            Condition::Pids => "PIDPressure",
        }
    }
}

impl Signal {
    /// By its name in the configuration.
    pub fn parse(name: &str) -> Option<Signal> {
        Some(match name {
            "memory.available" => Signal::Memory,
            "nodefs.available" => Signal::NodeFs,
            "nodefs.inodesFree" => Signal::NodeFsInodes,
            "imagefs.available" => Signal::ImageFs,
            "imagefs.inodesFree" => Signal::ImageFsInodes,
            "pid.available" => Signal::Pids,
            _ => return None,
        })
    }

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Memory => "memory.available",
            Signal::NodeFs => "nodefs.available",
            Signal::NodeFsInodes => "nodefs.inodesFree",
            Signal::ImageFs => "imagefs.available",
            Signal::ImageFsInodes => "imagefs.inodesFree",
            Signal::Pids => "pid.available",
        }
    }

    /// The resource that messages name.
    pub fn resource(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::NodeFs | Signal::ImageFs => "ephemeral-storage",
            Signal::NodeFsInodes | Signal::ImageFsInodes => "inodes",
            Signal::Pids => "pids",
        }
    }

    /// The node's condition.
    pub fn condition(self) -> Condition {
        match self {
            Signal::Memory => Condition::Memory,
            Signal::Pids => Condition::Pids,
            _ => Condition::Disk,
        }
    }
}

/// How much there is, of how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// What can still be had.
    pub available: u64,
    /// All.
    pub capacity: u64,
}

/// How much of each there is.
pub type Observations = BTreeMap<Signal, Observation>;

/// Reads a sample. What has no size (a file system without inodes) is left out.
pub fn observe(s: &Sample) -> Observations {
    let mut all = Observations::new();
    let mut put = |signal, available: u64, capacity: u64| {
        if capacity > 0 {
            all.insert(signal, Observation { available, capacity });
        }
    };
    let capacity = s.node.usage.memory.limit.map_or(s.machine.memory, |l| l.min(s.machine.memory));
    put(Signal::Memory, capacity.saturating_sub(s.node.usage.memory.working_set), capacity);
    put(Signal::NodeFs, s.node_fs.available, s.node_fs.capacity);
    put(Signal::NodeFsInodes, s.node_fs.inodes_free, s.node_fs.inodes);
    put(Signal::ImageFs, s.image_fs.available, s.image_fs.capacity);
    put(Signal::ImageFsInodes, s.image_fs.inodes_free, s.image_fs.inodes);
    put(Signal::Pids, s.processes.0.saturating_sub(s.processes.1), s.processes.0);
    all
}
