//! Cron schedules: when a CronJob should have run, and should run next.

use std::str::FromStr;

use croner::Cron;
use croner::parser::{CronParser, Seconds};
use jiff::Timestamp;

/// A parsed schedule of five fields, or `@hourly`, `@daily` and the like. Times are UTC.
#[derive(Debug, Clone)]
pub struct Schedule(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Cron(Box<Cron>),
    /// `@every <duration>`, in seconds.
    Every(i64),
}

/// Why a schedule cannot be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Unparseable(String);

/// More missed runs than this are not made up for.
pub const TOO_MANY: usize = 100;

/// What was missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// The last run that should have been.
    pub last: Timestamp,
    /// How many there were; counting stops after [`TOO_MANY`].
    pub count: usize,
}

impl FromStr for Schedule {
    type Err = Unparseable;

    fn from_str(text: &str) -> Result<Self, Unparseable> {
        let text = text.trim();
        if let Some(every) = text.strip_prefix("@every ") {
            let d = pilothouse_component_base::flags::parse_duration(every.trim())
                .ok_or_else(|| Unparseable(format!("failed to parse duration {text}")))?;
            return Ok(Schedule(Kind::Every(i64::try_from(d.as_secs()).unwrap_or(i64::MAX).max(1))));
        }
        let standard = text.replace('?', "*");
        CronParser::builder()
            .seconds(Seconds::Disallowed)
            .build()
            .parse(&standard)
            .map(|c| Schedule(Kind::Cron(Box::new(c))))
            .map_err(|e| Unparseable(e.to_string()))
    }
}

impl Schedule {
    /// The first time after `after`; `None` where there is none.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(s) => Timestamp::from_second(after.as_second() + s).ok(),
            Kind::Cron(c) => {
                let from = chrono::DateTime::<chrono::Utc>::from_timestamp(after.as_second(), 0)?;
                let next = c.find_next_occurrence(&from, false).ok()?;
                Timestamp::from_second(next.timestamp()).ok()
            }
        }
    }

    /// What should have run after `after` and not later than `now`.
    pub fn missed(&self, after: Timestamp, now: Timestamp) -> Option<Missed> {
        let mut missed: Option<Missed> = None;
        let mut t = after;
        while let Some(next) = self.next(t).filter(|n| *n <= now) {
            let count = missed.map_or(0, |m| m.count) + 1;
            missed = Some(Missed { last: next, count });
            if count > TOO_MANY {
                break;
            }
            t = next;
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(s: &str) -> Timestamp {
        s.parse().unwrap()
    }

    #[test]
    fn next_and_missed() {
        let s: Schedule = "*/5 * * * *".parse().unwrap();
        assert_eq!(s.next(t("2024-01-01T00:00:00Z")), Some(t("2024-01-01T00:05:00Z")));
        assert_eq!(s.missed(t("2024-01-01T00:00:00Z"), t("2024-01-01T00:04:59Z")), None);
        let m = s.missed(t("2024-01-01T00:00:00Z"), t("2024-01-01T00:16:00Z")).unwrap();
        assert_eq!((m.last, m.count), (t("2024-01-01T00:15:00Z"), 3));
        let m = s.missed(t("2024-01-01T00:00:00Z"), t("2025-01-01T00:00:00Z")).unwrap();
        assert_eq!(m.count, TOO_MANY + 1);
        let daily: Schedule = "@daily".parse().unwrap();
        assert_eq!(daily.next(t("2024-02-28T12:00:00Z")), Some(t("2024-02-29T00:00:00Z")));
        let every: Schedule = "@every 90s".parse().unwrap();
        assert_eq!(every.next(t("2024-01-01T00:00:00Z")), Some(t("2024-01-01T00:01:30Z")));
        assert_eq!("0 0 30 2 *".parse::<Schedule>().unwrap().next(t("2024-01-01T00:00:00Z")), None);
    }

    #[test]
    fn refuses_what_is_no_schedule() {
        for bad in ["", "* * * *", "61 * * * *", "* * * * * *", "@sometimes", "@every x"] {
            assert!(bad.parse::<Schedule>().is_err(), "{bad}");
        }
    }
}
