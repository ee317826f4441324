//! What cfssl, cfssljson and cfssl-certinfo do, with their JSON and their command lines: `gencert`, `genkey`, `sign`,
//! `selfsign`, `certinfo`, `print-defaults`.
//!
//! The format of requests and configurations: <https://github.com/cloudflare/cfssl#readme>.

mod args;
mod config;
mod info;
mod issue;
mod output;
mod request;

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use args::{Args, Spec};

/// Which of the programs is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Makes and shows certificates: `cfssl COMMAND`.
    Cfssl,
    /// Writes what `cfssl` printed into files.
    Json,
    /// `cfssl certinfo`, by a name of its own.
    CertInfo,
}

/// The file names by which this program is called as one of cfssl's.
pub const NAMES: &[(&str, Tool)] =
    &[("cfssl", Tool::Cfssl), ("cfssljson", Tool::Json), ("cfssl-certinfo", Tool::CertInfo)];

/// Why a command failed: one line that names what is wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// What a file says cannot be done.
    #[error("{0}")]
    Input(String),
    /// From the certificate authority.
    #[error(transparent)]
    Authority(#[from] crate::Error),
}

impl From<rcgen::Error> for Fault {
    fn from(e: rcgen::Error) -> Fault {
        Fault::Authority(e.into())
    }
}

impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Fault {
        Fault::Authority(e.into())
    }
}

const USAGE: &str = "\
Usage:
  cfssl gencert -initca [-ca-key KEY] REQUEST.json
  cfssl gencert -ca CERT -ca-key KEY [-config FILE] [-profile NAME] [-hostname LIST] REQUEST.json
  cfssl genkey [-initca] REQUEST.json
  cfssl sign -ca CERT -ca-key KEY [-config FILE] [-profile NAME] [-hostname LIST] REQUEST.csr
  cfssl selfsign HOSTNAME REQUEST.json
  cfssl certinfo -cert FILE
  cfssl print-defaults config|csr
  cfssl version
  cfssljson [-bare] [-f FILE] [-stdout] [NAME]

\"-\" as a file is standard input. (`pilothouse pki` is cfssl, `pilothouse pki json` is cfssljson.)
";

/// Runs one of the programs with its arguments.
pub fn main(tool: Tool, args: &[String]) -> ExitCode {
    let done = match tool {
        Tool::Cfssl => cfssl(args),
        Tool::Json => output::main(args),
        Tool::CertInfo => info::main(args),
    };
    match done {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(Fault::Usage(e)) => {
            eprint!("{e}\n{USAGE}");
            ExitCode::from(2)
        }
        Err(e) => {
            log("ERROR", &e.to_string());
            ExitCode::from(1)
        }
    }
}

fn cfssl(args: &[String]) -> Result<String, Fault> {
    let (command, args) = args.split_first().ok_or_else(|| Fault::Usage("No command is given.".into()))?;
    match command.as_str() {
        "gencert" => issue::gencert(args),
        "genkey" => issue::genkey(args),
        "sign" => issue::sign(args),
        "selfsign" => issue::selfsign(args),
        "certinfo" => info::main(args),
        "print-defaults" => print_defaults(args),
        "version" => Ok(format!("Version: {}\nRuntime: Pilothouse\n", env!("CARGO_PKG_VERSION"))),
        "help" | "-h" | "-help" | "--help" => Ok(USAGE.to_string()),
        _ => Err(Fault::Usage(format!("Command {command} is not defined."))),
    }
}

fn print_defaults(args: &[String]) -> Result<String, Fault> {
    match Args::parse(&[], args)?.rest.first().map(String::as_str) {
        Some("config") => Ok(config::DEFAULT.to_string()),
        Some("csr") => Ok(request::DEFAULT.to_string()),
        Some("list") => Ok("Default configurations are available for:\n\tconfig\n\tcsr\n".to_string()),
        _ => Err(Fault::Usage("print-defaults: config or csr?".into())),
    }
}

/// A file's text; `-` is standard input. The error names the file.
fn read(path: &str) -> Result<String, Fault> {
    if path == "-" {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| Fault::Input(format!("standard input: {e}")))?;
        return Ok(text);
    }
    Ok(crate::files::read(Path::new(path))?)
}

/// The first argument that is not a flag, or what is missing.
fn argument<'a>(args: &'a Args, what: &str) -> Result<&'a str, Fault> {
    args.rest.first().map(String::as_str).ok_or_else(|| Fault::Usage(format!("{what} is missing")))
}

/// A line on standard error, as cfssl writes them.
fn log(level: &str, text: &str) {
    let t = time::OffsetDateTime::now_utc();
    let (date, clock) = (t.date(), t.time());
    eprintln!(
        "{}/{:02}/{:02} {:02}:{:02}:{:02} [{level}] {text}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    );
}

/// The flags that say who signs and how.
const SIGNING: &[Spec] =
    &[("ca", true), ("ca-key", true), ("config", true), ("profile", true), ("hostname", true)];
