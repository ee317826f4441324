//! kube-proxy: services to nftables, one atomic batch
