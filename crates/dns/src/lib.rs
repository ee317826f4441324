//! Cluster DNS: services and pods to DNS answers
