//! The lines of a log in CRI's format: `<time> <stream> <tags> <text>`, tag `F` for a full line and `P` for a part of
//! one.

use jiff::Timestamp;

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// When, as it stands there: RFC 3339, with a fraction.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// More of this line comes with the next one.
    pub partial: bool,
    /// The text, with the line end where there is one.
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Parses a line; `None` where it is none.
    pub fn parse(raw: &'a [u8]) -> Option<Line<'a>> {
        let mut parts = raw.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = std::str::from_utf8(parts.next()?).ok()?;
        let tags = parts.next()?;
        let text = parts.next()?;
        if !matches!(stream, "stdout" | "stderr") {
            return None;
        }
        let partial = tags.split(|b| *b == b':').next() == Some(b"P");
        let text = if partial { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
        Some(Line { time, stream, partial, text })
    }

    /// The time.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

/// What is to be shown of a log, line by line.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Lines before this are left out.
    pub since: Option<Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Bytes that may still be shown.
    pub bytes: Option<u64>,
    /// Lines that may still be shown.
    pub lines: Option<u64>,
    /// The last line pushed goes on.
    pub within_line: bool,
}

impl Filter {
    /// Appends what is to be seen of a raw line to `out`. `false` where nothing more is to come.
    pub fn push(&mut self, raw: &[u8], out: &mut Vec<u8>) -> bool {
        if self.done() {
            return false;
        }
        let Some(line) = Line::parse(raw) else {
            tracing::debug!("a line of a log is not in CRI's format");
            return true;
        };
        self.lines = self.lines.map(|n| n - 1);
        if let Some(since) = self.since
            && line.timestamp().is_none_or(|t| t < since)
        {
            return !self.done();
        }
        if self.timestamps && !self.within_line {
            self.put(with_nanoseconds(line.time).as_bytes(), out);
            self.put(b" ", out);
        }
        self.within_line = line.partial;
        self.put(line.text, out);
        !self.done()
    }

    /// Whether nothing more is to be shown.
    pub fn done(&self) -> bool {
        self.bytes == Some(0) || self.lines == Some(0)
    }

    fn put(&mut self, text: &[u8], out: &mut Vec<u8>) {
        match &mut self.bytes {
            None => out.extend_from_slice(text),
            Some(left) => {
                let n = text.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                out.extend_from_slice(&text[..n]);
                *left -= n as u64;
            }
        }
    }
}

/// A time with exactly nine digits after the point, as the kubelet shows it.
fn with_nanoseconds(time: &str) -> String {
    let zone_at =
        time.rfind(['Z', '+']).or_else(|| time.rfind('-').filter(|i| *i > 10)).unwrap_or(time.len());
    let (clock, zone) = time.split_at(zone_at);
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    format!("{seconds}.{fraction:0<9}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[&str] = &[
        "2020-01-01T00:00:00.5Z stdout F one\n",
        "2020-01-01T00:00:01Z stderr P tw\n",
        "2020-01-01T00:00:02Z stderr F o\n",
        "no line\n",
        "2020-01-01T01:00:03.123456789+01:00 stdout F:x three words  here\n",
    ];

    fn show(mut f: Filter) -> String {
        let mut out = Vec::new();
        for l in LOG {
            if !f.push(l.as_bytes(), &mut out) {
                break;
            }
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn parts_of_a_line_are_joined() {
        assert_eq!(show(Filter::default()), "one\ntwo\nthree words  here\n");
    }

    #[test]
    fn times_stand_at_the_beginning_of_lines_only() {
        let text = show(Filter { timestamps: true, ..Default::default() });
        assert_eq!(
            text,
            "2020-01-01T00:00:00.500000000Z one\n2020-01-01T00:00:01.000000000Z two\n\
             2020-01-01T01:00:03.123456789+01:00 three words  here\n"
        );
    }

    #[test]
    fn limits() {
        assert_eq!(show(Filter { bytes: Some(6), ..Default::default() }), "one\ntw");
        assert_eq!(show(Filter { bytes: Some(4), ..Default::default() }), "one\n");
        assert_eq!(show(Filter { lines: Some(1), ..Default::default() }), "one\n");
        assert_eq!(show(Filter { lines: Some(0), ..Default::default() }), "");
        let since = "2020-01-01T00:00:03Z".parse().ok();
        assert_eq!(show(Filter { since, ..Default::default() }), "three words  here\n");
    }
}
