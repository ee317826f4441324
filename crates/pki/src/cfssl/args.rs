//! Command lines in the syntax of Go's `flag` package: `-name value`, `-name=value`, `--name`, bare booleans; what
//! follows the first argument that is no flag is left alone.

use std::collections::BTreeMap;

use super::Fault;

/// A flag's name, and whether it takes a value (else it is a boolean).
pub(super) type Spec = (&'static str, bool);

/// A parsed command line.
#[derive(Debug, Default)]
pub(super) struct Args {
    values: BTreeMap<&'static str, String>,
    /// What is no flag.
    pub rest: Vec<String>,
}

impl Args {
    /// Parses `args`. `-loglevel` is known to all commands.
    pub fn parse(specs: &[Spec], args: &[String]) -> Result<Args, Fault> {
        let mut out = Args::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let name = match arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) {
                Some("") if arg == "--" => break,
                None | Some("") => {
                    out.rest.push(arg.clone());
                    break;
                }
                Some(name) => name,
            };
            let (name, value) = match name.split_once('=') {
                Some((n, v)) => (n, Some(v.to_string())),
                None => (name, None),
            };
            let (known, takes_value) = specs
                .iter()
                .chain(&[("loglevel", true)])
                .find(|(n, _)| *n == name)
                .copied()
                .ok_or_else(|| Fault::Usage(format!("flag provided but not defined: -{name}")))?;
            let value = match value {
                Some(v) => v,
                None if !takes_value => "true".to_string(),
                None => args
                    .next()
                    .cloned()
                    .ok_or_else(|| Fault::Usage(format!("flag needs an argument: -{name}")))?,
            };
            if !takes_value && !matches!(value.as_str(), "true" | "false") {
                return Err(Fault::Usage(format!("invalid boolean value {value:?} for -{name}")));
            }
            out.values.insert(known, value);
        }
        out.rest.extend(args.cloned());
        Ok(out)
    }

    /// A value; empty where it was not given.
    pub fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Whether a boolean was given as true.
    pub fn has(&self, name: &str) -> bool {
        self.get(name) == "true"
    }

    /// A value that has to be there.
    pub fn need(&self, name: &str) -> Result<&str, Fault> {
        match self.get(name) {
            "" => Err(Fault::Usage(format!("-{name} is missing"))),
            v => Ok(v),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Fault> {
        let args: Vec<String> = line.split(' ').map(String::from).collect();
        Args::parse(&[("ca", true), ("initca", false)], &args)
    }

    #[test]
    fn goes_syntax() {
        let a = parse("-initca --ca=x - -ca y").unwrap();
        assert!(a.has("initca"));
        assert_eq!((a.get("ca"), a.rest.join(" ")), ("x", "- -ca y".to_string()));
        assert_eq!(parse("-ca x f.json").unwrap().rest, ["f.json"]);
        assert!(!parse("-initca=false f").unwrap().has("initca"));
        for bad in ["-x", "-ca", "-initca=maybe"] {
            assert!(matches!(parse(bad), Err(Fault::Usage(_))), "{bad}");
        }
    }
}
