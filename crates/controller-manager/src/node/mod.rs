//! Nodes: life cycle, pod address ranges.
