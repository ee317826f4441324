//! kube-scheduler: queue, cache, framework, plug-ins
