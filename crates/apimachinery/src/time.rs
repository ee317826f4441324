//! Times as the API writes them: RFC 3339 in UTC with whole seconds (`Time`) or microseconds (`MicroTime`), and the
//! short durations of `kubectl get`.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// A point in time: seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds of the second.
    pub nanos: u32,
}

const DAY: i64 = 86_400;
/// `0001-01-01T00:00:00Z`, which Go takes for no time at all.
const ZERO: i64 = -62_135_596_800;

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let mp = (month + 9) % 12;
    let doy = (153 * mp + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z - era * 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
    let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

fn digits(b: &[u8]) -> Option<i64> {
    b.iter().try_fold(0i64, |n, c| c.is_ascii_digit().then(|| n * 10 + i64::from(c - b'0')))
}

impl Timestamp {
    /// A point in time from seconds since 1970.
    pub fn from_seconds(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    /// Now, by the system's clock.
    pub fn now() -> Timestamp {
        let d = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), nanos: d.subsec_nanos() }
    }

    /// Whether it is Go's zero time, which the API writes as `null`.
    pub fn is_zero(self) -> bool {
        self.seconds == ZERO && self.nanos == 0
    }

    /// Parses RFC 3339 with any number of digits of a second and any offset.
    pub fn parse(s: &str) -> Result<Timestamp, String> {
        Self::parse_inner(s).ok_or_else(|| fault(s, "2006-01-02T15:04:05Z07:00"))
    }

    /// Parses RFC 3339 with exactly six digits of a second, as `MicroTime` wants it.
    pub fn parse_micro(s: &str) -> Result<Timestamp, String> {
        let b = s.as_bytes();
        let six = b.get(19) == Some(&b'.')
            && b.get(20..26).is_some_and(|d| d.iter().all(u8::is_ascii_digit))
            && !b.get(26).is_some_and(u8::is_ascii_digit);
        Self::parse_inner(s).filter(|_| six).ok_or_else(|| fault(s, "2006-01-02T15:04:05.000000Z07:00"))
    }

    fn parse_inner(s: &str) -> Option<Timestamp> {
        let b = s.as_bytes();
        if b.len() < 20 || b[4] != b'-' || b[7] != b'-' || b[10] != b'T' || b[13] != b':' || b[16] != b':' {
            return None;
        }
        let (year, month, day) = (digits(&b[..4])?, digits(&b[5..7])?, digits(&b[8..10])?);
        let (hour, minute, second) = (digits(&b[11..13])?, digits(&b[14..16])?, digits(&b[17..19])?);
        if !(1..=12).contains(&month) || day < 1 || day > days_in_month(year, month) {
            return None;
        }
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let mut rest = &b[19..];
        let mut nanos = 0u32;
        if rest.first() == Some(&b'.') {
            let n = rest[1..].iter().take_while(|c| c.is_ascii_digit()).count();
            if n == 0 {
                return None;
            }
            let mut scale = 100_000_000;
            for c in &rest[1..=n] {
                nanos += u32::from(c - b'0') * scale;
                scale /= 10;
            }
            rest = &rest[n + 1..];
        }
        let offset = match rest {
            b"Z" => 0,
            [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
                let (h, m) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
                if h > 24 || m > 60 {
                    return None;
                }
                let offset = h * 3600 + m * 60;
                if *sign == b'-' { -offset } else { offset }
            }
            _ => return None,
        };
        let seconds = days_from_civil(year, month, day) * DAY + hour * 3600 + minute * 60 + second - offset;
        Some(Timestamp { seconds, nanos })
    }

    fn write_seconds(self, out: &mut String) {
        let (year, month, day) = civil_from_days(self.seconds.div_euclid(DAY));
        let s = self.seconds.rem_euclid(DAY);
        // Writing to a String cannot fail.
        let _ = write!(out, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
    }

    /// `2006-01-02T15:04:05Z`.
    pub fn rfc3339(self) -> String {
        let mut out = String::with_capacity(20);
        self.write_seconds(&mut out);
        out.push('Z');
        out
    }

    /// `2006-01-02T15:04:05.000000Z`.
    pub fn rfc3339_micro(self) -> String {
        let mut out = String::with_capacity(27);
        self.write_seconds(&mut out);
        let _ = write!(out, ".{:06}Z", self.nanos / 1000);
        out
    }
}

fn fault(s: &str, layout: &str) -> String {
    format!("parsing time {s:?} as {layout:?}: cannot parse {s:?} as \"2006\"")
}

/// A duration as `kubectl get` shows it: `45s`, `5m3s`, `3h20m`, `2d`. In seconds; up to a second in the future is
/// now, more is `<invalid>`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let two =
        |a: i64, x: &str, b: i64, y: &str| if b == 0 { format!("{a}{x}") } else { format!("{a}{x}{b}{y}") };
    match () {
        () if seconds < -1 => "<invalid>".into(),
        () if seconds < 0 => "0s".into(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => two(hours / 24, "d", hours % 24, "h"),
        () if hours < 24 * 365 * 2 => format!("{}d", hours / 24),
        () if hours < 24 * 365 * 8 => two(hours / 24 / 365, "y", hours / 24 % 365, "d"),
        () => format!("{}y", hours / 24 / 365),
    }
}

/// The time since a timestamp, as a duration for people; `<unknown>` where there is no timestamp.
pub fn since(timestamp: &str, now: i64) -> String {
    match Timestamp::parse(timestamp) {
        Ok(t) if !t.is_zero() => human_duration(now - t.seconds),
        _ => "<unknown>".into(),
    }
}

/// Parses a duration as Go writes it (`1h30m`, `1.5s`, `100ms`), to nanoseconds.
pub fn parse_duration(s: &str) -> Result<i64, String> {
    let fault = || format!("time: invalid duration {}", crate::go::quote(s));
    let (negative, mut rest) = match s.as_bytes().first() {
        Some(b'-') => (true, &s[1..]),
        Some(b'+') => (false, &s[1..]),
        _ => (false, s),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(fault());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let count = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
        let (whole, after) = rest.split_at(count(rest));
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => after.split_at(count(after)),
            None => ("", after),
        };
        if (whole.is_empty() && fraction.is_empty()) || whole.len() > 20 {
            return Err(fault());
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let unit: i128 = match &after[..end] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "" => return Err(format!("time: missing unit in duration {}", crate::go::quote(s))),
            unit => {
                let unit = crate::go::quote(unit);
                return Err(format!("time: unknown unit {unit} in duration {}", crate::go::quote(s)));
            }
        };
        let number = |digits: &str| digits.bytes().fold(0i128, |n, b| n * 10 + i128::from(b - b'0'));
        total += number(whole) * unit;
        let fraction = &fraction[..fraction.len().min(18)];
        total += number(fraction) * unit / 10i128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        rest = &after[end..];
    }
    let total = if negative { -total } else { total };
    i64::try_from(total).map_err(|_| fault())
}

/// A duration as Go prints it: `1h30m0s`, `1.5s`, `0s`. In nanoseconds.
pub fn format_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let with_fraction = |n: u64, unit: u64| {
        let (whole, rest) = (n / unit, n % unit);
        if rest == 0 {
            return whole.to_string();
        }
        let digits = unit.ilog10() as usize;
        format!("{whole}.{}", format!("{rest:0digits$}").trim_end_matches('0'))
    };
    if n < 1_000 {
        return format!("{sign}{n}ns");
    }
    if n < 1_000_000 {
        return format!("{sign}{}µs", with_fraction(n, 1_000));
    }
    if n < 1_000_000_000 {
        return format!("{sign}{}ms", with_fraction(n, 1_000_000));
    }
    let minutes = n / 60_000_000_000;
    let seconds = with_fraction(n % 60_000_000_000, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, m) => format!("{sign}{m}m{seconds}s"),
        (h, m) => format!("{sign}{h}h{m}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_writes() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2021-02-14T15:04:05Z", 1_613_315_045),
            ("2021-02-14T17:04:05+02:00", 1_613_315_045),
            ("2020-02-29T23:59:59.999Z", 1_583_020_799),
        ] {
            assert_eq!(Timestamp::parse(text).unwrap().seconds, seconds, "{text}");
        }
        assert_eq!(Timestamp::parse("2021-02-14T17:04:05+02:00").unwrap().rfc3339(), "2021-02-14T15:04:05Z");
        assert_eq!(
            Timestamp::parse_micro("2021-02-14T15:04:05.000120Z").unwrap().rfc3339_micro(),
            "2021-02-14T15:04:05.000120Z"
        );
        assert!(Timestamp::parse("0001-01-01T00:00:00Z").unwrap().is_zero());
        for bad in [
            "",
            "2021-02-30T00:00:00Z",
            "2021-02-14 15:04:05Z",
            "2021-02-14T15:04:05",
            "2021-02-14T15:04:05.Z",
        ] {
            assert!(Timestamp::parse(bad).is_err(), "{bad}");
        }
        assert!(Timestamp::parse_micro("2021-02-14T15:04:05Z").is_err());
        assert!(Timestamp::parse_micro("2021-02-14T15:04:05.1234567Z").is_err());
    }

    #[test]
    fn every_day_there_and_back() {
        for day in (-800_000..800_000).step_by(37) {
            let (y, m, d) = civil_from_days(day);
            assert_eq!(days_from_civil(y, i64::from(m), i64::from(d)), day);
        }
    }

    #[test]
    fn durations() {
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (123, "2m3s"),
            (600, "10m"),
            (3 * 3600 - 1, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600, "8h"),
            (48 * 3600, "2d"),
            (49 * 3600, "2d1h"),
            (8 * 24 * 3600, "8d"),
            (365 * 24 * 3600 * 2, "2y"),
            (365 * 24 * 3600 * 3 + 24 * 3600, "3y1d"),
            (365 * 24 * 3600 * 9, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
        assert_eq!(since("", 0), "<unknown>");
        assert_eq!(since("1970-01-01T00:00:00Z", 61), "61s");
    }

    #[test]
    fn go_durations() {
        for (text, printed) in [
            ("1h30m", "1h30m0s"),
            ("1.5s", "1.5s"),
            ("0", "0s"),
            ("100ms", "100ms"),
            ("-90s", "-1m30s"),
            ("1us", "1µs"),
        ] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), printed);
        }
        assert_eq!(parse_duration("5").unwrap_err(), "time: missing unit in duration \"5\"");
        for bad in ["", "s", "1x", "-", "1h-1m", "999999999999999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
