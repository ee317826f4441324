//! Controllers that keep a number of pods: ReplicaSet, ReplicationController, Deployment, StatefulSet, DaemonSet.

pub mod daemonset;
pub mod deployment;
pub mod history;
pub mod replicas;
pub mod statefulset;
