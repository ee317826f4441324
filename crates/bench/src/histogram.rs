//! A histogram of latencies: buckets of equal relative width, so that every percentile is right within 1 %.

use std::time::Duration;

/// Buckets per power of two.
const STEPS: usize = 128;
/// Powers of two above `STEPS`: up to 2^40 µs.
const POWERS: usize = 34;

/// Counts durations in microseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; STEPS * (POWERS + 1)], count: 0, max: 0 }
    }
}

impl Histogram {
    /// Counts one.
    pub fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let last = self.counts.len() - 1;
        self.counts[bucket(micros).min(last)] += 1;
        self.count += 1;
        self.max = self.max.max(micros);
    }

    /// Adds the other's counts.
    pub fn merge(&mut self, other: &Histogram) {
        for (a, b) in self.counts.iter_mut().zip(&other.counts) {
            *a += b;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value that `percent` % of the recorded ones don't exceed, in milliseconds; None without any.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((percent / 100.0 * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Some(upper(i).min(self.max) as f64 / 1e3);
            }
        }
        Some(self.max as f64 / 1e3)
    }

    /// The longest, in milliseconds.
    pub fn max(&self) -> Option<f64> {
        (self.count > 0).then_some(self.max as f64 / 1e3)
    }
}

/// Values below `STEPS` have a bucket each; above, each power of two is divided into `STEPS` of equal width.
fn bucket(micros: u64) -> usize {
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let power = (u64::BITS - 1 - micros.leading_zeros()) as usize - STEPS.ilog2() as usize;
    let step = (micros >> power) as usize - STEPS;
    (power + 1) * STEPS + step
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let (power, step) = (bucket / STEPS - 1, bucket % STEPS);
    ((STEPS + step + 1) as u64) << power.min(u64::BITS as usize - 9)
}

/// The middle one (the mean of the two middle ones) of `values`; None without any.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(sorted[n / 2]),
        _ => Some((sorted[n / 2 - 1] + sorted[n / 2]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_right_within_one_percent() {
        let mut h = Histogram::default();
        for micros in 1..=100_000 {
            h.record(Duration::from_micros(micros));
        }
        for (percent, exact) in [(1.0, 1.0), (50.0, 50.0), (99.0, 99.0), (99.9, 99.9), (100.0, 100.0)] {
            let found = h.percentile(percent).unwrap();
            assert!((found - exact).abs() / exact < 0.01, "p{percent}: {found}");
        }
        assert_eq!((h.count(), h.max()), (100_000, Some(100.0)));
    }

    #[test]
    fn small_values_are_exact() {
        let mut h = Histogram::default();
        for micros in [3, 3, 3, 90] {
            h.record(Duration::from_micros(micros));
        }
        assert_eq!(h.percentile(50.0), Some(0.003));
        assert_eq!(h.percentile(99.0), Some(0.09));
    }

    #[test]
    fn every_value_lies_in_its_bucket() {
        for micros in (0..5000).chain([1 << 20, (1 << 30) + 12345, (1 << 40) - 1]) {
            let b = bucket(micros);
            assert!(upper(b) >= micros, "{micros}");
            assert!(b == 0 || upper(b - 1) <= micros, "{micros}");
        }
    }

    #[test]
    fn empty_has_none() {
        assert_eq!(Histogram::default().percentile(50.0), None);
        assert_eq!(Histogram::default().max(), None);
    }

    #[test]
    fn very_long_ones_are_counted_in_the_last_bucket() {
        let mut h = Histogram::default();
        h.record(Duration::MAX);
        assert_eq!(h.count(), 1);
        assert!(h.percentile(50.0).unwrap() > 1e6);
    }

    #[test]
    fn merge_adds() {
        let (mut a, mut b) = (Histogram::default(), Histogram::default());
        a.record(Duration::from_millis(1));
        b.record(Duration::from_millis(100));
        a.merge(&b);
        assert_eq!((a.count(), a.max()), (2, Some(100.0)));
        assert!(a.percentile(50.0).unwrap() < 1.01);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
