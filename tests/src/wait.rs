//! Waiting for what a cluster does in its own time.

use std::time::{Duration, Instant};

/// Calls `check` until it gives a value; panics with what it said last when it did not within `limit`. The limit is a
/// safety net: a check holds as soon as it can.
pub fn until<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return value,
            Err(why) if Instant::now() > end => panic!("{what}: not within {} s: {why}", limit.as_secs()),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
