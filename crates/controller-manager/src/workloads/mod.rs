//! Controllers that keep a number of pods: ReplicaSet, ReplicationController, Deployment, StatefulSet, DaemonSet.

pub mod history;
pub mod replicas;
