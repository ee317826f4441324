//! What several controllers do alike: owner references, adoption, pods from a template, expectations.
