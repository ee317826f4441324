//! The certificate tool in cfssl's place, also used in-process
