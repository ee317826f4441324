//! kubelet: pod workers, CRI, volumes, probes, status, server
