//! The time of day. In tests it goes with tokio's clock, which tests can pause.

use jiff::Timestamp;

/// Now.
#[cfg(not(test))]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Now: a fixed moment plus the time that tokio's clock has run.
#[cfg(test)]
pub fn now() -> Timestamp {
    use tokio::time::Instant;
    static START: std::sync::LazyLock<(Timestamp, Instant)> =
        std::sync::LazyLock::new(|| (Timestamp::from_second(1_600_000_000).unwrap(), Instant::now()));
    START.0 + Instant::now().duration_since(START.1)
}

/// Now, in nanoseconds since 1970.
pub fn nanos() -> i64 {
    i64::try_from(now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// The moment of tokio's clock that is so many nanoseconds since 1970.
pub fn instant(nanos_since_1970: i64) -> tokio::time::Instant {
    let ago = u64::try_from(nanos() - nanos_since_1970).unwrap_or(0);
    let now = tokio::time::Instant::now();
    now.checked_sub(std::time::Duration::from_nanos(ago)).unwrap_or(now)
}
