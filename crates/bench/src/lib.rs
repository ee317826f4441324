//! Load generator; works against any API server URL
