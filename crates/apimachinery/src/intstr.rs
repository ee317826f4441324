//! Placeholder while being written: intstr.
