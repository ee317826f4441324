//! Schedules of cron jobs, checked as `github.com/robfig/cron` does: five fields, or `@daily` and the like.

/// The bounds of a field, and the names it takes for its numbers.
struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const FIELDS: [Bounds; 5] = [
    Bounds { min: 0, max: 59, names: &[] },
    Bounds { min: 0, max: 23, names: &[] },
    Bounds { min: 1, max: 31, names: &[] },
    Bounds {
        min: 1,
        max: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

/// What is wrong with a schedule. The library of `today` words its errors in lower case and knows time zones.
pub(super) fn check(schedule: &str, today: bool) -> Result<(), String> {
    let result = if today {
        match schedule.strip_prefix("TZ=").or_else(|| schedule.strip_prefix("CRON_TZ=")) {
            Some(rest) => parse(rest.split_once(' ').map(|(_, rest)| rest.trim()).unwrap_or(""), true),
            None => parse(schedule, true),
        }
    } else {
        parse(schedule, false)
    };
    result.map_err(|e| if today { lower_first(&e) } else { e })
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_lowercase().collect::<String>() + chars.as_str()).unwrap_or_default()
}

fn parse(schedule: &str, today: bool) -> Result<(), String> {
    if schedule.is_empty() {
        return Err("Empty spec string".into());
    }
    if schedule.starts_with('@') {
        return descriptor(schedule);
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        let shown = if today {
            format!("{fields:?}").replace("\", \"", " ").replace('"', "")
        } else {
            schedule.into()
        };
        return Err(format!("Expected exactly {} fields, found {}: {shown}", FIELDS.len(), fields.len()));
    }
    for (field, bounds) in fields.iter().zip(&FIELDS) {
        for expression in field.split(',').filter(|e| !e.is_empty()) {
            range(expression, bounds)?;
        }
    }
    Ok(())
}

fn range(expression: &str, bounds: &Bounds) -> Result<(), String> {
    let mut parts = expression.split('/');
    let ends: Vec<&str> = parts.next().unwrap_or("").split('-').collect();
    let (start, mut end) = if matches!(ends[0], "*" | "?") {
        (bounds.min, bounds.max)
    } else {
        let start = number(ends[0], bounds)?;
        match ends[..] {
            [_] => (start, start),
            [_, end] => (start, number(end, bounds)?),
            _ => return Err(format!("Too many hyphens: {expression}")),
        }
    };
    let step = match (parts.next(), parts.next()) {
        (None, _) => 1,
        (Some(step), None) => {
            if ends.len() == 1 {
                end = bounds.max;
            }
            number(step, &Bounds { min: 0, max: 0, names: &[] })?
        }
        _ => return Err(format!("Too many slashes: {expression}")),
    };
    if start < bounds.min {
        return Err(format!("Beginning of range ({start}) below minimum ({}): {expression}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("End of range ({end}) above maximum ({}): {expression}", bounds.max));
    }
    if start > end {
        return Err(format!("Beginning of range ({start}) beyond end of range ({end}): {expression}"));
    }
    if step == 0 {
        return Err(format!("Step of range should be a positive number: {expression}"));
    }
    Ok(())
}

fn number(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    if let Some(n) = bounds.names.iter().position(|name| *name == lower) {
        return Ok(bounds.min + u32::try_from(n).unwrap_or(0));
    }
    let fault = |why: &str| {
        let quoted = pilothouse_apimachinery::go::quote(text);
        format!("Failed to parse int from {text}: strconv.Atoi: parsing {quoted}: {why}")
    };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(fault("invalid syntax"));
    }
    let n: i64 = text.parse().map_err(|_| fault("value out of range"))?;
    if n < 0 {
        return Err(format!("Negative number ({n}) not allowed: {text}"));
    }
    Ok(u32::try_from(n).unwrap_or(u32::MAX))
}

fn descriptor(schedule: &str) -> Result<(), String> {
    match schedule {
        "@yearly" | "@annually" | "@monthly" | "@weekly" | "@daily" | "@midnight" | "@hourly" => Ok(()),
        other => match other.strip_prefix("@every ") {
            Some(duration) => pilothouse_apimachinery::time::parse_duration(duration)
                .map(drop)
                .map_err(|e| format!("Failed to parse duration {other}: {e}")),
            None => Err(format!("Unrecognized descriptor: {other}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for ok in ["*/1 * * * *", "0 0 1,15 * mon-FRI", "@daily", "@every 1h30m", "? ? ? ? ?", "5/15 * * * *"]
        {
            assert_eq!(check(ok, false), Ok(()), "{ok}");
        }
        let fault = |s: &str| check(s, false).unwrap_err();
        assert_eq!(fault("60 * * * *"), "End of range (60) above maximum (59): 60");
        assert_eq!(fault("* * 0 * *"), "Beginning of range (0) below minimum (1): 0");
        assert_eq!(fault("5-1 * * * *"), "Beginning of range (5) beyond end of range (1): 5-1");
        assert_eq!(fault("*/0 * * * *"), "Step of range should be a positive number: */0");
        assert_eq!(
            fault("a * * * *"),
            "Failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"
        );
        assert_eq!(fault("@never"), "Unrecognized descriptor: @never");
        assert_eq!(check("1 2", true).unwrap_err(), "expected exactly 5 fields, found 2: [1 2]");
        assert_eq!(check("TZ=UTC 0 0 * * *", true), Ok(()));
    }
}
