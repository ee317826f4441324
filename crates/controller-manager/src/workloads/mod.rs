//! ReplicaSets, Deployments, StatefulSets, DaemonSets.
