//! Command-line flags in pflag's syntax, from one table per component.
//!
//! The table is a TSV file beside the component's code: name, type, default, `deprecated` or nothing, notes.
//! `--help`, type checks, deprecation warnings and the "accepted, no effect" warnings all come from it. Whether a
//! flag has an effect is not written down anywhere: a flag that nobody has read once the component is configured
//! has none, and [`Flags::warn_ineffective`] says so.
//!
//! Syntax: `--name=value`, `--name value`, bare `--bool`, `_` for `-` in names, `-v N`, `-h`. Source:
//! <https://kubernetes.io/docs/reference/command-line-tools-reference/> (v1.20) and pflag's documentation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;

/// One row of a component's flag table.
#[derive(Debug, Clone, Copy)]
pub struct FlagSpec {
    /// Name without dashes in front.
    pub name: &'static str,
    /// `string`, `bool`, `int`, `float`, `duration`, `strings`, `mapStringString` or `mapStringBool`.
    pub kind: &'static str,
    /// Default, in the text form a user would write.
    pub default: &'static str,
    /// Whether using it earns a deprecation warning.
    pub deprecated: bool,
    /// For `--help`.
    pub notes: &'static str,
}

/// Why a command line was refused. The text is what pflag prints.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FlagError {
    /// No such flag.
    #[error("unknown flag: --{0}")]
    Unknown(String),
    /// No such one-letter flag.
    #[error("unknown shorthand flag: {0:?} in -{1}")]
    UnknownShorthand(char, String),
    /// A flag that takes a value stood last.
    #[error("flag needs an argument: --{0}")]
    NeedsArgument(String),
    /// A value that does not parse as the flag's type.
    #[error("invalid argument {value:?} for \"--{name}\" flag: {reason}")]
    Invalid {
        /// Flag name.
        name: String,
        /// What was given.
        value: String,
        /// Why it does not parse.
        reason: String,
    },
    /// Something that is not a flag.
    #[error("unknown command {0:?}")]
    Positional(String),
}

/// Parses a flag table. Lines that begin with `#` are comments.
pub fn table(tsv: &'static str) -> Vec<FlagSpec> {
    tsv.lines()
        .filter(|l| !l.starts_with('#') && !l.trim().is_empty())
        .map(|l| {
            let mut f = l.split('\t');
            let mut next = || f.next().unwrap_or("");
            FlagSpec {
                name: next(),
                kind: next(),
                default: next(),
                deprecated: next() == "deprecated",
                notes: next(),
            }
        })
        .collect()
}

/// A parsed command line. The getters panic on a name that is not in the table: that is a mistake in the program.
#[derive(Debug)]
pub struct Flags {
    specs: BTreeMap<&'static str, FlagSpec>,
    given: BTreeMap<&'static str, Vec<String>>,
    read: Mutex<BTreeSet<&'static str>>,
}

impl Flags {
    /// Parses `args` (without the program's name) against a table. Repeated list and map flags add up; for others
    /// the last one wins.
    pub fn parse<I, S>(specs: &[FlagSpec], args: I) -> Result<Flags, FlagError>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let specs: BTreeMap<_, _> = specs.iter().map(|s| (s.name, *s)).collect();
        let mut given: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        let mut args = args.into_iter().map(Into::into);
        while let Some(arg) = args.next() {
            let (name, value) = if let Some(long) = arg.strip_prefix("--") {
                let (n, v) = match long.split_once('=') {
                    Some((n, v)) => (n, Some(v.to_string())),
                    None => (long, None),
                };
                (n.replace('_', "-"), v)
            } else if let Some(short) = arg.strip_prefix('-').filter(|s| !s.is_empty()) {
                let name = match short.as_bytes()[0] {
                    b'v' => "v",
                    b'h' => "help",
                    c => return Err(FlagError::UnknownShorthand(c as char, short.to_string())),
                };
                let rest = short[1..].strip_prefix('=').unwrap_or(&short[1..]);
                (name.to_string(), (!rest.is_empty()).then(|| rest.to_string()))
            } else {
                return Err(FlagError::Positional(arg));
            };
            let spec = specs.get(name.as_str()).ok_or_else(|| FlagError::Unknown(name.clone()))?;
            let value = match value {
                Some(v) => v,
                None if spec.kind == "bool" => "true".to_string(),
                None => args.next().ok_or(FlagError::NeedsArgument(name))?,
            };
            check(spec, &value)?;
            given.entry(spec.name).or_default().push(value);
        }
        Ok(Flags { specs, given, read: Mutex::new(BTreeSet::new()) })
    }

    fn raw(&self, name: &str) -> (&FlagSpec, Option<&Vec<String>>) {
        let spec = self.specs.get(name).unwrap_or_else(|| panic!("flag {name} is not in the table"));
        self.read.lock().insert(spec.name);
        (spec, self.given.get(name))
    }

    /// Whether the user gave the flag.
    pub fn given(&self, name: &str) -> bool {
        self.raw(name).1.is_some()
    }

    /// The value as text; the default if not given.
    pub fn string(&self, name: &str) -> String {
        let (spec, v) = self.raw(name);
        v.and_then(|v| v.last().cloned()).unwrap_or_else(|| spec.default.to_string())
    }

    /// The value as text, `None` where it is empty.
    pub fn opt(&self, name: &str) -> Option<String> {
        Some(self.string(name)).filter(|s| !s.is_empty())
    }

    /// A boolean.
    pub fn bool(&self, name: &str) -> bool {
        parse_bool(&self.string(name)).unwrap_or(false)
    }

    /// An integer; 0 where neither a value nor a default is there.
    pub fn int(&self, name: &str) -> i64 {
        self.string(name).parse().unwrap_or(0)
    }

    /// A number; 0 where neither a value nor a default is there.
    pub fn float(&self, name: &str) -> f64 {
        self.string(name).parse().unwrap_or(0.0)
    }

    /// A Go duration such as `1m30s`; zero where neither a value nor a default is there.
    pub fn duration(&self, name: &str) -> Duration {
        parse_duration(&self.string(name)).unwrap_or(Duration::ZERO)
    }

    /// A comma-separated list; repeated flags add up.
    pub fn strings(&self, name: &str) -> Vec<String> {
        let (spec, v) = self.raw(name);
        let joined = v.map(|v| v.join(",")).unwrap_or_else(|| spec.default.to_string());
        joined.split(',').map(str::trim).filter(|s| !s.is_empty()).map(String::from).collect()
    }

    /// `a=b,c=d`; repeated flags add up.
    pub fn map(&self, name: &str) -> BTreeMap<String, String> {
        self.strings(name)
            .into_iter()
            .map(|kv| match kv.split_once(['=', '<']) {
                Some((k, v)) => (k.to_string(), v.to_string()),
                None => (kv, String::new()),
            })
            .collect()
    }

    /// Names that the user gave and that are deprecated.
    pub fn deprecated_given(&self) -> Vec<&'static str> {
        self.given.keys().filter(|n| self.specs[*n].deprecated).copied().collect()
    }

    /// What is said of each of them: pflag's line.
    pub fn deprecation_warnings(&self) -> Vec<String> {
        let line = |name: &'static str| {
            let notes = self.specs[name].notes;
            let comma = if notes.is_empty() { "" } else { ", " };
            format!("Flag --{name} has been deprecated{comma}{notes}")
        };
        self.deprecated_given().into_iter().map(line).collect()
    }

    /// Flags that were given and that nothing has read so far.
    pub fn ineffective(&self) -> Vec<&'static str> {
        let read = self.read.lock();
        self.given.keys().filter(|n| !read.contains(*n)).copied().collect()
    }

    /// Logs a warning for each of them. To be called when the component is configured.
    pub fn warn_ineffective(&self) {
        for name in self.ineffective() {
            tracing::warn!("flag --{name} is accepted and has no effect yet");
        }
    }

    /// The text of `--help`.
    pub fn help(component: &str, specs: &[FlagSpec]) -> String {
        let mut out = format!("Usage:\n  {component} [flags]\n\nFlags:\n");
        for s in specs {
            let default =
                if s.default.is_empty() { String::new() } else { format!(" (default {})", s.default) };
            let dep = if s.deprecated { " DEPRECATED" } else { "" };
            out.push_str(&format!("      --{} {}{}{} {}\n", s.name, s.kind, default, dep, s.notes));
        }
        out
    }
}

fn check(spec: &FlagSpec, value: &str) -> Result<(), FlagError> {
    let bad = |reason: String| {
        Err(FlagError::Invalid { name: spec.name.to_string(), value: value.to_string(), reason })
    };
    match spec.kind {
        "bool" if parse_bool(value).is_none() => {
            bad(format!("strconv.ParseBool: parsing {value:?}: invalid syntax"))
        }
        "int" if value.parse::<i64>().is_err() => {
            bad(format!("strconv.ParseInt: parsing {value:?}: invalid syntax"))
        }
        "float" if value.parse::<f64>().is_err() => {
            bad(format!("strconv.ParseFloat: parsing {value:?}: invalid syntax"))
        }
        "duration" if parse_duration(value).is_none() => bad(format!("time: invalid duration {value:?}")),
        "mapStringBool" => {
            match value.split(',').filter(|s| !s.is_empty()).find_map(|kv| match kv.split_once('=') {
                Some((_, v)) if parse_bool(v).is_some() => None,
                Some((k, v)) => Some(format!(
                    "invalid value of {k}={v}, err: strconv.ParseBool: parsing {v:?}: invalid syntax"
                )),
                None => Some(format!("missing bool value for {kv}")),
            }) {
                Some(reason) => bad(reason),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

fn parse_bool(s: &str) -> Option<bool> {
    match s {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Parses a Go duration: `300ms`, `1.5h`, `2h45m`. A bare `0` is allowed, a bare other number is not; negative ones
/// are refused.
pub fn parse_duration(s: &str) -> Option<Duration> {
    let mut rest = s.strip_prefix('+').unwrap_or(s);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let n: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += n * match &rest[..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# c\naddress\tstring\t0.0.0.0\t\t\nprofiling\tbool\ttrue\t\t\nsync\tduration\t1m0s\t\t\n\
        v\tint\t0\t\t\nold\tint\t1\tdeprecated\tuse --new\nlist\tstrings\ta\t\t\ngates\tmapStringBool\t\t\t\nhelp\tbool\tfalse\t\t";

    fn parse(args: &[&str]) -> Result<Flags, FlagError> {
        Flags::parse(&table(TABLE), args.iter().copied())
    }

    #[test]
    fn accepts_the_syntaxes_of_pflag() {
        let f = parse(&[
            "--address=::",
            "--profiling=false",
            "--sync",
            "90s",
            "-v=4",
            "--list=x,y",
            "--list",
            "z",
        ])
        .unwrap();
        assert_eq!(f.string("address"), "::");
        assert!(!f.bool("profiling"));
        assert_eq!(f.duration("sync"), Duration::from_secs(90));
        assert_eq!(f.int("v"), 4);
        assert_eq!(f.strings("list"), ["x", "y", "z"]);
        assert_eq!(parse(&["-v", "2"]).unwrap().int("v"), 2);
        assert_eq!(parse(&[]).unwrap().strings("list"), ["a"]);
    }

    #[test]
    fn refuses_what_pflag_refuses() {
        assert_eq!(parse(&["--nope"]).unwrap_err(), FlagError::Unknown("nope".into()));
        assert_eq!(parse(&["--sync"]).unwrap_err(), FlagError::NeedsArgument("sync".into()));
        assert_eq!(parse(&["stray"]).unwrap_err(), FlagError::Positional("stray".into()));
        for bad in ["--v=x", "--sync=5", "--profiling=maybe", "--gates=A", "--gates=A=x"] {
            assert!(matches!(parse(&[bad]), Err(FlagError::Invalid { .. })), "{bad}");
        }
    }

    #[test]
    fn knows_which_flags_nobody_read() {
        let f = parse(&["--old=2", "--address=x"]).unwrap();
        f.string("address");
        assert_eq!(f.deprecated_given(), ["old"]);
        assert_eq!(f.deprecation_warnings(), ["Flag --old has been deprecated, use --new"]);
        assert_eq!(f.ineffective(), ["old"]);
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("1h2m3.5s"), Some(Duration::from_millis(3_723_500)));
        assert_eq!(parse_duration("8760h0m0s"), Some(Duration::from_secs(31_536_000)));
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
        for bad in ["", "5", "1x", "s", "-1s"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }
}
